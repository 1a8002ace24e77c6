import { randomUUID } from "node:crypto";
import { Client } from "pg";
import { afterAll, beforeAll, expect, it } from "vitest";
import { startTestLotus, type TestLotus } from "../../scripts/testing/lotus.ts";

let lotus: TestLotus;
beforeAll(async () => {
  lotus = await startTestLotus();
});
afterAll(() => lotus.stop());

/** Requests the accounts of new users, as registrations do. Returns their ids and the keys of their events. */
async function request(count: number): Promise<{ users: string[]; keys: string[] }> {
  const users = Array.from({ length: count }, () => randomUUID());
  const { rows } = await lotus.database.query<{ key: string }>(
    `select events.emit('user-registered', 1, 'profile-register', u.id, null,
       jsonb_build_object('userId', u.id, 'email', 'ada@example.com')) -> 'event' ->> 'id' as key
     from unnest($1::uuid[]) u (id)`,
    [users],
  );
  return { users, keys: rows.map(({ key }) => key) };
}

async function open(waits: boolean, users: readonly string[], keys: readonly string[]): Promise<number[]> {
  const { rows } = await lotus.database.query<{ position: number }>(
    'select "position" from billing.open_accounts($1, $2, $3)',
    [waits, users, keys],
  );
  return rows.map(({ position }) => position);
}

async function count(sql: string, values: readonly string[]): Promise<number> {
  const { rows } = await lotus.database.query(`select count(*)::integer as count from ${sql} = any($1)`, [values]);
  return rows[0].count;
}
const accountsOf = (users: readonly string[]) => count("billing.accounts where id", users);
const eventsOf = (keys: readonly string[]) => count("events.outbox where id", keys);

it("opens each account of a statement once, and settles the events", async () => {
  const { users, keys } = await request(3);
  expect(await open(false, users, keys)).toEqual([0, 1, 2]);
  expect([await accountsOf(users), await eventsOf(keys)]).toEqual([3, 0]);
  // A second delivery, and two events of one user.
  const [first = ""] = users;
  expect(await open(false, [first, first], [...keys.slice(0, 1), randomUUID()])).toEqual([0, 1]);
  expect(await accountsOf(users)).toBe(3);
});

it("skips an event that another transaction has locked, so that it waits by itself", async () => {
  const { users, keys } = await request(3);
  const holder = new Client({ connectionString: lotus.adminUrl });
  await holder.connect();
  await holder.query("begin");
  await holder.query("select from events.outbox where id = $1 for update", [keys[1]]);
  expect(await open(false, users, keys)).toEqual([0, 2]);
  await holder.query("rollback");
  await holder.end();
  expect(await open(true, users.slice(1, 2), keys.slice(1, 2))).toEqual([0]);
  expect([await accountsOf(users), await eventsOf(keys)]).toEqual([3, 0]);
});
