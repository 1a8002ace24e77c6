/** Authenticates callers: EdDSA tokens (RFC 7519, RFC 8037), verified with the public keys of a JWK Set (RFC 7517). */
import { createPublicKey, type KeyObject } from "node:crypto";
import { statSync } from "node:fs";
import * as v from "valibot";
import {
  KEY_CHECK_MILLISECONDS,
  KEY_OVERLAP_SECONDS,
  KEY_READ_MILLISECONDS_MAX,
  TOKEN_AUDIENCE,
  TOKEN_CACHE_ENTRIES_MAX,
  TOKEN_CLOCK_SKEW_SECONDS,
  TOKEN_ISSUER,
  TOKEN_LENGTH_MAX,
  TOKEN_SECONDS,
} from "./limits.ts";
import { CHALLENGE, Problem } from "./problem.ts";
import { readSettingFile, required } from "./settings.ts";

/** The user that a token was issued to. */
export interface User {
  readonly id: string;
  readonly email: string;
}

/** A public key that verifies tokens. The schema drops every other member, so a private member never leaves a process. */
export const PublicKey = v.object({
  kty: v.literal("OKP"),
  crv: v.literal("Ed25519"),
  x: v.string(),
  kid: v.string(),
  alg: v.literal("EdDSA"),
  use: v.literal("sig"),
});
/** Is a public key as a JWK (RFC 8037 §2). */
export type PublicKey = v.InferOutput<typeof PublicKey>;

/** `retiredAt`: the time in seconds since 1970 at which the key was replaced as the signing key. */
const KeyFile = v.object({ keys: v.array(v.object({ ...PublicKey.entries, retiredAt: v.optional(v.number()) })) });

/**
 * Returns the end of a retired key: the time in seconds since 1970 after which its tokens are refused.
 * A retired key may sign for KEY_OVERLAP_SECONDS, until its successor has reached every pod; its last token is then valid for TOKEN_SECONDS.
 */
export function keyEndsAt(retiredAt: number | undefined): number {
  return retiredAt === undefined ? Number.POSITIVE_INFINITY : retiredAt + KEY_OVERLAP_SECONDS + TOKEN_SECONDS;
}

/** @throws when the text is not a JWK Set of Ed25519 keys */
function publicKeysIn(text: string): { key: PublicKey; endsAt: number }[] {
  const { keys } = v.parse(KeyFile, JSON.parse(text));
  return keys
    .map(({ retiredAt, ...key }) => ({ key, endsAt: keyEndsAt(retiredAt) }))
    .filter(({ endsAt }) => endsAt > Date.now() / 1000);
}

/**
 * Returns the keys of JWKS_FILE that verify tokens now. A retired key is left out after its end.
 * @throws {SettingsError} when the file cannot be read
 */
export function readPublicKeys(): PublicKey[] {
  return publicKeysIn(readSettingFile("JWKS_FILE")).map(({ key }) => key);
}

interface Verified {
  readonly user: User;
  /** The earlier of the token's and its key's end. */
  readonly expiresAtMilliseconds: number;
}

/** The tokens that this process has verified. A signature check costs more than the rest of a small request. */
const verifiedTokens = new Map<string, Verified>();
let keys = new Map<string, { key: KeyObject; endsAt: number }>();
let keyText = "";
let fileVersion = "";
let checkedAt = Number.NEGATIVE_INFINITY;
let readAt = Number.NEGATIVE_INFINITY;

function replaceKeys(text: string): void {
  keyText = text;
  verifiedTokens.clear();
  keys = new Map();
  if (text === "") return;
  for (const { key, endsAt } of publicKeysIn(text))
    keys.set(key.kid, { key: createPublicKey({ key, format: "jwk" }), endsAt });
}

