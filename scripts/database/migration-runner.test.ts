import { randomUUID } from "node:crypto";
import { Client } from "pg";
import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { eventually } from "../testing/lotus.ts";
import { migrate } from "./migrate.ts";
import { migrateSchemas } from "./migration-runner.ts";
import { readPasswords, roleName, rolesOf } from "./roles.ts";
import { readSqlFiles, type SqlFile, type SqlFiles } from "./sql.ts";

const name = `test_${randomUUID().replaceAll("-", "")}`;
const url = inject("templateUrl").replace(/\/lotus$/, `/${name}`);
let server: Client;
let client: Client;
let other: Client;
let files: SqlFiles;

async function connect(to: string): Promise<Client> {
  const connected = new Client({ connectionString: to });
  await connected.connect();
  return connected;
}

beforeAll(async () => {
  server = await connect(inject("templateUrl").replace(/\/lotus$/, "/postgres"));
  await server.query(`create database ${name}`);
  await migrate(url, await readPasswords(inject("secrets")));
  [client, other] = [await connect(url), await connect(url)];
  files = await readSqlFiles(rolesOf(name));
});
afterAll(async () => {
  await Promise.all([client.end(), other.end()]);
  await server.query(`drop database ${name}`);
  await server.query(`drop role ${[...rolesOf(name).values()].join(", ")}`);
  await server.end();
});

const apply = (changed: SqlFiles) => migrateSchemas(client, name, rolesOf(name), changed);

/** A migration of the service `order` beside the files of the checkout. */
function migration(file: string, text: string, transaction = true): SqlFile {
  return { service: "order", name: `order/${file}`, path: `functions/order/schema/${file}.sql`, text, transaction };
}
const withMigrations = (...extra: SqlFile[]): SqlFiles => ({ ...files, migrations: [...files.migrations, ...extra] });

/** The functions of the service `order` with more SQL at the end. */
const withFunctions = (extra: string): SqlFiles => ({
  ...files,
  functions: files.functions.map((file) => (file.service === "order" ? { ...file, text: file.text + extra } : file)),
});

async function functionsOf(schema: string): Promise<string[]> {
  const { rows } = await client.query<{ signature: string }>(
    `select p.oid::regprocedure::text || ' ' || pg_get_function_result(p.oid) as signature
     from pg_proc p where p.pronamespace = (select oid from pg_namespace where nspname = $1) order by 1`,
    [schema],
  );
  return rows.map(({ signature }) => signature);
}

describe("functions.sql", () => {
  it("is applied again when its content changed, and drops functions and grants that disappeared from it", async () => {
    const before = await functionsOf("order");
    const role = client.escapeIdentifier(roleName(name, "events"));
    const extra = `
      create or replace function "order".extra() returns integer language sql set search_path = pg_catalog, pg_temp as 'select 1';
      grant execute on function "order".extra to ${role};
      grant select (id) on "order".orders to ${role};
      grant usage on schema "order" to ${role};`;
    const privileges = () =>
      client.query(
        `select has_schema_privilege($1, 'order', 'usage') as schema,
           has_column_privilege($1, '"order".orders', 'id', 'select') as column`,
        [roleName(name, "events")],
      );
    expect(await apply(withFunctions(extra))).toEqual(["order/functions"]);
    expect(await functionsOf("order")).toEqual([...before, '"order".extra() integer'].sort());
    expect((await privileges()).rows).toEqual([{ schema: true, column: true }]);
    expect(await apply(withFunctions(extra))).toEqual([]);
    expect(await apply(files)).toEqual(["order/functions"]);
    expect(await functionsOf("order")).toEqual(before);
    expect((await privileges()).rows).toEqual([{ schema: false, column: false }]);
  });

  it("may change the result type and the parameter names of a function", async () => {
    const create = (parameter: string, result: string) =>
      withFunctions(
        `create or replace function "order".extra(${parameter} integer) returns ${result} language sql set search_path = pg_catalog, pg_temp as 'select 1';`,
      );
    await apply(create("one", "integer"));
    await apply(create("one", "bigint"));
    expect(await functionsOf("order")).toContain('"order".extra(integer) bigint');
    await apply(create("two", "bigint"));
    await apply(files);
  });

  it("grants nothing to PUBLIC, neither on old functions nor on new ones", async () => {
    await client.query(`create function "order".by_hand() returns integer language sql as 'select 1'`);
    const { rows } = await client.query(
      `select p.oid::regprocedure::text as signature
       from pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
       where p.pronamespace >= 16384 and a.grantee = 0`,
    );
    expect(rows).toEqual([]);
    await client.query(`drop function "order".by_hand()`);
  });

  it("is refused with the name of the function when a body is not valid, and changes nothing", async () => {
    const before = await functionsOf("order");
    await expect(
      apply(
        withFunctions(
          `create or replace function "order".broken() returns integer language sql as 'select * from no.where';`,
        ),
      ),
    ).rejects.toThrow(
      /the functions\.sql of "order": the function "order"\.broken\(\) is not valid: relation "no\.where" does not exist/,
    );
    expect(await functionsOf("order")).toEqual(before);
  });
});

