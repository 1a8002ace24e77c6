import { randomUUID } from "node:crypto";
import { Client } from "pg";
import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { startTestLotus, type TestLotus } from "../testing/lotus.ts";
import { databaseOf, readPasswords, roleName, roleUrl } from "./roles.ts";
import { SERVICES } from "./sql.ts";

/** The functions that each service may call. A function that is missing here is for SECURITY DEFINER functions only. */
const MAY_EXECUTE: Readonly<Record<string, readonly string[]>> = {
  events: [
    "billing.figures",
    "events.claim",
    "events.figures",
    "events.forget_keys",
    "events.forget_unawaited",
    "events.give_up",
    "events.installation_id",
    "events.move_to_dead_letters",
    "events.move_unpublishable_to_dead_letters",
    "events.release",
    "events.trim_dead_letters",
    "notification.forget",
  ],
  profile: [
    "events.emit",
    "events.installation_id",
    "events.move_to_dead_letters",
    "events.uuid_v7",
    "profile.begin_login",
    "profile.count_failure",
    "profile.count_registration",
    "profile.end_login",
    "profile.register",
    "profile.seconds_until",
  ],
  billing: [
    "billing.balance",
    "billing.begin_seal",
    "billing.continue_seal",
    "billing.forget_published_seal",
    "billing.history",
    "billing.move_money",
    "billing.open_account",
    "billing.open_accounts",
    "events.installation_id",
    "events.move_to_dead_letters",
  ],
  order: ['"order".place', '"order".refund', "events.installation_id", "events.move_to_dead_letters"],
  notification: [
    "events.installation_id",
    "events.move_to_dead_letters",
    "events.settle_many",
    "events.unsettled",
    "notification.store",
  ],
};

interface Routine {
  readonly name: string;
  /** A call with null for each parameter. */
  readonly call: string;
}

const INSUFFICIENT_PRIVILEGE = "42501";

let lotus: TestLotus;
let routines: Routine[];
const roles = new Map<string, Client>();
beforeAll(async () => {
  lotus = await startTestLotus();
  const { rows } = await lotus.database.query<Routine>(
    `select p.oid::regproc::text as name,
       format('select %s(%s)', p.oid::regproc, (
         select string_agg(format('null::%I.%I', s.nspname, t.typname), ', ' order by place)
         from unnest(p.proargtypes) with ordinality a (type, place)
         join pg_type t on t.oid = a.type join pg_namespace s on s.oid = t.typnamespace)) as call
     from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname = any ($1) order by 1`,
    [SERVICES],
  );
  routines = rows;
  const passwords = await readPasswords(inject("secrets"));
  for (const service of SERVICES) {
    const url = Object.assign(new URL(roleUrl(lotus.adminUrl, service)), { password: passwords[service] });
    const client = new Client({ connectionString: url.href });
    await client.connect();
    roles.set(service, client);
  }
});
afterAll(async () => {
  for (const client of roles.values()) await client.end();
  await lotus.stop();
});

/** Runs a statement as a service's role and undoes its effect. Resolves to "allowed", or to the SQLSTATE and the message. */
async function as(service: string, statement: string, values: unknown[] = []): Promise<string> {
  const client = roles.get(service);
  if (client === undefined) throw new Error(`no role ${service}`);
  await client.query("begin");
  try {
    await client.query(statement, values);
    return "allowed";
  } catch (error) {
    const { code, message } = error as { code: string; message: string };
    return `${code} ${message}`;
  } finally {
    await client.query("rollback");
  }
}

describe("the functions of the database", () => {
  it("have a search path that ends in pg_temp, or a body that was compiled when it was created", async () => {
    const { rows } = await lotus.database.query(
      `select p.oid::regprocedure::text as signature, p.proconfig from pg_proc p
       join pg_namespace n on n.oid = p.pronamespace
       where n.nspname = any ($1) and not coalesce('search_path=pg_catalog, pg_temp' = any (p.proconfig), false)
         and (p.prosecdef or p.prosqlbody is null)`,
      [SERVICES],
    );
    expect(rows).toEqual([]);
  });

  it("belong to the owner of the database", async () => {
    const { rows } = await lotus.database.query(
      `select p.oid::regprocedure::text as signature from pg_proc p join pg_namespace n on n.oid = p.pronamespace
       where n.nspname = any ($1) and p.proowner <> current_user::regrole`,
      [SERVICES],
    );
    expect(rows).toEqual([]);
  });

  it.each(SERVICES)("may be called by the role of %s only when the table lists it", async (service) => {
    const denied: string[] = [];
    for (const { name, call } of routines) {
      if (/permission denied for (function|schema)/.test(await as(service, call))) denied.push(name);
    }
    const allowed = routines.map(({ name }) => name).filter((name) => !denied.includes(name));
    expect(allowed).toEqual([...(MAY_EXECUTE[service] ?? [])].sort());
  });
});

describe("no function", () => {
  it("returns rows of a table, whose new columns would break a caller's plan", async () => {
    const { rows } = await lotus.database.query(
      `select p.oid::regprocedure::text as name from pg_proc p join pg_namespace n on n.oid = p.pronamespace
         join pg_type t on t.oid = p.prorettype join pg_class c on c.oid = t.typrelid
       where n.nspname = any ($1) and c.relkind in ('r', 'p', 'v', 'm')`,
      [SERVICES],
    );
    expect(rows).toEqual([]);
  });
});

