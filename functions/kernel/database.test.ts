import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { newUser, startTestLotus, type TestLotus, type TestUser } from "../../scripts/testing/lotus.ts";

let lotus: TestLotus;
beforeAll(async () => {
  lotus = await startTestLotus();
  await lotus.database.query(REPORTS);
});
afterAll(() => lotus.stop());

/** More reports than a statement is repeated. */
const ALWAYS = 1_000;

/** Orders of a user in `testing.reports` fail the stored number of times. A sequence counts, because a rollback does not reset it. */
const REPORTS = `
  create schema testing;
  create table testing.reports (user_id uuid primary key, state text, message text, times int);
  create function testing.report() returns trigger language plpgsql security definer as $$
    declare r testing.reports;
    begin
      select * into r from testing.reports where user_id = new.user_id;
      if found and nextval(format('testing.%I', 'count ' || new.user_id)) <= r.times then
        raise exception '%', r.message using errcode = r.state;
      end if;
      return new;
    end $$;
  create trigger report before insert on "order".orders for each row execute function testing.report()`;

let reporting: Promise<unknown> = Promise.resolve();

/**
 * Makes the next orders of a user fail. Concurrent calls share one connection, one after the other.
 * @param state the SQLSTATE
 * @param times how many orders
 */
async function report(user: TestUser, state: string, times: number, message = "reported by a test"): Promise<void> {
  reporting = reporting
    .then(() =>
      lotus.database.query(
        `drop sequence if exists testing."count ${user.id}"; create sequence testing."count ${user.id}"`,
      ),
    )
    .then(() =>
      lotus.database.query(
        `insert into testing.reports (user_id, state, message, times) values ($1, $2, $3, $4)
     on conflict (user_id) do update set state = excluded.state, message = excluded.message, times = excluded.times`,
        [user.id, state, message, times],
      ),
    );
  await reporting;
}

const pay = (user: TestUser, key?: string) =>
  user.call("POST /order/pay?idSubscription=1", key === undefined ? {} : { headers: { "idempotency-key": key } });

describe("an error that the database reports", () => {
  it("and that rolled the payment back: it is repeated, and answered 503 when the error stays", async () => {
    const states = {
      "a deadlock": "40P01",
      "a shutdown": "57P01",
      "too many connections": "53300",
      "a full disk": "53100",
      "no memory": "53200",
      "a read-only server": "25006",
      "a refused login": "28000",
      "a missing database": "3D000",
      "a disk that cannot be read": "58030",
      "an internal error": "XX000",
    };
    const outcomes = Object.entries(states).map(async ([error, state]) => {
      const user = await newUser(lotus, 100);
      await report(user, state, 2);
      const repeated = await pay(user);
      await report(user, state, ALWAYS);
      const { status, headers, body } = await pay(user);
      await report(user, state, 0);
      const { balance } = (await user.call("GET /billing/balance")).body;
      return [error, repeated.status, status, body.code, headers.get("retry-after"), balance];
    });
    expect(await Promise.all(outcomes)).toEqual(
      Object.keys(states).map((error) => [error, 200, 503, "unavailable", "1", 90]),
    );
  });

  it.each([
    ["a statement that a pooler's server does not know", "26000", "prepared statement does not exist"],
    ["a statement that a pooler's server knows already", "42P05", "prepared statement already exists"],
    ["a table that was changed under a statement", "0A000", "cached plan must not change result type"],
  ])("%s: the payment without a key is sent once more", async (_, state, message) => {
    const user = await newUser(lotus, 100);
    await report(user, state, 1, message);
    expect((await pay(user)).status).toBe(200);
    await report(user, state, ALWAYS, message);
    expect((await pay(user)).status).toBe(500);
    await report(user, state, 0);
  });

  it.each([
    ["a statement timeout", "57014"],
    ["a row that stays locked", "55P03"],
  ])("%s: the payment is answered 503", async (_, state) => {
    const user = await newUser(lotus, 100);
    await report(user, state, ALWAYS);
    const { status, headers, body } = await pay(user);
    expect([status, body.code, headers.get("retry-after")]).toEqual([503, "unavailable", "1"]);
    await report(user, state, 0);
    expect((await pay(user)).status).toBe(200);
  });

  it("a violated constraint: the payment is answered 500 at once", async () => {
    const user = await newUser(lotus, 100);
    await report(user, "23514", 1);
    expect((await pay(user)).status).toBe(500);
    expect((await pay(user)).status).toBe(200);
  });

  it("a pooler that lost its server: only a payment with a key is repeated", async () => {
    const user = await newUser(lotus, 100);
    await report(user, "08P01", 1);
    const { status, body } = await pay(user);
    expect([status, body.code]).toEqual([503, "outcome-unknown"]);
    await report(user, "08P01", 1);
    expect((await pay(user, randomUUID())).status).toBe(200);
  });

  it("a pooler that keeps losing its server: the outcome of a payment with a key is unknown", async () => {
    const user = await newUser(lotus, 100);
    const key = randomUUID();
    await report(user, "08006", ALWAYS);
    const { status, body } = await pay(user, key);
    expect([status, body.code]).toEqual([503, "outcome-unknown"]);
    await report(user, "08006", 0);
    expect((await pay(user, key)).status).toBe(200);
    expect((await user.call("GET /billing/balance")).body).toEqual({ balance: 90 });
  });
});

describe("a table that is changed beside a running function", () => {
  it("makes no request fail", async () => {
    const user = await newUser(lotus, 100);
    const list = async () => (await user.call("GET /order/list")).status;
    expect(await list()).toBe(200);
    await lotus.database.query('alter table "order".orders alter subscription_id type bigint');
    expect([await list(), await list()]).toEqual([200, 200]);
    await lotus.database.query('alter table "order".orders alter subscription_id type int');
    expect([await list(), await list()]).toEqual([200, 200]);
  });
});
