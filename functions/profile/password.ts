/** Password hashes with scrypt (OWASP Password Storage Cheat Sheet): N = 2^14, r = 8, p = 5; 16 MiB each. */
import { randomBytes, scrypt, timingSafeEqual } from "node:crypto";
import { Problem } from "#kernel/problem";

const COST = { N: 2 ** 14, r: 8, p: 5 };
const SALT_BYTES = 16;
const HASH_BYTES = 32;
/** Limits the passwords that one process hashes or keeps waiting. Each takes some 150 ms of a core. */
export const PASSWORDS_IN_PROGRESS_MAX = 200;

let inProgress = 0;

/** @throws {Problem} `unavailable`, when so many passwords wait that clients would give up before the answer */
function derive(password: string, salt: Buffer, { N, r, p } = COST): Promise<Buffer> {
  // NFKC: the same password typed on another keyboard or system is the same password (RFC 8265 §4.2).
  const text = password.normalize("NFKC");
  return new Promise((resolve, reject) => {
    if (inProgress >= PASSWORDS_IN_PROGRESS_MAX) {
      const detail = "Too many passwords are being checked. The request had no effect; try again in a moment.";
      return reject(new Problem("unavailable", detail, { headers: { "retry-after": "1" } }));
    }
    inProgress++;
    scrypt(text, salt, HASH_BYTES, { N, r, p, maxmem: 256 * N * r }, (error, hash) => {
      inProgress--;
      if (error) reject(error);
      else resolve(hash);
    });
  });
}

/** Hashes a password with a new salt. The result names its parameters, so that they may grow. */
export async function hashPassword(password: string): Promise<string> {
  const salt = randomBytes(SALT_BYTES);
  const hash = await derive(password, salt);
  return ["scrypt", COST.N, COST.r, COST.p, salt.toString("base64url"), hash.toString("base64url")].join("$");
}

/** The hash for an unknown email: a comparison with it takes as long as any other. */
const NOBODY = ["scrypt", COST.N, COST.r, COST.p, "AAAAAAAAAAAAAAAAAAAAAA", "A".repeat(43)].join("$");

/**
 * Returns whether a password is the one that was hashed. Without a hash, as for an unknown email, the answer is false after
 * the same work.
 */
export async function passwordMatches(password: string, hashed: string | null): Promise<boolean> {
  const [, N, r, p, salt = "", hash = ""] = (hashed ?? NOBODY).split("$");
  const derived = await derive(password, Buffer.from(salt, "base64url"), { N: Number(N), r: Number(r), p: Number(p) });
  return timingSafeEqual(derived, Buffer.from(hash, "base64url")) && hashed !== null;
}