describe("a role", () => {
  it.each(SERVICES)("of %s creates no temporary table, schema, table or database", async (service) => {
    for (const statement of ["create temp table t ()", "create schema mine", "create table public.mine ()"])
      expect(await as(service, statement), statement).toMatch(/^42501/);
    await expect(roles.get(service)?.query("create database mine")).rejects.toThrow(/permission denied/);
  });

  it.each(SERVICES)(
    "of %s runs no code as the owner through types in pg_temp, even if it may create them",
    async (service) => {
      const role = roleName(databaseOf(lotus.adminUrl), service);
      await lotus.database.query(`grant temporary on database ${databaseOf(lotus.adminUrl)} to ${role}`);
      const client = roles.get(service);
      const notices: string[] = [];
      const listen = ({ message }: { message?: string | undefined }) => void notices.push(message ?? "");
      client?.on("notice", listen);
      await client?.query(
        `create function pg_temp.seen(v pg_catalog.text) returns pg_catalog.bool language plpgsql as $$
       begin raise notice '% runs code as %', session_user, current_user; return true; end $$`,
      );
      for (const type of [
        "uuid",
        "text",
        "jsonb",
        "timestamptz",
        "bytea",
        "int8",
        "int4",
        "bool",
        "numeric",
        "interval",
      ])
        await client?.query(
          `create domain pg_temp."${type}" as pg_catalog.${type} check (pg_temp.seen(value::pg_catalog.text))`,
        );
      const id = randomUUID();
      const user = `'${id}'::pg_catalog.uuid`;
      const own: Record<string, string> = {
        "events.emit": `select events.emit('notification-requested', 1, '${service}-test', ${user}, null, '{}')`,
        '"order".place': `select "order".place(true, '{${id}}', '{a@b.cd}', '{k}', '{f}', 'order-test', '{null}', '{1}', '{null}')`,
        "billing.move_money": `select billing.move_money('deposit', true, '{${id}}', '{a@b.cd}', '{null}', '{1}', '{k}', '{f}', 'billing-test', '{null}')`,
        "profile.register": "select profile.register('a@b.cd', 'a@b.cd', null, 'h', 'profile-register', null)",
      };
      for (const { name, call } of routines) await as(service, own[name] ?? call);
      client?.off("notice", listen);
      expect(notices).toEqual([]);
      await lotus.database.query(`revoke temporary on database ${databaseOf(lotus.adminUrl)} from ${role}`);
    },
  );

  it.each([
    [
      "notification",
      "settles another service's event",
      "select events.settle_many(true, array[gen_random_uuid()], 'billing-open-account')",
    ],
    [
      "notification",
      "reads another service's events",
      "select events.unsettled(gen_random_uuid(), 'user-registered', 'billing-open-account', 5)",
    ],
    [
      "billing",
      "moves another subscriber's event to the dead letters",
      "select events.move_to_dead_letters(gen_random_uuid(), 'notification-store', 'x', '{}', null, 0)",
    ],
    [
      "notification",
      "moves another subscriber's event to the dead letters",
      "select events.move_to_dead_letters(gen_random_uuid(), 'billing-open-account', 'x', '{}', null, 0)",
    ],
    [
      "notification",
      "acts for a subscriber without a name",
      "select events.settle_many(true, array[gen_random_uuid()], null)",
    ],
    [
      "profile",
      "publishes a topic of another service",
      "select events.emit('ledger-sealed', 1, 'profile-register', gen_random_uuid(), null, '{}')",
    ],
    [
      "profile",
      "publishes as a function of another service",
      "select events.emit('notification-requested', 1, 'order-pay', gen_random_uuid(), null, '{}')",
    ],
    [
      "order",
      "places an order as a function whose name begins in the same way",
      `select "order".place(true, array[gen_random_uuid()], array['a@b.cd'], array['k'], array['f'], 'orders', array[null]::text[], array[1], array[null]::bigint[])`,
    ],
    [
      "profile",
      "publishes without a source",
      "select events.emit('user-registered', 1, null, gen_random_uuid(), null, '{}')",
    ],
    [
      "billing",
      "moves money with the kind of another service",
      "select billing.move_money('charge', true, array[gen_random_uuid()], array['a@b.cd'], array[null]::text[], array[1], array['k'], array['f'], 'billing-test', array[null]::text[])",
    ],
    [
      "billing",
      "moves money without a kind",
      "select billing.move_money(null, true, array[gen_random_uuid()], array['a@b.cd'], array[null]::text[], array[1], array['k'], array['f'], 'billing-test', array[null]::text[])",
    ],
  ])("of %s never %s", async (service, _, statement) => {
    expect(await as(service, statement)).toMatch(new RegExp(`^${INSUFFICIENT_PRIVILEGE} `));
  });

  it("does its own work", async () => {
    expect(
      await as("notification", "select events.settle_many(true, array[gen_random_uuid()], 'notification-store')"),
    ).toBe("allowed");
    expect(
      await as(
        "events",
        "select events.move_to_dead_letters(gen_random_uuid(), 'notification-store', 'x', '{}', null, 0)",
      ),
    ).toBe("allowed");
    expect(
      await as(
        "profile",
        "select events.emit('user-registered', 1, 'profile-register', gen_random_uuid(), null, '{}')",
      ),
    ).toBe("allowed");
  });

  it("that belongs to no service is refused, although it may act for a role", async () => {
    const [guest, profile] = [
      `guest_${randomUUID().replaceAll("-", "")}`,
      roleName(databaseOf(lotus.adminUrl), "profile"),
    ];
    await lotus.database.query(`create role ${guest} login password 'guest'; grant ${profile} to ${guest}`);
    const client = new Client({
      connectionString: Object.assign(new URL(lotus.adminUrl), { username: guest, password: "guest" }).href,
    });
    await client.connect();
    await expect(
      client.query("select events.emit('user-registered', 1, 'profile-register', gen_random_uuid(), null, '{}')"),
    ).rejects.toThrow(`the role ${guest} belongs to no service`);
    await client.end();
    await lotus.database.query(`drop role ${guest}`);
  });
});
