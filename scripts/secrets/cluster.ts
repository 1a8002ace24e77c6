/** The Secrets of a deployment. Lotus makes them once, in the cluster, and keeps them. */
import { randomBytes } from "node:crypto";
import { Refusal } from "../cli/errors.ts";
import { roleUrl } from "../database/roles.ts";
import { SERVICES } from "../database/sql.ts";
import { clusterPostgres, type Database, withoutPassword } from "../kubernetes/backends.ts";
import type { Environment } from "../kubernetes/environment.ts";
import { type KafkaCredentials, secretOf, securityOf } from "../kubernetes/kafka-security.ts";
import { get, type KubernetesObject, secretValue, toYaml } from "../kubernetes/kubectl.ts";
import { run } from "../process/run.ts";
import { addKey, type Keys, parseKeys, publicKeysText, retireOthers, signingKeyText } from "./keys.ts";

/** 192 bits, in letters that a URL needs not escape. */
export function newPassword(): string {
  return randomBytes(24).toString("base64url");
}

/** Attempts to change the public keys while others change them. */
const KEY_CHANGES_MAX = 5;

/**
 * Writes Secrets. Their values are never printed and never part of a command line.
 * @param within the namespace
 * @param version makes Kubernetes refuse the change of a Secret that has another version
 */
export async function writeSecrets(
  values: ReadonlyMap<string, Readonly<Record<string, string>>>,
  within: string,
  version?: string,
): Promise<void> {
  if (values.size === 0) return;
  const secrets = [...values].map(([name, stringData]): KubernetesObject => {
    const metadata = {
      name,
      namespace: within,
      labels: { "app.kubernetes.io/part-of": "lotus" },
      ...(version !== undefined && { resourceVersion: version }),
    };
    return { apiVersion: "v1", kind: "Secret", type: "Opaque", metadata, stringData };
  });
  // Server-side apply: client-side apply would copy the values into an annotation.
  const options = ["--server-side", "--force-conflicts", "--field-manager=lotus", "--validate=strict"];
  await run("kubectl", ["apply", ...options, "-f", "-"], { input: toYaml(secrets) });
}

/** Reads the Secrets of the keys in a namespace. */
export async function readKeys(within: string): Promise<{ keys: Keys; version: string | undefined }> {
  // In this order: a version older than the signing key is refused when it is written.
  const publicKeys = await get("secret", "public-keys", within);
  const signingKey = secretValue(await get("secret", "signing-key", within), "key.json");
  return {
    keys: parseKeys(secretValue(publicKeys, "jwks.json"), signingKey),
    version: publicKeys?.metadata.resourceVersion,
  };
}

/**
 * Changes the public keys of a namespace. Kubernetes refuses the change when another one came between reading and writing; then the change is repeated.
 * @returns the keys after the change
 */
export async function changePublicKeys(within: string, change: (keys: Keys) => Promise<Keys> | Keys): Promise<Keys> {
  for (let attempt = 1; ; attempt++) {
    const { keys, version } = await readKeys(within);
    const changed = await change(keys);
    try {
      await writeSecrets(new Map([["public-keys", { "jwks.json": publicKeysText(changed) }]]), within, version);
      return changed;
    } catch (error) {
      if (attempt === KEY_CHANGES_MAX || !/conflict|the object has been modified/i.test(String(error))) throw error;
    }
  }
}

/** The parts of a database that its URL does not contain. */
export interface DatabaseExtras {
  /** The URL of the pooler that functions use, as roleUrl reads it. */
  readonly pooler?: string | undefined;
  /** PEM text of the authority that signed the database's certificate. Undefined: the one in the cluster. */
  readonly authority?: string | undefined;
  /** The owner's password. Undefined: the Secret `database-admin` contains it. */
  readonly password?: string | undefined;
}

/** Returns the owner's URL with the given password, or with the one of the Secret when host and user are the same. */
function withPassword(url: string, password: string | undefined, former: string | undefined): string {
  const complete = new URL(url);
  const before = former === undefined ? undefined : new URL(former);
  const isSameUser = before?.host === complete.host && before.username === complete.username;
  if (password !== undefined && password !== "") complete.password = encodeURIComponent(password);
  else if (isSameUser && before !== undefined) complete.password = before.password;
  else
    throw new Refusal(
      `The password of the database's owner is missing. Put it into the variable DATABASE_ADMIN_PASSWORD: it is for ${url}.`,
    );
  return complete.href;
}

