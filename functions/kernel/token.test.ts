import { createPrivateKey, createPublicKey, sign as signBytes } from "node:crypto";
import { readFile, rename, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { exportJWK, generateKeyPair, importJWK, type JWK, SignJWT, UnsecuredJWT } from "jose";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { findFunctions } from "../../scripts/project/functions.ts";
import { rotateKeys } from "../../scripts/secrets/keys.ts";
import {
  call,
  eventually,
  newUser,
  startTestLotus,
  type TestLotus,
  type TestUser,
} from "../../scripts/testing/lotus.ts";
import { KEY_OVERLAP_SECONDS, TOKEN_LENGTH_MAX, TOKEN_SECONDS } from "./limits.ts";

const forUsers = (await findFunctions()).flatMap((fn) =>
  fn.kind === "endpoint" && fn.description.caller === "user" ? [fn] : [],
);

let lotus: TestLotus;
let user: TestUser;
/** The signing key, which only login has. */
let signingKey: JWK;
beforeAll(async () => {
  lotus = await startTestLotus();
  user = await newUser(lotus);
  signingKey = JSON.parse(
    await readFile(lotus.manifests.functions.get("profile-login")?.SIGNING_KEY_FILE ?? "", "utf8"),
  );
});
afterAll(() => lotus.stop());

interface Claims {
  issuer?: string | null;
  audience?: string | null;
  expires?: string | number | null;
  /** Seconds from now. */
  issued?: number | null;
  subject?: string | null;
  email?: string | null;
}

/** A token as login signs it, except for the given claims. null omits a claim. */
function jwt({ issuer = "lotus", audience = "lotus", expires = "1h", issued = 0, ...claims }: Claims) {
  const { subject = user.id, email = user.email } = claims;
  const token = new SignJWT(email === null ? {} : { email });
  if (issued !== null) token.setIssuedAt(Math.floor(Date.now() / 1000) + issued);
  if (issuer !== null) token.setIssuer(issuer);
  if (audience !== null) token.setAudience(audience);
  if (expires !== null) token.setExpirationTime(expires);
  if (subject !== null) token.setSubject(subject);
  return token;
}

type Key = Parameters<SignJWT["sign"]>[0];

const sign = async (claims: Claims, key?: Key, header = {}) =>
  jwt(claims)
    .setProtectedHeader({ alg: "EdDSA", kid: signingKey.kid ?? "", typ: "JWT", ...header })
    .sign(key ?? (await importJWK(signingKey, "EdDSA")));

interface FileKey {
  readonly kid: string;
}
const ended = (key: FileKey) => ({
  ...key,
  retiredAt: Math.floor(Date.now() / 1000) - TOKEN_SECONDS - KEY_OVERLAP_SECONDS - 1,
});

const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString("base64url");

/** The order of the group of Ed25519 (RFC 8032 §5.1), which may be added to the second half of a signature. */
const GROUP_ORDER = 2n ** 252n + 27742317777372353535851937790883648493n;

/** Returns a signature whose second half is greater by the order of the group: RFC 8032 §5.1.7 forbids it. */
function malleated(signature: Buffer): Buffer {
  const s = BigInt(`0x${Buffer.from(signature.subarray(32)).reverse().toString("hex")}`) + GROUP_ORDER;
  return Buffer.concat([signature.subarray(0, 32), Buffer.from(s.toString(16).padStart(64, "0"), "hex").reverse()]);
}

/** Signs any header and any claims with the key of login, as no library would. */
function sealed(header: object, claims: object, change = (signature: Buffer) => signature): string {
  const text = `${encode({ alg: "EdDSA", kid: signingKey.kid, ...header })}.${encode({ ...genuineClaims(), ...claims })}`;
  const key = createPrivateKey({ key: signingKey as never, format: "jwk" });
  return `${text}.${change(signBytes(null, Buffer.from(text), key)).toString("base64url")}`;
}

function genuineClaims() {
  const now = Math.floor(Date.now() / 1000);
  return { iss: "lotus", aud: "lotus", sub: user.id, email: user.email, iat: now, exp: now + 600 };
}

/** Tokens with a valid signature of the key, except where the name says so, and a header or a claim that RFC 7515 or Lotus forbids. */
const oddTokens = (): Record<string, string> => ({
  "with another name of the algorithm": sealed({ alg: "Ed25519" }, {}),
  "with a path as the key's name": sealed({ kid: `../${signingKey.kid}` }, {}),
  "with __proto__ as the key's name": sealed({ kid: "__proto__" }, {}),
  "with a list as the key's name": sealed({ kid: [signingKey.kid] }, {}),
  "with a critical header that is unknown": sealed({ crit: ["x"], x: 1 }, {}),
  "with a payload that is not encoded": sealed({ b64: false, crit: ["b64"] }, {}),
  "with a text as its end": sealed({}, { exp: "2999-01-01" }),
  "with null as its end": sealed({}, { exp: null }),
  "with a beginning in the future": sealed({}, { nbf: Math.floor(Date.now() / 1000) + 300 }),
  "with a text as its beginning": sealed({}, { nbf: "now" }),
  "with a text as its time of issue": sealed({}, { iat: "now" }),
  "with a list of issuers": sealed({}, { iss: ["lotus"] }),
  "with a list of other audiences": sealed({}, { aud: ["another"] }),
  "for a number": sealed({}, { sub: 1 }),
  "for a list of users": sealed({}, { sub: [user.id] }),
  "with an object as its email": sealed({}, { email: { toString: "x" } }),
  "with a changed signature": sealed({}, {}, (bytes) =>
    Buffer.from(bytes.map((byte, n) => (n === 5 ? byte ^ 1 : byte))),
  ),
  "with a signature of zeros": sealed({}, {}, (bytes) => Buffer.alloc(bytes.length)),
  "with the other form of its signature": sealed({}, {}, malleated),
  "encrypted (JWE)": `${encode({ alg: "dir", enc: "A256GCM" })}..AAAAAAAAAAAAAAAA.AAAA.AAAAAAAAAAAAAAAAAAAAAA`,
});

/** Authorization headers that an attacker would send, by name. */
async function forgeries(): Promise<Record<string, string | undefined>> {
  const { d: _, ...publicJwk } = signingKey;
  const published = (await call(lotus, "GET /profile/jwks")).body.keys[0];
  const pem = createPublicKey({ key: published, format: "jwk" }).export({ type: "spki", format: "pem" });
  const { privateKey: stranger, publicKey: strangers } = await generateKeyPair("EdDSA", { extractable: true });
  const hmac = (secret: string | Uint8Array, header = {}) =>
    sign({}, typeof secret === "string" ? new TextEncoder().encode(secret) : secret, { alg: "HS256", ...header });
  const [head = "", payload = "", signature = ""] = user.token.split(".");
  const claims = JSON.parse(Buffer.from(payload, "base64url").toString());
  const tokens: Record<string, string> = {
    "of another key": await sign({}, stranger),
    "of another key that it brings along": await sign({}, stranger, { jwk: await exportJWK(strangers) }),
    "of another key that it names itself": await sign({}, stranger, { kid: "another", jku: "http://127.0.0.1:1/" }),
    "of another key without a name": await sign({}, stranger, { kid: undefined }),
    unsigned: new UnsecuredJWT({ email: user.email })
      .setIssuer("lotus")
      .setAudience("lotus")
      .setSubject(user.id)
      .setExpirationTime("1h")
      .encode(),
    "unsigned, with a valid signature": `${encode({ alg: "none" })}.${payload}.${signature}`,
    "unsigned, in other letters": `${encode({ alg: "nOnE" })}.${payload}.`,
    "HS256 with x": await hmac(published.x),
    "HS256 with the bytes of x": await hmac(Buffer.from(published.x, "base64url")),
    "HS256 with the key as JSON": await hmac(JSON.stringify(published)),
    "HS256 with the key as JSON, without the rest": await hmac(JSON.stringify(publicJwk)),
    "HS256 with the key as PEM": await hmac(pem.toString()),
    "HS256 with the key as PEM, trimmed": await hmac(pem.toString().trim()),
    "HS256 with the key as PEM, without a key's name": await hmac(pem.toString(), { kid: undefined }),
    expired: await sign({ expires: "1s ago" }),
    "that never expires": await sign({ expires: null }),
    "valid for 31 years": await sign({ expires: "31y" }),
    "valid for a minute too long": await sign({ expires: "61m" }),
    "issued too long ago": await sign({ issued: -TOKEN_SECONDS - 60, expires: "1h" }),
    "issued in the future": await sign({ issued: 60, expires: "61m" }),
    "without a time of issue": await sign({ issued: null }),
    "of another issuer": await sign({ issuer: "lotus.example" }),
    "of no issuer": await sign({ issuer: null }),
    "for another audience": await sign({ audience: "another" }),
    "for no audience": await sign({ audience: null }),
    "without a subject": await sign({ subject: null }),
    "for a subject that is not a UUID": await sign({ subject: "ada" }),
    "without an email": await sign({ email: null }),
    "with other claims under the same signature": `${head}.${encode({ ...claims, sub: "00000000-0000-4000-8000-000000000000" })}.${signature}`,
    "without a signature": `${head}.${payload}.`,
    "cut short": user.token.slice(0, -10),
    "in three empty parts": "..",
    "without the form of a token": "x",
    "longer than the limit": await sign({ email: `${"x".repeat(TOKEN_LENGTH_MAX)}@example.com` }),
  };
  const bearers = Object.entries({ ...tokens, ...oddTokens() }).map(
    ([name, token]) => [`a token ${name}`, `Bearer ${token}`] as const,
  );
  return {
    ...Object.fromEntries(bearers),
    "no header": undefined,
    "an empty header": "",
    "no token": "Bearer ",
    "a token without a scheme": user.token,
    "a token with another scheme": `Basic ${user.token}`,
    "two tokens": `Bearer ${user.token} ${user.token}`,
    "a token and further text": `Bearer ${user.token}, x`,
  };
}

describe("a token", () => {
  it("is accepted when login issued it", async () => {
    for (const authorization of [user.token, await sign({}), sealed({}, {})].flatMap((token) => [
      `Bearer ${token}`,
      `bearer  ${token}`,
    ])) {
      const answer = await call(lotus, "GET /profile/me", { headers: { authorization } });
      expect([answer.status, answer.body.id]).toEqual([200, user.id]);
    }
  });

  it.each(forUsers)(
    "is refused by $name when it is forged, expired or missing",
    async ({ path, description: { method } }) => {
      for (const [name, authorization] of Object.entries(await forgeries())) {
        const headers = authorization === undefined ? {} : { authorization };
        const { status, headers: answered, body } = await call(lotus, `${method} ${path}`, { headers });
        expect([name, status, body.code]).toEqual([name, 401, "unauthenticated"]);
        expect(answered.get("content-type")).toBe("application/problem+json");
        const error = /^Bearer \S+$/.test(authorization ?? "") ? ', error="invalid_token"' : "";
        expect([name, answered.get("www-authenticate")]).toEqual([name, `Bearer realm="lotus"${error}`]);
      }
    },
  );

  it("is refused once it has expired, also by a process that knows it", async () => {
    const token = await sign({ expires: "4s" });
    const me = () => call(lotus, "GET /profile/me", { token });
    expect((await me()).status).toBe(200);
    const answer = await eventually("the token expires", async () => {
      const seen = await me();
      return seen.status !== 200 && seen;
    });
    expect([answer.status, answer.body.detail]).toEqual([401, expect.stringContaining("has expired")]);
  });

  it.each([
    ["retired past its end", (kid: string, keys: FileKey[]) => keys.map((key) => (key.kid === kid ? ended(key) : key))],
    ["removed", (kid: string, keys: FileKey[]) => keys.filter((key) => key.kid !== kid)],
  ])("is refused when its key was %s, by running and new processes, cached or not", async (_, change) => {
    const file = lotus.manifests.functions.get("profile-me")?.JWKS_FILE ?? "";
    const secrets = dirname(dirname(file));
    const stolen = JSON.parse(await readFile(join(secrets, "signing-key/key.json"), "utf8"));
    const forge = async () => sign({}, await importJWK(stolen, "EdDSA"), { kid: stolen.kid });
    const me = (token: string) => call(lotus, "GET /profile/me", { token });
    const cached = await forge();
    await rotateKeys(secrets);
    expect((await me(cached)).status).toBe(200);
    const { keys } = JSON.parse(await readFile(file, "utf8"));
    await writeFile(file, JSON.stringify({ keys: change(stolen.kid, keys) }));
    await eventually("the cached token is refused", async () => (await me(cached)).status === 401);
    expect((await me(await forge())).status).toBe(401);
    await lotus.functions.get("profile-me")?.stop();
    expect([(await me(cached)).status, (await me(await forge())).status]).toEqual([401, 401]);
    expect(JSON.stringify((await call(lotus, "GET /profile/jwks")).body)).not.toContain(stolen.kid);
    signingKey = JSON.parse(await readFile(join(secrets, "signing-key/key.json"), "utf8"));
  });

  it("is refused at the end of its key by a process that has verified it before, without a change of the file", async () => {
    const file = lotus.manifests.functions.get("profile-me")?.JWKS_FILE ?? "";
    const before = await readFile(file, "utf8");
    const token = await sign({});
    const me = () => call(lotus, "GET /profile/me", { token });
    expect((await me()).status).toBe(200);
    const secondsLeft = 5;
    const retiredAt = Math.floor(Date.now() / 1000) - TOKEN_SECONDS - KEY_OVERLAP_SECONDS + secondsLeft;
    const keys = (JSON.parse(before).keys as FileKey[]).map((key) =>
      key.kid === signingKey.kid ? { ...key, retiredAt } : key,
    );
    await writeFile(file, JSON.stringify({ keys }));
    const answer = await eventually("the key ends", async () => {
      const seen = await me();
      return seen.status !== 200 && seen;
    });
    expect([answer.status, answer.body.detail]).toEqual([401, expect.stringContaining("has expired")]);
    expect(Date.now() / 1000).toBeGreaterThanOrEqual(retiredAt + TOKEN_SECONDS + KEY_OVERLAP_SECONDS);
    await writeFile(file, before);
    await eventually("the key is accepted again", async () => (await me()).status === 200);
  });

  it("is answered 500, not accepted, while the key file cannot be read", async () => {
    const file = lotus.manifests.functions.get("profile-me")?.JWKS_FILE ?? "";
    const token = await sign({});
    const me = async () => (await call(lotus, "GET /profile/me", { token })).status;
    expect(await me()).toBe(200);
    await rename(file, `${file}.away`);
    await eventually("the process notices", async () => (await me()) === 500);
    expect(await me()).toBe(500);
    await rename(`${file}.away`, file);
    expect(await me()).toBe(200);
  });

  it("whose user does not exist opens no account", async () => {
    const token = await sign({ subject: "00000000-0000-4000-8000-000000000000" });
    for (const [request, status, code] of [
      ["GET /profile/me", 401, "unauthenticated"],
      ["GET /billing/balance", 409, "account-not-open"],
      ["POST /billing/add-money?money=1", 409, "account-not-open"],
      ["POST /billing/withdraw-money?money=1", 409, "account-not-open"],
      ["POST /order/pay?idSubscription=1", 409, "account-not-open"],
    ] as const) {
      const answer = await call(lotus, request, { token });
      expect([request, answer.status, answer.body.code]).toEqual([request, status, code]);
    }
    const { rows } = await lotus.database.query("select from billing.accounts where id = $1", [
      "00000000-0000-4000-8000-000000000000",
    ]);
    expect(rows).toEqual([]);
  });
});
