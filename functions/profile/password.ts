/** Password hashes with scrypt (OWASP Password Storage Cheat Sheet): N = 2^14, r = 8, p = 5; 16 MiB each. */
import { randomBytes, scrypt, timingSafeEqual } from "node:crypto";
import { Problem } from "#kernel/problem";
import { RequestsInProgress } from "#kernel/requests-in-progress";

const COST = { N: 2 ** 14, r: 8, p: 5 };
const SALT_BYTES = 16;
const HASH_BYTES = 32;
/** Limits the passwords that one process hashes or keeps waiting. Each takes some 150 ms of a core. */
export const PASSWORDS_IN_PROGRESS_MAX = 200;

/** Limits the passwords of one address among them, so that one client leaves others their logins. */
export const PASSWORDS_OF_ADDRESS_MAX = 100;

const inProgress = new RequestsInProgress(PASSWORDS_IN_PROGRESS_MAX);

/**
 * @param address the client's; each address may use a part of the limit
 * @throws {Problem} when so many passwords wait that clients would give up before the answer: `too-many-requests` for passwords of
 *   this address, `unavailable` for those of all
 */
async function derive(password: string, address: string, salt: Buffer, { N, r, p } = COST): Promise<Buffer> {
  const end = inProgress.begin(address, PASSWORDS_OF_ADDRESS_MAX);
  if (end instanceof Problem) throw end;
  // NFKC: the same password typed on another keyboard or system is the same password (RFC 8265 §4.2).
  const text = password.normalize("NFKC");
  try {
    return await new Promise((resolve, reject) => {
      scrypt(text, salt, HASH_BYTES, { N, r, p, maxmem: 256 * N * r }, (error, hash) =>
        error ? reject(error) : resolve(hash),
      );
    });
  } finally {
    end();
  }
}

/**
 * Hashes a password with a new salt. The result names its parameters, so that they may grow.
 * @param address the client's; each address may use a part of the limit
 */
export async function hashPassword(password: string, address: string): Promise<string> {
  const salt = randomBytes(SALT_BYTES);
  const hash = await derive(password, address, salt);
  return ["scrypt", COST.N, COST.r, COST.p, salt.toString("base64url"), hash.toString("base64url")].join("$");
}

/** The hash for an unknown email: a comparison with it takes as long as any other. */
const NOBODY = ["scrypt", COST.N, COST.r, COST.p, "AAAAAAAAAAAAAAAAAAAAAA", "A".repeat(43)].join("$");

/**
 * Returns whether a password is the one that was hashed. Without a hash, as for an unknown email, the answer is false after
 * the same work.
 * @param address the client's; each address may use a part of the limit
 */
export async function passwordMatches(password: string, hashed: string | null, address: string): Promise<boolean> {
  const [, N, r, p, salt = "", hash = ""] = (hashed ?? NOBODY).split("$");
  const cost = { N: Number(N), r: Number(r), p: Number(p) };
  const derived = await derive(password, address, Buffer.from(salt, "base64url"), cost);
  return timingSafeEqual(derived, Buffer.from(hash, "base64url")) && hashed !== null;
}