/** Reads the key file when it has changed or was read a minute ago. Tokens of former keys are forgotten. */
function refreshKeys(): void {
  const now = performance.now();
  try {
    // A mounted secret is a symbolic link: statSync follows it to the new file.
    const { ino, size, mtimeMs } = statSync(required("JWKS_FILE"));
    const found = `${ino} ${size} ${mtimeMs}`;
    if (found !== fileVersion || now - readAt >= KEY_READ_MILLISECONDS_MAX) {
      const text = readSettingFile("JWKS_FILE");
      if (text !== keyText) replaceKeys(text);
      fileVersion = found;
      readAt = now;
    }
    checkedAt = now;
  } catch (error) {
    // Without the file, no key is known to be valid. The next request tries again.
    replaceKeys("");
    fileVersion = "";
    checkedAt = Number.NEGATIVE_INFINITY;
    throw error;
  }
}

/** The refusal of a token that was sent (RFC 6750 §3.1). */
function invalidToken(detail: string): Problem {
  return new Problem("unauthenticated", detail, {
    headers: { "www-authenticate": `${CHALLENGE}, error="invalid_token"` },
  });
}

async function verify(token: string): Promise<Verified> {
  const { errors, jwtVerify } = await import("jose");
  let used = keys;
  let keyEnd = 0;
  const { payload } = await jwtVerify(
    token,
    ({ kid }) => {
      // A rotation may have published this key less than a second ago.
      if (!keys.has(kid ?? "")) refreshKeys();
      const found = keys.get(kid ?? "");
      if (found === undefined) throw new errors.JWKSNoMatchingKey();
      used = keys;
      keyEnd = found.endsAt;
      return found.key;
    },
    {
      algorithms: ["EdDSA"],
      issuer: TOKEN_ISSUER,
      audience: TOKEN_AUDIENCE,
      requiredClaims: ["exp", "iat", "sub", "email"],
      maxTokenAge: TOKEN_SECONDS,
      clockTolerance: TOKEN_CLOCK_SKEW_SECONDS,
    },
  );
  const { sub, email, exp = 0, iat = 0 } = payload;
  // The holder of a stolen key chooses `exp`; login never issues a token for longer.
  if (exp - iat > TOKEN_SECONDS) throw new errors.JWTInvalid("exp");
  // An array with one text also matches the regular expression.
  if (typeof sub !== "string" || !v.UUID_REGEX.test(sub) || typeof email !== "string")
    throw new errors.JWTInvalid("claims");
  const verified = { user: { id: sub, email }, expiresAtMilliseconds: Math.min(exp, keyEnd) * 1000 };
  // The keys may have been replaced during the check: only a token of the present ones is remembered.
  if (used === keys) remember(token, verified);
  return verified;
}

function remember(token: string, verified: Verified): void {
  if (verifiedTokens.size >= TOKEN_CACHE_ENTRIES_MAX) {
    const oldest = verifiedTokens.keys().next();
    if (!oldest.done) verifiedTokens.delete(oldest.value);
  }
  verifiedTokens.set(token, verified);
}

/**
 * Returns the user of an Authorization header (RFC 6750).
 * @throws {Problem} `unauthenticated`, when the token is missing, has expired, or has a key that is not accepted
 * @throws {SettingsError} when the key file cannot be read
 */
export async function authenticate(authorization: string | undefined): Promise<User> {
  if (authorization === undefined)
    throw new Problem("unauthenticated", "Send the token of POST /profile/login as Authorization: Bearer <token>.");
  const token = /^Bearer +([\w.~+/-]+=*)$/i.exec(authorization)?.[1];
  if (token === undefined) throw new Problem("unauthenticated", "The Authorization header must read: Bearer <token>.");
  if (token.length > TOKEN_LENGTH_MAX) throw invalidToken(`The token is longer than ${TOKEN_LENGTH_MAX} characters.`);
  if (performance.now() - checkedAt >= KEY_CHECK_MILLISECONDS) refreshKeys();
  let verified = verifiedTokens.get(token);
  if (verified === undefined) {
    try {
      verified = await verify(token);
    } catch (error) {
      // Errors of jose are about the token. Any other error is about the key file, which the caller cannot repair.
      if (!String((error as { code?: unknown }).code).startsWith("ERR_J")) throw error;
      throw invalidToken("The token is not valid or has expired. POST /profile/login issues a new one.");
    }
  }
  if (verified.expiresAtMilliseconds <= Date.now()) {
    verifiedTokens.delete(token);
    throw invalidToken("The token has expired. POST /profile/login issues a new one.");
  }
  return verified.user;
}
