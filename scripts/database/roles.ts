/** The database roles of the services. Each name contains the database, because roles belong to the server. */
import { createHash, createHmac, pbkdf2Sync, randomBytes } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { type Client, type DatabaseError, escapeIdentifier, escapeLiteral } from "pg";
import { tryLogin } from "#kernel/database";
import type { DatabaseAddress } from "#kernel/database-url";
import { ROW_WAIT_MILLISECONDS_MAX, STATEMENT_MILLISECONDS_MAX } from "#kernel/limits";
import { addressOf, explainConnection } from "./client.ts";
import { SERVICES } from "./sql.ts";

/** PostgreSQL cuts longer names (NAMEDATALEN - 1). */
const NAME_BYTES_MAX = 63;
const DIGEST_CHARACTERS = 8;

/**
 * The role of a service in a database: `lotus_<database>_<service>`. A long database name is cut and gets a digest, so that the
 * role has at most 63 bytes and two databases never share it.
 */
export function roleName(database: string, service: string): string {
  const name = `lotus_${database}_${service}`;
  if (Buffer.byteLength(name) <= NAME_BYTES_MAX) return name;
  const end = `~${createHash("sha256").update(database).digest("hex").slice(0, DIGEST_CHARACTERS)}_${service}`;
  let kept = database;
  while (Buffer.byteLength(`lotus_${kept}${end}`) > NAME_BYTES_MAX) kept = [...kept].slice(0, -1).join("");
  return `lotus_${kept}${end}`;
}

/** Role names by service. */
export function rolesOf(database: string): Map<string, string> {
  return new Map(SERVICES.map((service) => [service, roleName(database, service)]));
}

/** The name of the database in a URL. Without one, libpq takes the name of the user. */
export function databaseOf(url: string): string {
  const { pathname, username } = new URL(url);
  return decodeURIComponent(pathname.slice(1) || username);
}

/**
 * The URL of a service's role, without a password.
 * @param adminUrl the owner's URL
 * @param pooler the URL of a pooler that functions use instead, such as `postgres://pooler.example:6432`. Its user may be a pattern:
 *   `{role}.project-ref`. Without a database it leads to the owner's.
 */
export function roleUrl(adminUrl: string, service: string, pooler?: string): string {
  const url = new URL(pooler ?? adminUrl);
  const pattern = decodeURIComponent(url.username);
  const role = roleName(databaseOf(adminUrl), service);
  url.username = encodeURIComponent(pattern.includes("{role}") ? pattern.replace("{role}", role) : role);
  url.password = "";
  if (url.pathname === "" || url.pathname === "/") url.pathname = `/${encodeURIComponent(databaseOf(adminUrl))}`;
  return url.href;
}

/** Settings that change what a function answers. A role's setting takes precedence over one of the database or the server. */
const ROLE_SETTINGS: Readonly<Record<string, string>> = {
  statement_timeout: String(STATEMENT_MILLISECONDS_MAX),
  lock_timeout: String(ROW_WAIT_MILLISECONDS_MAX),
  default_transaction_isolation: "read committed",
  datestyle: "ISO, MDY",
  intervalstyle: "postgres",
  timezone: "UTC",
  bytea_output: "hex",
  search_path: "pg_catalog",
};

/** The comment of a role says which database it serves. Lotus alters only roles with this mark. */
const markOf = (database: string) => `Lotus: the database ${database}`;

/**
 * A SCRAM-SHA-256 verifier (RFC 5803, as Postgres stores it). One iteration is enough for a password of 192 random bits: more
 * iterations only slow down guesses at weak passwords, and every login.
 */
export function scramVerifier(password: string, salt: Buffer = randomBytes(16)): string {
  const iterations = 1;
  const salted = pbkdf2Sync(password, salt, iterations, 32, "sha256");
  const hmac = (message: string) => createHmac("sha256", salted).update(message).digest();
  const storedKey = createHash("sha256").update(hmac("Client Key")).digest("base64");
  return `SCRAM-SHA-256$${iterations}:${salt.toString("base64")}$${storedKey}:${hmac("Server Key").toString("base64")}`;
}

