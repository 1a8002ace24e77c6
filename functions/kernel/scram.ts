/** The client's half of SCRAM-SHA-256 (RFC 5802, RFC 7677) with Node's own PBKDF2. */
import { createHash, createHmac, pbkdf2, pbkdf2Sync } from "node:crypto";
import { promisify } from "node:util";
import { SCRAM_ITERATIONS_MAX } from "./limits.ts";

const KEY_BYTES = 32;
/** So few iterations take less time than the start of a thread. Lotus gives its roles verifiers with one iteration. */
const ITERATIONS_AT_ONCE_MAX = 16;
/** The base64 form of "n,,": this client binds no channel. */
const NO_CHANNEL_BINDING = "biws";

const hmac = (key: Buffer, text: string) => createHmac("sha256", key).update(text).digest();

/** The client's final message and the signature that the server must prove. */
export interface ScramProof {
  readonly response: string;
  readonly serverSignature: string;
}

/**
 * Computes the proof of a password. The driver's own code derives the key in WebCrypto calls, one an iteration: 190–640 ms.
 * @param serverFirst the server's first message: nonce, salt and iterations
 * @throws {Error} a sentence, when the server's message breaks the protocol or asks for more than SCRAM_ITERATIONS_MAX
 */
export async function scramProof(clientNonce: string, password: string, serverFirst: string): Promise<ScramProof> {
  const {
    nonce = "",
    salt = "",
    count = "",
  } = /^r=(?<nonce>[^,]+),s=(?<salt>[A-Za-z0-9+/]+={0,2}),i=(?<count>[1-9]\d*)(?:,|$)/.exec(serverFirst)?.groups ?? {};
  if (!nonce.startsWith(clientNonce) || nonce.length === clientNonce.length)
    throw new Error("The database broke the SCRAM protocol: its first message does not continue the client's nonce.");
  const iterations = Number(count);
  if (iterations > SCRAM_ITERATIONS_MAX)
    throw new Error(`The database asks for ${count} SCRAM iterations; at most ${SCRAM_ITERATIONS_MAX} are accepted.`);
  const derive = iterations > ITERATIONS_AT_ONCE_MAX ? promisify(pbkdf2) : pbkdf2Sync;
  const salted = await derive(password.normalize("NFKC"), Buffer.from(salt, "base64"), iterations, KEY_BYTES, "sha256");
  const clientKey = hmac(salted, "Client Key");
  const withoutProof = `c=${NO_CHANNEL_BINDING},r=${nonce}`;
  const message = `n=*,r=${clientNonce},${serverFirst},${withoutProof}`;
  const signature = hmac(createHash("sha256").update(clientKey).digest(), message);
  const proof = clientKey.map((byte, index) => byte ^ (signature[index] ?? 0));
  return {
    response: `${withoutProof},p=${Buffer.from(proof).toString("base64")}`,
    serverSignature: hmac(hmac(salted, "Server Key"), message).toString("base64"),
  };
}
