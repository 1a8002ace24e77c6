/** The migration runner: numbered migrations once each, functions.sql whenever it changed, roles and subscriptions. */
import { createHash } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { type Client, type DatabaseError, escapeIdentifier } from "pg";
import { findFunctions } from "../project/functions.ts";
import { readSqlFiles, runFile, type SqlFile, type SqlFiles } from "./sql.ts";

/** A statement that waits for a lock delays all later statements on the table. It therefore stops waiting early, and tries again. */
const LOCK_MILLISECONDS_MAX = 500;
const ATTEMPTS_MAX = 12;
const BACK_OFF_MILLISECONDS = 250;
const BACK_OFF_MILLISECONDS_MAX = 8_000;

/** Two migrations without a transaction wait for each other here. Hexadecimal digits of "lotus". */
const NO_TRANSACTION_LOCK = 0x6c6f747573;

/** Lock timeout, deadlock, serialization failure, and a name that another migration has created meanwhile. */
const CONFLICTS = new Set(["55P03", "40P01", "40001", "23505", "42710", "42P06", "42P07"]);
/** Two sessions changed the same catalog row. Postgres has no SQLSTATE for it. */
const CONCURRENT_UPDATE = "tuple concurrently updated";

function isConflict(error: unknown): boolean {
  const { code, message = "" } = error as Partial<DatabaseError>;
  return CONFLICTS.has(code ?? "") || message.includes(CONCURRENT_UPDATE);
}

/**
 * Runs work in a transaction. After a conflict the transaction is rolled back and the work is repeated, with growing pauses.
 * @param lock the statement that keeps other migrations out for the transaction
 */
export async function inTransaction<T>(client: Client, lock: string | undefined, work: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      await client.query("begin");
      await client.query(`set local lock_timeout = ${LOCK_MILLISECONDS_MAX}`);
      if (lock !== undefined) await client.query(lock);
      const result = await work();
      await client.query("commit");
      return result;
    } catch (error) {
      await client.query("rollback");
      if (!isConflict(error)) throw error;
      if (attempt === ATTEMPTS_MAX)
        throw new Error(
          `Other sessions kept a lock during ${ATTEMPTS_MAX} attempts: ${(error as Error).message} Look for long transactions in pg_stat_activity, and migrate again.`,
        );
      await delay(Math.min(BACK_OFF_MILLISECONDS * 2 ** (attempt - 1), BACK_OFF_MILLISECONDS_MAX));
    }
  }
}

/** Roles cannot lock this table, so that a role cannot keep a migration out. */
const LOCK = "lock table migrations.applied in share row exclusive mode";

async function createTables(client: Client): Promise<void> {
  const { rows } = await client.query(
    "select from pg_tables where schemaname = 'migrations' and tablename = 'functions'",
  );
  if (rows.length > 0) return;
  await inTransaction(client, undefined, async () => {
    await client.query(`
      create schema if not exists migrations;
      create table if not exists migrations.applied (
        name text primary key, sha256 text not null, applied_at timestamptz not null default clock_timestamp());
      create table if not exists migrations.functions (service text primary key, sha256 text not null)`);
  });
}

const servicesOf = (files: readonly SqlFile[]) => [...new Set(files.map(({ service }) => service))];

const digestOf = ({ text }: SqlFile) => createHash("sha256").update(text).digest("hex");

/** An edited migration would make this database differ from a new one. */
async function refuseEdited(client: Client, migrations: readonly SqlFile[]): Promise<void> {
  const { rows } = await client.query<{ name: string; sha256: string }>("select name, sha256 from migrations.applied");
  const applied = new Map(rows.map(({ name, sha256 }) => [name, sha256]));
  const edited = migrations.filter((file) => (applied.get(file.name) ?? digestOf(file)) !== digestOf(file));
  if (edited.length > 0)
    throw new Error(
      `${edited.map(({ path }) => path).join(", ")} changed after it was applied to this database. Restore the file and write the change as a new migration. If the data does not matter, begin with an empty database (npm start -- --fresh).`,
    );
  for (const service of servicesOf(migrations)) {
    const own = migrations.filter((file) => file.service === service);
    const last = own.findLastIndex(({ name }) => applied.has(name));
    const late = own.slice(0, Math.max(last, 0)).find(({ name }) => !applied.has(name));
    if (late !== undefined)
      throw new Error(
        `${late.path} has a lower number than ${own[last]?.path}, which this database already has. Give it the next number.`,
      );
  }
}

const isApplied = async (client: Client, { name }: SqlFile) =>
  ((await client.query("select from migrations.applied where name = $1", [name])).rowCount ?? 0) > 0;

const recordApplied = (client: Client, file: SqlFile) =>
  client.query("insert into migrations.applied (name, sha256) values ($1, $2)", [file.name, digestOf(file)]);

