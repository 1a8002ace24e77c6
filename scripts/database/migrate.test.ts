import { randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { Client } from "pg";
import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { migrate } from "./migrate.ts";
import { readPasswords, roleName, rolesOf } from "./roles.ts";
import { SERVICES } from "./sql.ts";

const name = `test_${randomUUID().replaceAll("-", "")}`;
const url = inject("templateUrl").replace(/\/lotus$/, `/${name}`);
let server: Client;
let passwords: Record<string, string>;
beforeAll(async () => {
  server = new Client({ connectionString: inject("templateUrl").replace(/\/lotus$/, "/postgres") });
  await server.connect();
  await server.query(`create database ${name}`);
  passwords = await readPasswords(inject("secrets"));
});
afterAll(async () => {
  await server.query(`drop database ${name}`);
  await server.query(`drop role ${[...rolesOf(name).values()].join(", ")}`);
  await server.end();
});

/** The tables, functions, subscriptions and applied migrations, with the privileges of every role. */
async function shape(): Promise<unknown[]> {
  const client = new Client({ connectionString: url });
  await client.connect();
  const queries = [
    "select oid::regclass::text as table, relacl::text from pg_class where relkind in ('r', 'i') and relnamespace >= 16384 order by oid",
    "select oid::regprocedure::text as function, proacl::text from pg_proc where pronamespace >= 16384 order by oid",
    "select * from events.subscriptions order by subscriber",
  ];
  const rows = [];
  for (const query of queries) rows.push((await client.query(query)).rows);
  await client.end();
  return rows;
}

describe("migrate", () => {
  it("run twice at the same time on an empty database, applies each file once", async () => {
    const applied = await Promise.all([migrate(url, passwords), migrate(url, passwords)]);
    expect(applied.flat().sort()).toEqual([
      "billing/001-ledger",
      "billing/functions",
      "events/001-events",
      "events/functions",
      "notification/001-notifications",
      "notification/002-by-age",
      "notification/functions",
      "order/001-orders",
      "order/002-subscriptions-without-lock",
      "order/functions",
      "profile/001-users",
      "profile/functions",
    ]);
  });

  it("applies no file and makes no change the next time", async () => {
    const before = await shape();
    expect(await migrate(url, passwords)).toEqual([]);
    expect(await shape()).toEqual(before);
  });

  it("refuses a migration that was edited after it was applied, and changes nothing", async () => {
    const client = new Client({ connectionString: url });
    await client.connect();
    const { rows } = await client.query(
      "update migrations.applied d set sha256 = 'of other words' from migrations.applied old where d.name = 'billing/001-ledger' and old.name = d.name returning old.sha256",
    );
    const before = await shape();
    await expect(migrate(url, passwords)).rejects.toThrow(
      /^functions\/billing\/schema\/001-ledger\.sql changed after it was applied .* new migration/,
    );
    expect(await shape()).toEqual(before);
    await client.query("update migrations.applied set sha256 = $1 where name = 'billing/001-ledger'", [
      rows[0]?.sha256,
    ]);
    await client.end();
    expect(await migrate(url, passwords)).toEqual([]);
  });

  it("records which trigger handles which topic, and deletes a trigger that does not exist any more", async () => {
    const client = new Client({ connectionString: url });
    await client.connect();
    await client.query(
      "insert into events.subscriptions (topic, subscriber, service) values ('user-registered', 'gone-long-ago', 'gone')",
    );
    await migrate(url, passwords);
    const { rows } = await client.query("select * from events.subscriptions order by topic");
    await client.end();
    expect(rows).toEqual([
      { topic: "notification-requested", subscriber: "notification-store", service: "notification" },
      { topic: "user-registered", subscriber: "billing-open-account", service: "billing" },
    ]);
  });

  it("replaces a trigger that does not exist any more in the events that await it, and reports it", async () => {
    const client = new Client({ connectionString: url });
    await client.connect();
    await client.query(
      `insert into events.outbox (id, topic, type, source, subject, time, data, awaiting)
       select gen_random_uuid(), topic, 't', 's', 's', now(), '{}', awaiting
       from (values ('unheard', '{gone-trigger}'::text[]), ('notification-requested', '{former-store}'),
         ('notification-requested', '{notification-store,gone-trigger}'), ('notification-requested', '{notification-store}'))
         v (topic, awaiting)`,
    );
    const news: string[] = [];
    await migrate(url, passwords, { tell: (sentence) => void news.push(sentence) });
    const { rows } = await client.query("delete from events.outbox returning topic, awaiting");
    await client.end();
    const now = { topic: "notification-requested", awaiting: ["notification-store"] };
    expect(rows.filter(({ topic }) => topic === "unheard")).toEqual([{ topic: "unheard", awaiting: [] }]);
    expect(rows.filter(({ topic }) => topic !== "unheard")).toEqual([now, now, now]);
    expect(news).toEqual(
      ["former-store", "gone-trigger"].map(
        (name) =>
          `The trigger ${name} no longer exists. Events that awaited it now await the present triggers of their topic.`,
      ),
    );
  });

  it("gives each database a new id, a copy included, and changes the source of the copy's outbox", async () => {
    const read = async (at: string) => {
      const client = new Client({ connectionString: at });
      await client.connect();
      const { rows } = await client.query(
        "select events.installation_id() as id, (select array_agg(source) from events.outbox) as sources",
      );
      await client.end();
      return rows[0] as { id: string; sources: string[] | null };
    };
    const client = new Client({ connectionString: url });
    await client.connect();
    await client.query("select events.emit('unheard', 1, 'test', gen_random_uuid(), null, '{}')");
    await client.end();
    const original = await read(url);
    expect(original.sources).toEqual([`/lotus/${original.id}/test`]);
    const copy = `test_${randomUUID().replaceAll("-", "")}`;
    const copyUrl = url.replace(name, copy);
    await server.query(`create database ${copy} template ${name}`);
    await migrate(copyUrl, passwords);
    const copied = await read(copyUrl);
    expect(copied.id).not.toBe(original.id);
    expect(copied.sources).toEqual([`/lotus/${copied.id}/test`]);
    await migrate(url, passwords);
    expect((await read(url)).id).toBe(original.id);
    await server.query(`drop database ${copy}`);
    await server.query(`drop role ${[...rolesOf(copy).values()].join(", ")}`);
  });

  it("names the service whose password is missing", async () => {
    await expect(readPasswords("/nowhere")).rejects.toThrow(
      /^The password of the role of events is missing: \/nowhere\/database-events\/password cannot be read\. Start Lotus once, or write the file\.$/,
    );
  });
});

describe("the role", () => {
  const user = "00000000-0000-0000-0000-00000000000a";
  const everyone = SERVICES.map((role) => role);
  const move = (kind: string) =>
    `select billing.move_money('${kind}', true, '{${user}}', '{""}', '{null}', '{1}', '{null}', '{null}', 'billing-add-money', '{null}')`;
  const place = `select "order".place(true, '{${user}}', '{""}', '{null}', '{null}', 'order-pay', '{null}', '{1}', '{null}')`;
  const refund = `select "order".refund(true, '{${user}}', '{""}', '{null}', '{null}', 'order-refund', '{null}', '{${user}}')`;

  async function as(role: string, statement: string): Promise<string> {
    const at = new URL(url);
    at.username = roleName(name, role);
    at.password = (await readFile(join(inject("secrets"), `database-${role}`, "password"), "utf8")).trim();
    const client = new Client({ connectionString: at.href });
    await client.connect();
    try {
      await client.query(statement);
      return "allowed";
    } catch (error) {
      return `${(error as { code: string }).code}`;
    } finally {
      await client.end();
    }
  }

  const forbidden: [string, string][] = [
    ...everyone.flatMap((role): [string, string][] => [
      [role, `insert into billing.transfers (id) values ('${user}')`],
      [role, `insert into billing.entries (account_id) values ('${user}')`],
      [role, "update billing.accounts set balance = 1"],
      [role, "delete from billing.transfers"],
      [role, "update billing.transfers set amount = 1"],
      [role, "delete from billing.entries"],
      [role, "update billing.entries set amount = 1"],
      [role, "delete from billing.seals"],
      [role, "select from billing.accounts"],
      [role, "select from billing.transfers"],
      [
        role,
        `select billing.move_unchecked('order', 'deposit', true, '{${user}}', '{null}', '{1}', '{null}', '{null}', '{null}', '{null}')`,
      ],
      [role, "select profile.user_of_email_unchecked('ada@example.com')"],
      [role, "update events.outbox set awaiting = '{}'"],
      [role, "delete from events.idempotency_keys"],
      [role, "create table public.mine ()"],
    ]),
    ...everyone
      .filter((role) => role !== "profile")
      .map((role): [string, string] => [role, "select from profile.users"]),
    ...everyone.filter((role) => role !== "billing").map((role): [string, string] => [role, move("deposit")]),
    ...everyone
      .filter((role) => role !== "order")
      .flatMap((role): [string, string][] => [
        [role, place],
        [role, refund],
      ]),
    ...["charge", "refund"].map((kind): [string, string] => ["billing", move(kind)]),
    ...everyone
      .filter((role) => role !== "order")
      .map((role): [string, string] => [role, 'select from "order".orders']),
    ...everyone
      .filter((role) => role !== "notification")
      .map((role): [string, string] => [role, "select from notification.notifications"]),
    ...everyone
      .filter((role) => role !== "events")
      .map((role): [string, string] => [role, "select events.claim('1 second', 1, 1)"]),
    ...everyone
      .filter((role) => role !== "notification")
      .flatMap((role): [string, string][] => [
        [role, `select events.unsettled('${user}', 'user-registered', 'billing-open-account', 1)`],
        [role, `select events.settle_many(true, array['${user}']::uuid[], 'billing-open-account')`],
      ]),
    ...(["billing", "notification", "events"] as const).flatMap((role): [string, string][] => [
      [role, `select events.emit('notification-requested', 1, '', '${user}', null, '{}')`],
      [role, `select events.record_answers_unchecked('order', '{${user}}', '{key}', '{f}', '{"{}"}')`],
    ]),
    ...(["profile", "order"] as const).map((role): [string, string] => [
      role,
      `select events.move_to_dead_letters('${user}', 'billing-open-account', '', '{}', null, 0)`,
    ]),
    ...everyone.flatMap((role): [string, string][] => [
      [role, "select from events.dead_letters"],
      [role, "select events.replay(1)"],
    ]),
    ["order", 'update "order".subscriptions set price = 1'],
    ["order", 'update "order".orders set price = 1'],
    ["profile", "update profile.users set password_hash = ''"],
    ["notification", "delete from notification.notifications"],
  ];

  it("of each service can do its own work", async () => {
    expect(await as("profile", "select from profile.users")).toBe("allowed");
    expect(await as("billing", move("deposit"))).toBe("allowed");
    expect(await as("order", place)).toBe("allowed");
    expect(await as("order", refund)).toBe("allowed");
    expect(await as("notification", "select from notification.notifications")).toBe("allowed");
    expect(await as("events", "select events.claim('1 second', 1, 1)")).toBe("allowed");
  });

  it("of each service ends a statement after ten seconds, and its wait for a row after one", async () => {
    // Any other error divides by zero.
    const check =
      "select 1 / (current_setting('statement_timeout') = '10s' and current_setting('lock_timeout') = '1s')::int";
    for (const role of SERVICES) expect(await as(role, check)).toBe("allowed");
  });

  it("may not use objects of another service", async () => {
    const outcomes = [];
    for (const [role, statement] of forbidden) outcomes.push([role, statement, await as(role, statement)]);
    expect(outcomes).toEqual(forbidden.map(([role, statement]) => [role, statement, "42501"]));
  });
});
