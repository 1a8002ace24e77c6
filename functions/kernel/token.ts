/** Who is calling: an EdDSA token (RFC 7519, RFC 8037), checked against the public keys of a JWK Set (RFC 7517). */
import type { JSONWebKeySet, JWTVerifyGetKey } from "jose";
import * as v from "valibot";
import { CHALLENGE, Problem } from "./problem.ts";
import {
  KEY_RELOAD_MILLISECONDS_MIN,
  readSettingFile,
  TOKEN_AUDIENCE,
  TOKEN_CACHE_ENTRIES_MAX,
  TOKEN_ISSUER,
  TOKEN_LENGTH_MAX,
} from "./settings.ts";

/** The user that a token speaks for. */
export interface User {
  readonly id: string;
  readonly email: string;
}

interface Known {
  readonly user: User;
  readonly expiresAtMilliseconds: number;
}

/** Checking a signature costs more than the rest of a small request; a token is checked once a process. */
const knownTokens = new Map<string, Known>();
let keys: JWTVerifyGetKey | undefined;
/** The first reading does not count: a key may be made right after it. */
let keysRenewedAt = 0;

async function readKeys(): Promise<JWTVerifyGetKey> {
  const { createLocalJWKSet } = await import("jose");
  keys = createLocalJWKSet(JSON.parse(readSettingFile("JWKS_FILE")) as JSONWebKeySet);
  return keys;
}

/** A token was sent, and is not to be believed (RFC 6750 §3.1). */
function invalidToken(detail: string): Problem {
  return new Problem("unauthenticated", detail, {
    headers: { "www-authenticate": `${CHALLENGE}, error="invalid_token"` },
  });
}

async function verify(token: string): Promise<Known> {
  const { errors, jwtVerify } = await import("jose");
  const check = async (lookup: JWTVerifyGetKey) =>
    jwtVerify(token, lookup, {
      algorithms: ["EdDSA"],
      issuer: TOKEN_ISSUER,
      audience: TOKEN_AUDIENCE,
      requiredClaims: ["exp", "sub", "email"],
    });
  const checked = await check(keys ?? (await readKeys())).catch(async (error: unknown) => {
    // A key made by rotation after this process began: the mounted file has it by now.
    const unknownKey = error instanceof errors.JWKSNoMatchingKey;
    if (!unknownKey || Date.now() - keysRenewedAt < KEY_RELOAD_MILLISECONDS_MIN) throw error;
    keysRenewedAt = Date.now();
    return check(await readKeys());
  });
  const { sub, email, exp } = checked.payload;
  if (typeof sub !== "string" || !v.UUID_REGEX.test(sub) || typeof email !== "string" || exp === undefined)
    throw new errors.JWTInvalid("claims");
  return { user: { id: sub, email }, expiresAtMilliseconds: exp * 1000 };
}

function remember(token: string, known: Known): void {
  if (knownTokens.size >= TOKEN_CACHE_ENTRIES_MAX) {
    const oldest = knownTokens.keys().next();
    if (!oldest.done) knownTokens.delete(oldest.value);
  }
  knownTokens.set(token, known);
}

/**
 * The user that an Authorization header speaks for (RFC 6750).
 * @throws {Problem} `unauthenticated`, when there is no token, or it is not one of ours, or it has expired
 */
export async function authenticate(authorization: string | undefined): Promise<User> {
  if (authorization === undefined)
    throw new Problem("unauthenticated", "Send the token of POST /profile/login as Authorization: Bearer <token>.");
  const token = /^Bearer +([\w.~+/-]+=*)$/i.exec(authorization)?.[1];
  if (token === undefined) throw new Problem("unauthenticated", "The Authorization header must read: Bearer <token>.");
  if (token.length > TOKEN_LENGTH_MAX) throw invalidToken(`The token is longer than ${TOKEN_LENGTH_MAX} characters.`);
  let known = knownTokens.get(token);
  if (known === undefined) {
    try {
      known = await verify(token);
    } catch (error) {
      // Jose's own errors are about the token. A key file that cannot be read is ours to mend, not the caller's.
      if (!String((error as { code?: unknown }).code).startsWith("ERR_J")) throw error;
      throw invalidToken("The token is not valid, or has expired. POST /profile/login gives a new one.");
    }
    remember(token, known);
  }
  if (known.expiresAtMilliseconds <= Date.now()) {
    knownTokens.delete(token);
    throw invalidToken("The token has expired. POST /profile/login gives a new one.");
  }
  return known.user;
}
