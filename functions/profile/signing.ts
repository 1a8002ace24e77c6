/** Signs tokens. Only login receives the private key. */
import { importJWK, type JWK, SignJWT } from "jose";
import { TOKEN_AUDIENCE, TOKEN_ISSUER, TOKEN_SECONDS } from "#kernel/limits";
import { readSettingFile } from "#kernel/settings";
import type { User } from "#kernel/token";

/** Returns a token for a user, valid for TOKEN_SECONDS. It reads the key each time, so a rotation needs no restart. */
export async function signToken(user: User): Promise<string> {
  const jwk = JSON.parse(readSettingFile("SIGNING_KEY_FILE")) as JWK & { kid: string };
  return new SignJWT({ email: user.email })
    .setProtectedHeader({ alg: "EdDSA", kid: jwk.kid, typ: "JWT" })
    .setSubject(user.id)
    .setIssuer(TOKEN_ISSUER)
    .setAudience(TOKEN_AUDIENCE)
    .setIssuedAt()
    .setExpirationTime(`${TOKEN_SECONDS}s`)
    .sign(await importJWK(jwk, "EdDSA"));
}
