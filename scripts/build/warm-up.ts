/**
 * Runs a function once while its image is built, by the Node that will run it, so that the image holds what V8 compiled: a pod's
 * file system is read-only, and each one is a first start. There is no database here; all that comes before one is rehearsed.
 */
import { fork } from "node:child_process";
import { generateKeyPairSync, sign } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathOf } from "#kernel/endpoint";
import { TOKEN_AUDIENCE, TOKEN_ISSUER } from "#kernel/settings";

const MILLISECONDS_MAX = 30_000;
const ID = "00000000-0000-4000-8000-000000000000";

const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString("base64url");

async function rehearse(program: string, path: string, folder: string): Promise<void> {
  const { publicKey, privateKey } = generateKeyPairSync("ed25519");
  const about = { kid: "rehearsal", alg: "EdDSA", use: "sig" };
  writeFileSync(
    join(folder, "public"),
    JSON.stringify({ keys: [{ ...publicKey.export({ format: "jwk" }), ...about }] }),
  );
  writeFileSync(join(folder, "private"), JSON.stringify({ ...privateKey.export({ format: "jwk" }), ...about }));
  const claims = { sub: ID, email: "ada@example.com", iss: TOKEN_ISSUER, aud: TOKEN_AUDIENCE, exp: 4_000_000_000 };
  const signed = `${encode({ alg: "EdDSA", kid: about.kid })}.${encode(claims)}`;
  const child = fork(program, [], {
    env: {
      PORT: "0",
      DATABASE_URL: "postgres://nobody:nothing@127.0.0.1:1/none",
      JWKS_FILE: join(folder, "public"),
      SIGNING_KEY_FILE: join(folder, "private"),
      // Compiles telemetry.cjs too. No collector listens there.
      OTEL_EXPORTER_OTLP_ENDPOINT: "http://127.0.0.1:1",
    },
    stdio: ["ignore", "ignore", "ignore", "ipc"],
  });
  const ended = once(child, "exit");
  setTimeout(() => child.kill("SIGKILL"), MILLISECONDS_MAX).unref();
  const [message] = await Promise.race([once(child, "message"), ended.then(() => [])]);
  if (message === undefined) throw new Error("it did not start");
  const headers = {
    authorization: `Bearer ${signed}.${sign(null, Buffer.from(signed), privateKey).toString("base64url")}`,
    "content-type": "application/json",
    "ce-specversion": "1.0",
    "ce-id": ID,
    "ce-source": "/rehearsal",
    "ce-type": "rehearsal",
    connection: "close",
  };
  const url = `http://127.0.0.1:${message.port}${path}`;
  for (const init of [{}, { method: "POST", body: "{}" }]) await (await fetch(url, { headers, ...init })).arrayBuffer();
  child.kill("SIGTERM");
  await ended;
}

const program = join(__dirname, "function.cjs");
const bundle = readdirSync(__dirname).find((file) => file.endsWith(".bundle.cjs") && file !== "telemetry.bundle.cjs");
// The other images are no functions.
if (bundle !== undefined) {
  const folder = mkdtempSync(join(__dirname, "rehearsal-"));
  rehearse(program, pathOf(bundle.replace(".bundle.cjs", "")), folder)
    // An image without it starts as well, only later.
    .catch((error: Error) => console.error(`Not rehearsed: ${error.message}`))
    .finally(() => rmSync(folder, { recursive: true }));
}
