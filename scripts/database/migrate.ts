/**
 * Brings a database up to date: a role a service, the numbered migrations of each service, and who listens to which topic.
 *   npm run migrate -- [--url postgres://owner:password@host:port/name] [--secrets FOLDER]
 */
import { createHash } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { runner } from "node-pg-migrate";
import { Client } from "pg";
import { ROW_WAIT_MILLISECONDS_MAX, STATEMENT_MILLISECONDS_MAX } from "#kernel/settings";
import { messageOf, runCommand } from "../cli/command.ts";
import { findFunctions, ROOT } from "../project/functions.ts";
import { adminUrl, SECRETS } from "./connect.ts";

/** The kernel's own schema first: the others stand on it. Billing before order, which charges through it. */
const SCHEMAS = [
  { service: "events", folder: "functions/kernel/schema" },
  { service: "profile", folder: "functions/profile/schema" },
  { service: "billing", folder: "functions/billing/schema" },
  { service: "order", folder: "functions/order/schema" },
  { service: "notification", folder: "functions/notification/schema" },
] as const;

/** The roles that functions connect with, one a service. */
export const ROLES = SCHEMAS.map(({ service }) => service);
export type Role = (typeof ROLES)[number];

const CONNECT_MILLISECONDS_MAX = 15_000;

/** Two deployments at the same time wait for each other here; the number means nothing but this. */
const LOCK = 7_505_131;

async function createRoles(client: Client, passwords: Record<Role, string>): Promise<void> {
  for (const role of ROLES) {
    const name = client.escapeIdentifier(role);
    const { rowCount } = await client.query("select from pg_roles where rolname = $1", [role]);
    if (rowCount === 0) await client.query(`create role ${name} login`);
    await client.query(`alter role ${name} password ${client.escapeLiteral(passwords[role])}`);
    await client.query(`alter role ${name} set statement_timeout = ${STATEMENT_MILLISECONDS_MAX}`);
    await client.query(`alter role ${name} set lock_timeout = ${ROW_WAIT_MILLISECONDS_MAX}`);
  }
}

/** Who must settle an event: the triggers that name its topic. */
async function writeSubscriptions(client: Client): Promise<void> {
  const listening = (await findFunctions()).flatMap(({ name, description }) =>
    "topic" in description ? [[description.topic, name] as const] : [],
  );
  const topics = listening.map(([topic]) => topic);
  const names = listening.map(([, name]) => name);
  await client.query(
    "delete from events.subscriptions where (topic, subscriber) not in (select * from unnest($1::text[], $2::text[]))",
    [topics, names],
  );
  await client.query(
    "insert into events.subscriptions select * from unnest($1::text[], $2::text[]) on conflict do nothing",
    [topics, names],
  );
}

/** What each migration's file holds, by the migration's name. */
async function digestMigrations(): Promise<Map<string, string>> {
  const digests = new Map<string, string>();
  for (const { service, folder } of SCHEMAS) {
    for (const file of await readdir(join(ROOT, folder))) {
      const text = await readFile(join(ROOT, folder, file));
      digests.set(`${service}/${file.replace(/\.sql$/, "")}`, createHash("sha256").update(text).digest("hex"));
    }
  }
  return digests;
}

/** An edited migration would leave this database other than a new one, and say nothing until a function fails on it. */
async function refuseEdited(client: Client, digests: ReadonlyMap<string, string>): Promise<void> {
  await client.query("create schema if not exists migrations");
  await client.query("create table if not exists migrations.digests (name text primary key, sha256 text not null)");
  const { rows } = await client.query<{ name: string; sha256: string }>("select name, sha256 from migrations.digests");
  const edited = rows.filter(({ name, sha256 }) => (digests.get(name) ?? sha256) !== sha256).map(({ name }) => name);
  if (edited.length === 0) return;
  throw new Error(
    `${edited.join(", ")} changed since this database has it. Put the file back as it was and write the change as a new migration; where the data does not matter, begin with an empty database (npm start -- --fresh).`,
  );
}

/** Neon's pooler hands each transaction to another session, and a lock is a session's: past it, the same database. */
function withoutPooler(url: string): string {
  const direct = new URL(url);
  direct.hostname = direct.hostname.replace(/-pooler(?=\..*\.neon\.tech$)/, "");
  return direct.href;
}

/**
 * Migrates a database. Safe to repeat, and to run twice at the same time.
 * @param url connects as the owner of the database, who may create roles
 * @param passwords of the services' roles
 * @returns the names of the migrations that were applied
 * @throws {Error} a sentence, when a migration that this database has was edited since; nothing was changed then
 */
export async function migrate(url: string, passwords: Record<Role, string>): Promise<string[]> {
  const client = new Client({
    connectionString: withoutPooler(url),
    connectionTimeoutMillis: CONNECT_MILLISECONDS_MAX,
  });
  await client.connect();
  try {
    await client.query("select pg_advisory_lock($1)", [LOCK]);
    const digests = await digestMigrations();
    await refuseEdited(client, digests);
    await createRoles(client, passwords);
    const applied: string[] = [];
    for (const { service, folder } of SCHEMAS) {
      const done = await runner({
        dbClient: client,
        dir: join(ROOT, folder),
        ignorePattern: "(?!.*\\.sql$).*",
        direction: "up",
        migrationsTable: service,
        migrationsSchema: "migrations",
        createMigrationsSchema: true,
        checkOrder: true,
        singleTransaction: true,
        noLock: true,
        log: () => undefined,
      });
      applied.push(...done.map(({ name }) => `${service}/${name}`));
    }
    await client.query(
      "insert into migrations.digests select * from unnest($1::text[], $2::text[]) on conflict do nothing",
      [[...digests.keys()], [...digests.values()]],
    );
    await writeSubscriptions(client);
    return applied;
  } finally {
    await client.end();
  }
}

/** The passwords of the roles, from files DIR/database-<role>/password. */
export async function readPasswords(folder: string): Promise<Record<Role, string>> {
  const passwords: [Role, string][] = [];
  for (const role of ROLES) {
    const file = join(folder, `database-${role}`, "password");
    try {
      passwords.push([role, (await readFile(file, "utf8")).trim()]);
    } catch {
      throw new Error(
        `There is no password for the role ${role}: ${file} cannot be read. Start Lotus once, or write it.`,
      );
    }
  }
  return Object.fromEntries(passwords) as Record<Role, string>;
}

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { url: { type: "string" }, secrets: { type: "string", default: SECRETS } } });
  const applied = await migrate(await adminUrl(values.url), await readPasswords(values.secrets));
  console.log(applied.length === 0 ? "The database is up to date." : `Applied ${applied.join(", ")}.`);
}

if (process.argv[1] === import.meta.filename) {
  runCommand(main, (error) => `The database was not migrated: ${messageOf(error)}`);
}