const INSUFFICIENT_PRIVILEGE = "42501";

interface Found {
  readonly oid: string;
  readonly mark: string | null;
  readonly settings: readonly string[] | null;
}

async function setPassword(client: Client, role: string, password: string, tell: (news: string) => void) {
  await client.query("savepoint verifier");
  try {
    await client.query(`alter role ${escapeIdentifier(role)} password ${escapeLiteral(scramVerifier(password))}`);
  } catch (error) {
    const { code, message } = error as DatabaseError;
    if (code === undefined || code === INSUFFICIENT_PRIVILEGE) throw error;
    await client.query("rollback to verifier");
    await client.query(`alter role ${escapeIdentifier(role)} password ${escapeLiteral(password)}`);
    tell(
      `The server refused a SCRAM verifier (${message}). It received the password of ${role} as text and may log it.`,
    );
  }
  await client.query("release verifier");
}

/** The statements that a database administrator runs when the owner of the database may not create roles. */
export function rolesSql(database: string): string {
  return [...rolesOf(database).values()]
    .flatMap((role) => [
      `create role ${escapeIdentifier(role)} login password '…';`,
      `comment on role ${escapeIdentifier(role)} is ${escapeLiteral(markOf(database))};`,
      ...Object.entries(ROLE_SETTINGS).map(([name, value]) => settingSql(role, name, value)),
    ])
    .join("\n");
}

function settingSql(role: string, name: string, value: string): string {
  return `alter role ${escapeIdentifier(role)} set ${name} = ${escapeLiteral(value)};`;
}

export interface RolesOptions {
  /** The services whose existing role gets the password of `passwords`. A new role always gets it. */
  readonly changePasswords: readonly string[];
  readonly tell: (news: string) => void;
}

/**
 * Makes the roles that are missing and corrects their settings, inside the caller's transaction.
 * @param passwords by service
 * @throws {Error} a sentence, when a role exists that Lotus did not make, or the user may not create roles
 */
export async function ensureRoles(
  client: Client,
  database: string,
  passwords: Readonly<Record<string, string>>,
  { changePasswords, tell }: RolesOptions,
): Promise<void> {
  for (const [service, role] of rolesOf(database)) {
    const name = escapeIdentifier(role);
    const { rows } = await client.query<Found>(
      `select r.oid, shobj_description(r.oid, 'pg_authid') as mark, s.setconfig as settings
       from pg_roles r left join pg_db_role_setting s on s.setrole = r.oid and s.setdatabase = 0 where r.rolname = $1`,
      [role],
    );
    const [found] = rows;
    if (found !== undefined && found.mark !== markOf(database))
      throw new Error(
        `Lotus did not make the role ${role} of this server, and does not change it. Rename or drop that role. If it was made for Lotus, mark it: comment on role ${name} is ${escapeLiteral(markOf(database))}.`,
      );
    const password = passwords[service];
    if (password === undefined) throw new Error(`The role ${role} of the service ${service} has no password.`);
    try {
      if (found === undefined) {
        await client.query(`create role ${name} login`);
        await client.query(`comment on role ${name} is ${escapeLiteral(markOf(database))}`);
      }
      if (found === undefined || changePasswords.includes(service)) await setPassword(client, role, password, tell);
      for (const [setting, value] of Object.entries(ROLE_SETTINGS)) {
        if (found?.settings?.some((entry) => entry.toLowerCase() === `${setting}=${value}`.toLowerCase())) continue;
        await client.query(settingSql(role, setting, value));
      }
    } catch (error) {
      if ((error as DatabaseError).code !== INSUFFICIENT_PRIVILEGE) throw error;
      throw new Error(
        `This user may not make or alter the role ${role} (${(error as Error).message}). Let an administrator run the SQL of docs/postgres.md, then run \`npx lotus migrate schema\`.`,
      );
    }
  }
}

