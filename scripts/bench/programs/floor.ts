/**
 * What POST /order/pay costs at least: node:http, pg, the same statement prepared, a token that is checked once. No validation,
 * no refusals, no limits, no log, no events to publish. Run as a process of its own, by ../world.ts.
 */
import { createPublicKey, randomBytes, verify } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { Pool } from "pg";
import { POOL_CONNECTIONS_MAX } from "#kernel/settings";

interface Claims {
  sub: string;
  email: string;
}

const { DATABASE_URL, JWKS_FILE = "" } = process.env;
const pool = new Pool({ connectionString: DATABASE_URL, max: POOL_CONNECTIONS_MAX });
const { keys } = JSON.parse(readFileSync(JWKS_FILE, "utf8"));
const publicKey = createPublicKey({ key: keys[0], format: "jwk" });
const known = new Map<string, Claims>();

function claimsOf(token: string): Claims {
  let claims = known.get(token);
  if (claims === undefined) {
    const [head, body = "", signature = ""] = token.split(".");
    if (!verify(null, Buffer.from(`${head}.${body}`), publicKey, Buffer.from(signature, "base64url"))) {
      throw new Error("The token is not valid.");
    }
    claims = JSON.parse(Buffer.from(body, "base64url").toString()) as Claims;
    known.set(token, claims);
  }
  return claims;
}

const server = createServer(async (request, response) => {
  const { sub, email } = claimsOf((request.headers.authorization ?? "").slice("Bearer ".length));
  const id = Number(new URLSearchParams(request.url?.split("?")[1]).get("idSubscription"));
  const traceparent = `00-${randomBytes(16).toString("hex")}-${randomBytes(8).toString("hex")}-01`;
  const { rows } = await pool.query({
    name: "place-order",
    text: 'select * from "order".place($1, $2, $3, $4, $5, $6, $7, $8)',
    values: [sub, email, id, null, null, null, "order-pay", traceparent],
  });
  const { order, balance } = rows[0].answer;
  const text = JSON.stringify({ order, balance: balance / 100 });
  response.writeHead(200, { "content-type": "application/json", "content-length": Buffer.byteLength(text) }).end(text);
});
server.listen(0, "127.0.0.1", () => process.send?.({ port: (server.address() as AddressInfo).port }));
process.once("disconnect", () => process.exit());