describe("a migration", () => {
  it("that fails names the file, the line and the statement, and leaves the database unchanged", async () => {
    const broken = migration("900-broken", 'create table "order".half ();\n\nselect 1,\n  missing;');
    await expect(apply(withMigrations(broken))).rejects.toThrow(
      'functions/order/schema/900-broken.sql:4: column "missing" does not exist. The statement: select 1, missing',
    );
    const { rows } = await client.query(
      `select to_regclass('"order".half') as half, to_regclass('"order".orders')::text as orders`,
    );
    expect(rows).toEqual([{ half: null, orders: '"order".orders' }]);
  });

  it("keeps the migrations before a failed one: an edit of them is refused", async () => {
    const [first, broken] = [
      migration("901-first", 'create table "order".first ()'),
      migration("902-broken", "select missing"),
    ];
    await expect(apply(withMigrations(first, broken))).rejects.toThrow(/902-broken\.sql:1/);
    await expect(apply(withMigrations({ ...first, text: "select 1" }))).rejects.toThrow(
      /^functions\/order\/schema\/901-first\.sql changed after it was applied/,
    );
    await client.query(`drop table "order".first; delete from migrations.applied where name = 'order/901-first'`);
  });

  it("with a lower number than an applied one is refused", async () => {
    await apply(withMigrations(migration("905-later", "select 1")));
    await expect(
      apply(withMigrations(migration("904-late", "select 1"), migration("905-later", "select 1"))),
    ).rejects.toThrow(
      "functions/order/schema/904-late.sql has a lower number than functions/order/schema/905-later.sql",
    );
    await client.query("delete from migrations.applied where name = 'order/905-later'");
  });

  it("that waits for a long transaction lets other statements pass, and succeeds afterwards", async () => {
    await other.query('begin; select from "order".subscriptions');
    const note = migration("910-note", 'alter table "order".subscriptions add note text');
    const migrating = apply(withMigrations(note));
    await eventually("the migration waits for the reader", async () => {
      const { rows } = await server.query(
        `select from pg_locks where not granted and relation is not null
         and database = (select oid from pg_database where datname = '${name}')`,
      );
      return rows.length > 0;
    });
    const began = performance.now();
    const reader = await connect(url);
    await reader.query('select from "order".subscriptions');
    expect(performance.now() - began).toBeLessThan(3_000);
    await reader.end();
    await other.query("commit");
    expect(await migrating).toEqual(["order/910-note"]);
    await client.query(
      `alter table "order".subscriptions drop note; delete from migrations.applied where name = 'order/910-note'`,
    );
  }, 30_000);

  it("waits half a second for a lock, with and without a transaction, and leaves no such limit to its session", async () => {
    const record = (file: string, transaction: boolean) =>
      migration(
        file,
        `${transaction ? "" : "-- lotus: no-transaction\n"}create table "order".${file.slice(4)} as select current_setting('lock_timeout') as wait`,
        transaction,
      );
    await apply(withMigrations(record("911-inside", true), record("912-outside", false)));
    const { rows } = await client.query(
      `select i.wait as inside, o.wait as outside, current_setting('lock_timeout') as afterwards
       from "order".inside i, "order".outside o`,
    );
    expect(rows).toEqual([{ inside: "500ms", outside: "500ms", afterwards: "0" }]);
    await client.query(
      `drop table "order".inside, "order".outside; delete from migrations.applied where name like 'order/91%'`,
    );
  });

  it("with the first line `-- lotus: no-transaction` may create an index concurrently", async () => {
    const index = migration(
      "920-index",
      '-- lotus: no-transaction\ncreate index concurrently if not exists by_price on "order".orders (price);',
      false,
    );
    expect(await apply(withMigrations(index))).toEqual(["order/920-index"]);
    expect(await apply(withMigrations(index))).toEqual([]);
    const { rows } = await client.query(
      "select count(*)::int as locks from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()",
    );
    expect(rows).toEqual([{ locks: 0 }]);
    await client.query(`drop index "order".by_price; delete from migrations.applied where name = 'order/920-index'`);
  });
});

describe("the subscribers of a topic", () => {
  it("change in one statement: a concurrent event awaits the old or the new subscribers", async () => {
    await client.query("update events.subscriptions set subscriber = 'formerly' where topic = 'user-registered'");
    const emit = () => other.query("select events.emit('user-registered', 1, 'test', gen_random_uuid(), null, '{}')");
    await emit();
    const migrating = apply(files);
    let migrated = false;
    void migrating.then(() => {
      migrated = true;
    });
    while (!migrated) await emit();
    await emit();
    const { rows } = await client.query(
      "select distinct awaiting from events.outbox where topic = 'user-registered' order by 1",
    );
    // The migration replaces a trigger that no longer exists in the events that it can see.
    expect(rows).toContainEqual({ awaiting: ["billing-open-account"] });
    for (const { awaiting } of rows) expect([["formerly"], ["billing-open-account"]]).toContainEqual(awaiting);
    await client.query("delete from events.outbox");
  });
});
