/** The Secrets of a deployment: made once, in the cluster and nowhere else, and kept from then on. */
import { randomBytes } from "node:crypto";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ROLES } from "../database/migrate.ts";
import { type Database, POSTGRES } from "../kubernetes/backends.ts";
import { type KafkaCredentials, secretOf, securityOf } from "../kubernetes/kafka-security.ts";
import { get, type KubernetesObject, NAMESPACE, secretValue, toYaml } from "../kubernetes/kubectl.ts";
import { run } from "../kubernetes/shell.ts";
import { rotateKeys } from "./keys.ts";

/** 192 bits, in letters that a URL needs not escape. */
export function newPassword(): string {
  return randomBytes(24).toString("base64url");
}

/** Writes Secrets. Their values are never shown, and never part of a command line. */
export async function writeSecrets(values: ReadonlyMap<string, Readonly<Record<string, string>>>): Promise<void> {
  if (values.size === 0) return;
  const secrets = [...values].map(([name, stringData]): KubernetesObject => {
    const metadata = { name, namespace: NAMESPACE, labels: { "app.kubernetes.io/part-of": "lotus" } };
    return { apiVersion: "v1", kind: "Secret", type: "Opaque", metadata, stringData };
  });
  // Server-side: the other way would copy the values into an annotation.
  const options = ["--server-side", "--force-conflicts", "--field-manager=lotus", "--validate=strict"];
  await run("kubectl", ["apply", ...options, "-f", "-"], { input: toYaml(secrets) });
}

/** Where a service finds the database: the owner's URL with the role's name, and no password. */
function urlFor(role: string, adminUrl: string): string {
  const url = new URL(adminUrl);
  url.username = role;
  url.password = "";
  return url.href;
}

/**
 * A new pair of keys, and the public keys of before beside it.
 */
export async function newKeys(): Promise<{ publicKeys: string; signingKey: string }> {
  const folder = await mkdtemp(join(tmpdir(), "lotus-keys-"));
  try {
    for (const { secret, file } of [
      { secret: "public-keys", file: "jwks.json" },
      { secret: "signing-key", file: "key.json" },
    ]) {
      const present = secretValue(await get("secret", secret), file);
      if (present === undefined) continue;
      await mkdir(join(folder, secret), { mode: 0o700 });
      await writeFile(join(folder, secret, file), present, { mode: 0o600 });
    }
    await rotateKeys(folder);
    return {
      publicKeys: await readFile(join(folder, "public-keys/jwks.json"), "utf8"),
      signingKey: await readFile(join(folder, "signing-key/key.json"), "utf8"),
    };
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Makes the Secrets that are missing and corrects where the database is. Returns the names of those that were written. */
export async function ensureSecrets(database: Database, kafka: KafkaCredentials): Promise<string[]> {
  const missing = new Map<string, Record<string, string>>();
  const owner = await get("secret", "database-admin");
  let adminUrl = secretValue(owner, "url");
  if (database.kind === "cluster" && adminUrl === undefined) {
    const password = newPassword();
    adminUrl = `postgres://lotus:${password}@${POSTGRES}/lotus`;
    missing.set("database-admin", { url: adminUrl, password });
  } else if (database.kind !== "cluster" && adminUrl !== database.adminUrl) {
    adminUrl = database.adminUrl;
    missing.set("database-admin", { url: adminUrl, password: decodeURIComponent(new URL(adminUrl).password) });
  }
  for (const role of ROLES) {
    const name = `database-${role}`;
    const found = await get("secret", name);
    const url = urlFor(role, adminUrl ?? "");
    const password = secretValue(found, "password");
    if (password === undefined || secretValue(found, "url") !== url) {
      missing.set(name, { url, password: password ?? newPassword() });
    }
  }
  if ((await get("secret", "public-keys")) === undefined || (await get("secret", "signing-key")) === undefined) {
    const keys = await newKeys();
    missing.set("public-keys", { "jwks.json": keys.publicKeys });
    missing.set("signing-key", { "key.json": keys.signingKey });
  }
  if (securityOf(kafka) !== undefined) missing.set("kafka", secretOf(kafka));
  await writeSecrets(missing);
  return [...missing.keys()];
}