async function applyMigration(client: Client, file: SqlFile): Promise<boolean> {
  if (file.transaction)
    return inTransaction(client, LOCK, async () => {
      if (await isApplied(client, file)) return false;
      await runFile(client, file);
      await recordApplied(client, file);
      return true;
    });
  await client.query(`set lock_timeout = ${LOCK_MILLISECONDS_MAX}`);
  await client.query("select pg_advisory_lock($1)", [NO_TRANSACTION_LOCK]);
  try {
    if (await isApplied(client, file)) return false;
    await runFile(client, file);
    await recordApplied(client, file);
    return true;
  } finally {
    await client.query("select pg_advisory_unlock($1)", [NO_TRANSACTION_LOCK]);
    await client.query("reset lock_timeout");
  }
}

/** Revokes every grant in a schema, so that a grant that disappeared from functions.sql disappears from the database. */
async function revokeGrants(client: Client, schema: string): Promise<void> {
  const { rows } = await client.query<{ statement: string }>(
    `with grants as (
       select 'schema ' || quote_ident(n.nspname) as object, a.grantee, n.nspowner as owner
       from pg_namespace n, aclexplode(n.nspacl) a where n.nspname = $1
       union
       select case c.relkind when 'S' then 'sequence ' else 'table ' end || c.oid::regclass, a.grantee, c.relowner
       from pg_class c left join pg_attribute t on t.attrelid = c.oid and t.attacl is not null,
         aclexplode(c.relacl || t.attacl) a
       where c.relnamespace = (select oid from pg_namespace where nspname = $1) and c.relkind in ('r', 'p', 'v', 'm', 'S')
       union
       select 'routine ' || p.oid::regprocedure, a.grantee, p.proowner
       from pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
       where p.pronamespace = (select oid from pg_namespace where nspname = $1)
     )
     select 'revoke all on ' || object || ' from '
       || case grantee when 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end as statement
     from grants where grantee <> owner`,
    [schema],
  );
  for (const { statement } of rows) await client.query(statement);
}

/** Where each function of a schema is stored. `create or replace` and `grant` move the row of a function. */
const FUNCTION_ROWS = `
  select p.oid::text as oid, p.ctid::text as place, p.oid::regprocedure::text as signature
  from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname = $1`;

interface FunctionRow {
  readonly oid: string;
  readonly place: string;
  readonly signature: string;
}

/** Runs functions.sql and drops the functions of the schema that the file no longer creates. */
async function applyFunctions(client: Client, file: SqlFile): Promise<void> {
  await revokeGrants(client, file.service);
  const before = (await client.query<FunctionRow>(FUNCTION_ROWS, [file.service])).rows;
  await runFile(client, file);
  const after = (await client.query<FunctionRow>(FUNCTION_ROWS, [file.service])).rows;
  const untouched = after.filter(({ oid, place }) => before.some((row) => row.oid === oid && row.place === place));
  if (untouched.length > 0)
    await client.query(`drop routine ${untouched.map(({ signature }) => signature).join(", ")}`);
  await client.query(
    `insert into migrations.functions (service, sha256) values ($1, $2)
     on conflict (service) do update set sha256 = excluded.sha256`,
    [file.service, digestOf(file)],
  );
}

/** Compiles the functions of all schemas: a function may use another that a later file creates. */
async function validateFunctions(client: Client, services: readonly string[]): Promise<void> {
  const { rows } = await client.query<{ signature: string; validation: string }>(
    `select p.oid::regprocedure::text as signature, format('select %s(%s)', l.lanvalidator::regproc, p.oid) as validation
     from pg_proc p join pg_language l on l.oid = p.prolang join pg_namespace n on n.oid = p.pronamespace
     where n.nspname = any ($1) and l.lanvalidator <> 0`,
    [services],
  );
  await client.query("set local check_function_bodies = on");
  for (const { signature, validation } of rows) {
    try {
      await client.query(validation);
    } catch (error) {
      const file = `the functions.sql of ${signature.split(".")[0]}`;
      throw new Error(`${file}: the function ${signature} is not valid: ${(error as Error).message}.`, {
        cause: error,
      });
    }
  }
}

/** Records which trigger settles which topic, in one statement: an event between two statements would miss a subscriber. */
async function writeSubscriptions(client: Client): Promise<void> {
  const subscribers = (await findFunctions()).flatMap(({ name, service, description }) =>
    "topic" in description ? [{ topic: description.topic, subscriber: name, service }] : [],
  );
  await client.query(
    `with wanted as (
       select w.topic, w.subscriber, w.service from jsonb_to_recordset($1) as w (topic text, subscriber text, service text)
     ), gone as (
       delete from events.subscriptions s where not exists (
         select from wanted w where w.topic = s.topic and w.subscriber = s.subscriber)
     )
     insert into events.subscriptions as s (topic, subscriber, service) select w.topic, w.subscriber, w.service from wanted w
     on conflict (topic, subscriber) do update set service = excluded.service where s.service <> excluded.service`,
    [JSON.stringify(subscribers)],
  );
}