/** @throws {Error} a sentence with the SQL, when a role is missing */
export async function requireRoles(client: Client, database: string): Promise<void> {
  const names = [...rolesOf(database).values()];
  const { rows } = await client.query<{ rolname: string }>("select rolname from pg_roles where rolname = any ($1)", [
    names,
  ]);
  const missing = names.filter((name) => !rows.some(({ rolname }) => rolname === name));
  if (missing.length === 0) return;
  throw new Error(
    `The server has no role ${missing.join(", ")}. Run \`npx lotus migrate roles\` as a user who may create roles, or let an administrator run:\n${rolesSql(database)}`,
  );
}

/**
 * Reads the passwords of the roles from files FOLDER/database-<service>/password.
 * @throws {Error} a sentence, when a file is missing or the password has other characters than printable ASCII
 */
export async function readPasswords(folder: string): Promise<Record<string, string>> {
  const passwords: [string, string][] = [];
  for (const service of SERVICES) {
    const file = join(folder, `database-${service}`, "password");
    let password: string;
    try {
      password = (await readFile(file, "utf8")).trim();
    } catch {
      throw new Error(
        `The password of the role of ${service} is missing: ${file} cannot be read. Start Lotus once, or write the file.`,
      );
    }
    // SCRAM would normalise other characters (SASLprep), and drivers differ in that.
    if (!/^[\x21-\x7e]+$/.test(password))
      throw new Error(`The password in ${file} must be printable ASCII without spaces.`);
    passwords.push([service, password]);
  }
  return Object.fromEntries(passwords);
}

const INVALID_PASSWORD = "28P01";

/** Logs in as the role of a service, as functions do. Returns a sentence when the server refuses. */
async function loginFault(service: string, address: DatabaseAddress): Promise<string | undefined> {
  try {
    await tryLogin(address, process.env.DATABASE_TRANSPORT);
    return undefined;
  } catch (error) {
    const { cause, message } = explainConnection(error, address);
    return (cause as DatabaseError).code === INVALID_PASSWORD
      ? `The role ${address.user} has another password than the secret database-${service}. Copy the secret from the installation that made the role, or give the roles the passwords of this installation: npx lotus migrate roles --change-passwords.`
      : `The role ${address.user} cannot log in. ${message}`;
  }
}

/**
 * Logs in as each role, as functions do: over the same transport, and through the same pooler.
 * @throws {Error} a sentence for each role that has another password or may not connect
 */
export async function checkLogins(
  adminUrl: string,
  passwords: Readonly<Record<string, string>>,
  pooler?: string,
): Promise<void> {
  const faults = await Promise.all(
    SERVICES.map((service) =>
      loginFault(service, { ...addressOf(roleUrl(adminUrl, service, pooler)), password: passwords[service] }),
    ),
  );
  const sentences = faults.filter((fault) => fault !== undefined);
  if (sentences.length > 0) throw new Error(sentences.join("\n"));
}

/**
 * Logs in as each role with the files that its functions mount: FOLDER/database-<service>/url and password.
 * @returns a sentence for each role that cannot log in
 * @throws {Error} a sentence when a file is missing
 */
export async function loginFaults(folder: string): Promise<string[]> {
  const passwords = await readPasswords(folder);
  const faults = await Promise.all(
    SERVICES.map(async (service) => {
      const file = join(folder, `database-${service}`, "url");
      const url = await readFile(file, "utf8").catch(() => {
        throw new Error(`The address of the database is missing: ${file} cannot be read. Write the Secret again.`);
      });
      return loginFault(service, { ...addressOf(url.trim()), password: passwords[service] });
    }),
  );
  return faults.filter((fault) => fault !== undefined);
}
