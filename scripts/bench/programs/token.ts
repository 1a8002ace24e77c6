/** Reads the user of a request from its token. A cache keeps verified tokens, as in Lotus. */
import { createPublicKey, verify } from "node:crypto";
import { readFileSync } from "node:fs";

export interface User {
  readonly sub: string;
  readonly email: string;
}

const { keys } = JSON.parse(readFileSync(process.env.JWKS_FILE ?? "", "utf8"));
const publicKey = createPublicKey({ key: keys[0], format: "jwk" });
const verified = new Map<string, User>();

/** Returns the user of an `Authorization` header. Throws for a token with a wrong signature. */
export function userOf(authorization = ""): User {
  const token = authorization.slice("Bearer ".length);
  const known = verified.get(token);
  if (known !== undefined) return known;
  const [head, body = "", signature = ""] = token.split(".");
  if (!verify(null, Buffer.from(`${head}.${body}`), publicKey, Buffer.from(signature, "base64url")))
    throw new Error("The signature of the token is wrong.");
  const user = JSON.parse(Buffer.from(body, "base64url").toString()) as User;
  verified.set(token, user);
  return user;
}
