/** The key pair that signs tokens, and the public keys that verify them. */
import { randomUUID } from "node:crypto";
import { mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { calculateJwkThumbprint, exportJWK, generateKeyPair, type JWK } from "jose";
import { keyEndsAt } from "#kernel/token";
import { UsageError } from "../cli/errors.ts";
import { withLock } from "./lock.ts";

/** A public key in the file. `retiredAt`: the time in seconds since 1970 at which another key replaced it. */
interface PublicKey extends JWK {
  kid: string;
  retiredAt?: number;
}

interface PrivateKey extends JWK {
  kid: string;
}

/** The two files of an installation: the public keys, and the private key that signs. */
export interface Keys {
  readonly publicKeys: readonly PublicKey[];
  readonly signingKey: PrivateKey | undefined;
}

/** Creates a pair. Its id is the thumbprint of RFC 7638. */
async function newPair(): Promise<{ publicKey: PublicKey; privateKey: PrivateKey }> {
  const pair = await generateKeyPair("EdDSA", { extractable: true });
  const jwk = await exportJWK(pair.publicKey);
  const kid = await calculateJwkThumbprint(jwk);
  // A command line reads such an id as an option, so that `keys revoke` could not name the key. One id in 64 begins with it.
  if (kid.startsWith("-")) return newPair();
  return {
    publicKey: { ...jwk, kid, alg: "EdDSA", use: "sig" },
    privateKey: { ...(await exportJWK(pair.privateKey)), kid, alg: "EdDSA" },
  };
}

/** First step of a rotation: returns the set with a new public key, and the private key that may sign once every function has the set. */
export async function addKey({ publicKeys }: Keys): Promise<Keys & { signingKey: PrivateKey }> {
  const { publicKey, privateKey } = await newPair();
  return { publicKeys: [publicKey, ...publicKeys], signingKey: privateKey };
}

/** Last step of a rotation: retires every key but the one that signs, and drops those whose last token has expired. */
export function retireOthers({ publicKeys, signingKey }: Keys): Keys {
  const now = Math.floor(Date.now() / 1000);
  const kept = publicKeys.map(
    ({ retiredAt = now, ...key }): PublicKey => (key.kid === signingKey?.kid ? key : { ...key, retiredAt }),
  );
  return { publicKeys: kept.filter(({ retiredAt }) => keyEndsAt(retiredAt) > now), signingKey };
}

/**
 * Returns the keys without a revoked one. When that one signs, a new key signs in its place.
 * @throws {UsageError} when no key has this id
 */
export async function withoutKey(keys: Keys, kid: string): Promise<Keys> {
  const publicKeys = keys.publicKeys.filter((key) => key.kid !== kid);
  const signs = keys.signingKey?.kid === kid;
  if (publicKeys.length === keys.publicKeys.length && !signs) {
    const known = keys.publicKeys.map((key) => key.kid).join(", ");
    throw new UsageError(
      `No key has the id ${kid}. ${known === "" ? "The key file is empty." : `The keys are: ${known}.`}`,
    );
  }
  return signs ? addKey({ ...keys, publicKeys }) : { ...keys, publicKeys };
}

/** The text of the file of public keys. */
export function publicKeysText({ publicKeys }: Keys): string {
  return `${JSON.stringify({ keys: publicKeys }, null, 2)}\n`;
}

/** The text of the file of the signing key. */
export function signingKeyText({ signingKey }: Keys): string {
  return `${JSON.stringify(signingKey, null, 2)}\n`;
}

/** Reads both files from their texts; undefined stands for a file that does not exist. */
export function parseKeys(publicKeys: string | undefined, signingKey: string | undefined): Keys {
  return {
    publicKeys: publicKeys === undefined ? [] : (JSON.parse(publicKeys) as { keys: PublicKey[] }).keys,
    signingKey: signingKey === undefined ? undefined : (JSON.parse(signingKey) as PrivateKey),
  };
}

/** Whether functions accept what login signs. */
function isConsistent({ publicKeys, signingKey }: Keys): boolean {
  return publicKeys.some(({ kid, retiredAt }) => kid === signingKey?.kid && retiredAt === undefined);
}

const publicKeysFile = (folder: string) => join(folder, "public-keys", "jwks.json");
const signingKeyFile = (folder: string) => join(folder, "signing-key", "key.json");

/** A reader sees the former file or the new one, never a part. */
async function write(file: string, text: string): Promise<void> {
  await mkdir(dirname(file), { recursive: true, mode: 0o700 });
  const written = `${file}.${randomUUID()}`;
  try {
    await writeFile(written, text, { mode: 0o600, flag: "wx" });
    await rename(written, file);
  } finally {
    await rm(written, { force: true });
  }
}

function readIfThere(file: string): Promise<string | undefined> {
  return readFile(file, "utf8").catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return undefined;
    throw error;
  });
}

/** Returns the keys of a folder; empty ones when it has none. */
export async function readKeys(folder: string): Promise<Keys> {
  return parseKeys(await readIfThere(publicKeysFile(folder)), await readIfThere(signingKeyFile(folder)));
}

/** Changes the keys of a folder while no other process does. */
async function changeKeys(folder: string, change: (keys: Keys) => Promise<Keys | undefined>): Promise<Keys> {
  await mkdir(folder, { recursive: true, mode: 0o700 });
  return withLock(join(folder, "keys.lock"), async () => {
    const present = await readKeys(folder);
    const changed = await change(present);
    if (changed === undefined) return present;
    // The public half first: a token must not be signed by a key that functions cannot know.
    await write(publicKeysFile(folder), publicKeysText(changed));
    await write(signingKeyFile(folder), signingKeyText(changed));
    // Last: an interruption before this line leaves the former key valid, and the next rotation retires it.
    const retired = retireOthers(changed);
    await write(publicKeysFile(folder), publicKeysText(retired));
    return retired;
  });
}

/**
 * Creates a new pair that signs from now on. The former key is retired: its tokens stay valid until they expire.
 * @param folder receives signing-key/key.json and public-keys/jwks.json
 * @returns the id (RFC 7638 thumbprint) of the new key
 */
export async function rotateKeys(folder: string): Promise<string> {
  const { signingKey } = await changeKeys(folder, addKey);
  return signingKey?.kid ?? "";
}

/** Creates the first pair. Also replaces a signing key that the public keys do not contain: its tokens would all be refused. */
export async function ensureKeys(folder: string): Promise<void> {
  await changeKeys(folder, async (keys) => (isConsistent(keys) ? undefined : addKey(keys)));
}

/**
 * Removes a key: functions refuse its tokens within a second. When the key signs, a new one signs in its place.
 * @throws {UsageError} when no key has this id
 */
export async function revokeKey(folder: string, kid: string): Promise<void> {
  await changeKeys(folder, (keys) => withoutKey(keys, kid));
}
