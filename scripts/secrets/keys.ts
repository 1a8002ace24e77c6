/**
 * The key pair that signs tokens, and the public keys that check them.
 *   npm run keys               makes a first pair where there is none, and lists the keys
 *   npm run keys rotate        signs with a new one from now on; the old one is accepted until its tokens have expired
 */
import { existsSync } from "node:fs";
import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { parseArgs } from "node:util";
import { calculateJwkThumbprint, exportJWK, generateKeyPair, type JWK } from "jose";
import { TOKEN_SECONDS } from "#kernel/settings";
import { runCommand, UsageError } from "../cli/command.ts";
import { ROOT } from "../project/functions.ts";

/** A public key as it lies in the file. `retiredAt` is ours: since when, in seconds, it signs no more. */
interface PublicKey extends JWK {
  kid: string;
  retiredAt?: number;
}

const signingKeyFile = (folder: string) => join(folder, "signing-key", "key.json");
const publicKeysFile = (folder: string) => join(folder, "public-keys", "jwks.json");

/** Readers never see half a file: it is written beside, then renamed. */
async function write(file: string, content: object): Promise<void> {
  await mkdir(dirname(file), { recursive: true, mode: 0o700 });
  await writeFile(`${file}.new`, `${JSON.stringify(content, null, 2)}\n`, { mode: 0o600 });
  await rename(`${file}.new`, file);
}

async function readPublicKeys(folder: string): Promise<PublicKey[]> {
  if (!existsSync(publicKeysFile(folder))) return [];
  return (JSON.parse(await readFile(publicKeysFile(folder), "utf8")) as { keys: PublicKey[] }).keys;
}

/** The key that signs at present; undefined when there is none yet. */
async function readSigningKeyId(folder: string): Promise<string | undefined> {
  if (!existsSync(signingKeyFile(folder))) return undefined;
  return (JSON.parse(await readFile(signingKeyFile(folder), "utf8")) as { kid: string }).kid;
}

/** A retired key may go on signing for a while, until the new one has reached every pod. */
export const OVERLAP_SECONDS = 600;

/**
 * Makes a new pair, and signs with it from now on. A key that was retired longer ago than a token lives is dropped; the one that
 * has signed until now is not, also when an earlier rotation retired it and was interrupted before its successor signed.
 * @param folder gets signing-key/key.json and public-keys/jwks.json
 * @returns the id (RFC 7638 thumbprint) of the new key
 */
export async function rotateKeys(folder: string): Promise<string> {
  const { privateKey, publicKey } = await generateKeyPair("EdDSA", { extractable: true });
  const jwk = await exportJWK(publicKey);
  const kid = await calculateJwkThumbprint(jwk);
  const now = Math.floor(Date.now() / 1000);
  const signing = await readSigningKeyId(folder);
  const kept = (await readPublicKeys(folder))
    .map((key) => ({ ...key, retiredAt: key.kid === signing ? now : (key.retiredAt ?? now) }))
    .filter(({ retiredAt }) => retiredAt + TOKEN_SECONDS + OVERLAP_SECONDS > now);
  // The public half first: a token must never be signed by a key that nobody can know yet.
  await write(publicKeysFile(folder), { keys: [{ ...jwk, kid, alg: "EdDSA", use: "sig" }, ...kept] });
  await write(signingKeyFile(folder), { ...(await exportJWK(privateKey)), kid, alg: "EdDSA" });
  return kid;
}

/** Makes the first pair where there is none. */
export async function ensureKeys(folder: string): Promise<void> {
  if (!existsSync(signingKeyFile(folder)) || !existsSync(publicKeysFile(folder))) await rotateKeys(folder);
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { folder: { type: "string", default: join(ROOT, ".lotus/secrets") } },
  });
  const [command, ...rest] = positionals;
  if (rest.length > 0 || (command !== undefined && command !== "rotate")) {
    throw new UsageError(
      `"${positionals.join(" ")}" is not a command here. Say: npm run keys, or: npm run keys rotate.`,
    );
  }
  if (command === "rotate") await rotateKeys(values.folder);
  else await ensureKeys(values.folder);
  for (const { kid, retiredAt } of await readPublicKeys(values.folder)) {
    const until =
      retiredAt === undefined
        ? "signs"
        : `accepted until ${new Date((retiredAt + TOKEN_SECONDS + OVERLAP_SECONDS) * 1000).toISOString()}`;
    console.log(`${kid}  ${until}`);
  }
}

if (process.argv[1] === import.meta.filename) runCommand(main);