/**
 * Replaces triggers that no longer exist: the events that await one then await the present triggers of their topic, so that a
 * renamed trigger misses no event. An effect that is repeated changes nothing.
 * @returns the names of the missing triggers
 */
async function replaceMissingSubscribers(client: Client): Promise<string[]> {
  const { rows } = await client.query<{ names: string[] | null }>(
    `with present as (
       select coalesce(array_agg(s.subscriber), '{}') as names from events.subscriptions s
     ), missing as materialized (
       select o.id, array(select a from unnest(o.awaiting) a where a <> all (p.names)) as names
       from events.outbox o, present p where not o.awaiting <@ p.names
       order by o.time for update of o
     ), replaced as (
       update events.outbox o
       set awaiting = array(select s.subscriber from events.subscriptions s where s.topic = o.topic)
       from missing m where m.id = o.id
       returning m.names
     )
     select array_agg(distinct n order by n) as names from replaced r, unnest(r.names) n`,
  );
  return rows[0]?.names ?? [];
}

/**
 * Gives the database its installation id. A copy of a database, such as one from a template, gets a new id, and its events a new
 * source, so that the two do not settle each other's events.
 */
async function writeInstallation(client: Client): Promise<void> {
  await client.query(
    `with here as (
       select oid as database from pg_database where datname = current_database()
     ), former as (
       select i.id, i.database from events.installation i
     ), written as (
       insert into events.installation as i (id, database) select gen_random_uuid(), h.database from here h
       on conflict (single) do update set id = excluded.id, database = excluded.database
       where i.database <> excluded.database returning i.id
     )
     update events.outbox o set source = replace(o.source, '/lotus/' || f.id || '/', '/lotus/' || w.id || '/')
     from written w, former f where starts_with(o.source, '/lotus/' || f.id || '/')`,
  );
}

async function writeRoles(client: Client, roles: ReadonlyMap<string, string>): Promise<void> {
  await client.query(
    "delete from events.roles r where (r.role, r.service) not in (select * from unnest($1::name[], $2::text[]))",
    [[...roles.values()], [...roles.keys()]],
  );
  await client.query(
    "insert into events.roles (role, service) select * from unnest($1::name[], $2::text[]) on conflict do nothing",
    [[...roles.values()], [...roles.keys()]],
  );
}

/** PUBLIC keeps no privilege on the database: a temporary table can shadow names, and roles of other databases may not connect. */
async function protectDatabase(client: Client, database: string, roles: ReadonlyMap<string, string>): Promise<void> {
  const name = escapeIdentifier(database);
  await client.query(`revoke connect, temporary, create on database ${name} from public`);
  await client.query(`grant connect on database ${name} to ${[...roles.values()].map(escapeIdentifier).join(", ")}`);
  await client.query("alter default privileges revoke execute on routines from public");
}

/**
 * Brings the schemas of a database up to date. Safe to repeat, and to run twice at the same time.
 * @param client is connected as the owner of the database, without a transaction pooler
 * @param roles role names by service; the roles exist
 * @param files the default is the files of the checkout
 * @param tell receives a sentence for each trigger that no longer exists
 * @returns the names of the files that were applied
 * @throws {Error} a sentence with the file and the line, when a statement fails or a migration was edited
 */
export async function migrateSchemas(
  client: Client,
  database: string,
  roles: ReadonlyMap<string, string>,
  files?: SqlFiles,
  tell: (news: string) => void = () => undefined,
): Promise<string[]> {
  const { migrations, functions } = files ?? (await readSqlFiles(roles));
  await createTables(client);
  await refuseEdited(client, migrations);
  const applied: string[] = [];
  // Before the tables, so that no function is ever executable by PUBLIC.
  await inTransaction(client, LOCK, () => protectDatabase(client, database, roles));
  for (const file of migrations) if (await applyMigration(client, file)) applied.push(file.name);
  const changed = await inTransaction(client, LOCK, async () => {
    const { rows } = await client.query<{ service: string; sha256: string }>(
      "select service, sha256 from migrations.functions",
    );
    const current = new Map(rows.map(({ service, sha256 }) => [service, sha256]));
    const stale = functions.filter((file) => current.get(file.service) !== digestOf(file));
    await client.query("set local check_function_bodies = off");
    await writeRoles(client, roles);
    for (const file of stale) await applyFunctions(client, file);
    if (stale.length > 0) await validateFunctions(client, servicesOf(functions));
    await writeSubscriptions(client);
    await writeInstallation(client);
    for (const name of await replaceMissingSubscribers(client)) {
      tell(
        `The trigger ${name} no longer exists. Events that awaited it now await the present triggers of their topic.`,
      );
    }
    return stale.map(({ name }) => name);
  });
  return [...applied, ...changed];
}