/** Compares two URLs. The parameter `sslrootcert` names a file of the pods, and not another database. */
function isSameDatabase(one: string, other: string): boolean {
  const [a, b] = [one, other].map((text) => {
    const url = new URL(withoutPassword(text));
    url.searchParams.delete("sslrootcert");
    return url.href;
  });
  return a === b;
}

/**
 * Makes the missing Secrets and corrects the address of the database. Returns the names of the written Secrets.
 * @throws {Refusal} before it writes a Secret, when the environment needs an authority and the owner's Secret would not contain one
 */
export async function ensureSecrets(
  database: Database,
  kafka: KafkaCredentials,
  environment: Environment,
  { pooler, authority, password: given }: DatabaseExtras = {},
): Promise<string[]> {
  const { namespace: within } = environment;
  const missing = new Map<string, Record<string, string>>();
  const owner = await get("secret", "database-admin", within);
  let adminUrl = secretValue(owner, "url");
  if (database.kind === "cluster" && adminUrl === undefined) {
    const password = newPassword();
    adminUrl = `postgres://lotus:${password}@${clusterPostgres(environment)}/lotus`;
    missing.set("database-admin", { url: adminUrl, password });
  } else if (
    database.kind !== "cluster" &&
    (given || adminUrl === undefined || withoutPassword(adminUrl) !== database.url)
  ) {
    const former = adminUrl;
    adminUrl = withPassword(database.url, given, former);
    const password = decodeURIComponent(new URL(adminUrl).password);
    const isSame = former !== undefined && isSameDatabase(former, database.url);
    // The only copy of the former owner's password would be lost.
    if (former !== undefined && !isSame)
      missing.set(`database-admin-${Date.now()}`, { url: former, password: secretValue(owner, "password") ?? "" });
    const kept = authority ?? (isSame ? secretValue(owner, "ca.crt") : undefined);
    if (former !== adminUrl || kept !== secretValue(owner, "ca.crt"))
      missing.set("database-admin", { url: adminUrl, password, ...(kept !== undefined && { "ca.crt": kept }) });
  } else if (authority !== undefined && adminUrl !== undefined && secretValue(owner, "ca.crt") !== authority) {
    const password = decodeURIComponent(new URL(adminUrl).password);
    missing.set("database-admin", { url: adminUrl, password, "ca.crt": authority });
  }
  const isSigned = environment.database.mode !== "cluster" && environment.database.authority;
  const ownerAuthority = missing.get("database-admin") ?? { "ca.crt": secretValue(owner, "ca.crt") };
  if (isSigned && ownerAuthority["ca.crt"] === undefined)
    throw new Refusal("The Secret database-admin has no ca.crt. Give --database-authority FILE once.");
  // The superuser of the cluster's own Postgres. Only that Postgres mounts this Secret.
  if (database.kind === "cluster" && (await get("secret", "database-superuser", within)) === undefined)
    missing.set("database-superuser", { password: newPassword() });
  const known = missing.get("database-admin")?.["ca.crt"] ?? authority ?? secretValue(owner, "ca.crt");
  for (const role of SERVICES) {
    const name = `database-${role}`;
    const found = await get("secret", name, within);
    const url = roleUrl(adminUrl ?? "", role, pooler);
    const password = secretValue(found, "password");
    if (password === undefined || secretValue(found, "url") !== url || secretValue(found, "ca.crt") !== known) {
      missing.set(name, { url, password: password ?? newPassword(), ...(known !== undefined && { "ca.crt": known }) });
    }
  }
  if (
    (await get("secret", "public-keys", within)) === undefined ||
    (await get("secret", "signing-key", within)) === undefined
  ) {
    const keys = retireOthers(await addKey((await readKeys(within)).keys));
    missing.set("public-keys", { "jwks.json": publicKeysText(keys) });
    missing.set("signing-key", { "key.json": signingKeyText(keys) });
  }
  if (securityOf(kafka) !== undefined) missing.set("kafka", secretOf(kafka));
  await writeSecrets(missing, within);
  return [...missing.keys()];
}
