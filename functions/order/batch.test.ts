/** Payments in shared statements, with the SQL of the ledger, in the process of the test. */
import { randomUUID } from "node:crypto";
import { Client } from "pg";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { REQUEST_MILLISECONDS_MAX } from "#kernel/limits";
import { beginSpan } from "#kernel/telemetry";
import { expectInvariants } from "../../scripts/testing/invariants.ts";
import { newUser, startTestLotus, type TestLotus, type TestUser } from "../../scripts/testing/lotus.ts";

const BATCH_CALLS = 6;
/** A trigger refuses orders of this price, in minor units. */
const REFUSED_PRICE = 666n;

let lotus: TestLotus;
let users: TestUser[];
let placeOrder: typeof import("./order.ts").placeOrder;
let closeDatabase: () => Promise<void>;

beforeAll(async () => {
  lotus = await startTestLotus();
  users = await Promise.all(Array.from({ length: BATCH_CALLS + 1 }, () => newUser(lotus, 1000)));
  await lotus.database.query(`
    create schema testing;
    create table testing.statements (orders bigint not null);
    create function testing.refuse() returns trigger language plpgsql security definer as $$
      begin
        if new.price = ${REFUSED_PRICE} then raise 'a failure that a test injects'; end if;
        return new;
      end $$;
    create function testing.count() returns trigger language plpgsql security definer as $$
      begin
        insert into testing.statements (orders) select count(*) from inserted;
        return null;
      end $$;
    create trigger refuse before insert on "order".orders for each row execute function testing.refuse();
    create trigger count after insert on "order".orders referencing new table as inserted
      for each statement execute function testing.count()`);
  Object.assign(process.env, lotus.manifests.functions.get("order-pay"));
  // Fresh modules read the settings again: this process has read them before it knew the database.
  vi.resetModules();
  vi.spyOn(process.stdout, "write").mockReturnValue(true);
  ({ placeOrder } = await import("./order.ts"));
  ({ closeDatabase } = await import("#kernel/database"));
});
afterAll(async () => {
  await closeDatabase();
  await lotus.stop();
});

/** Places an order. Resolves to "paid", or to the message of the failure. The relay publishes its event. */
function pay(user: TestUser, price: bigint): Promise<string> {
  const { id, email } = user;
  const idempotency = { key: randomUUID(), fingerprint: `price ${price}`, repetition: "keyed" as const };
  const publish = () => undefined;
  const now = performance.now();
  const span = beginSpan("test", "server", undefined, now);
  return placeOrder(
    { price },
    {
      user: { id, email },
      idempotency,
      source: "order-pay",
      traceparent: "",
      publish,
      span,
      deadline: now + REQUEST_MILLISECONDS_MAX,
    },
  ).then(
    (placed) => ("order" in placed ? placed.order.status : placed.code),
    (error: Error) => error.message,
  );
}

/** Counts the charges of each user. */
async function charges(payers: readonly TestUser[]): Promise<number[]> {
  const { rows } = await lotus.database.query<{ charges: string }>(
    `select count(t.id) as charges from unnest($1::uuid[]) with ordinality u (id, n)
     left join billing.transfers t on t.kind = 'charge' and t.debit_account = u.id group by u.n order by u.n`,
    [payers.map(({ id }) => id)],
  );
  return rows.map((row) => Number(row.charges));
}

describe("a batch of payments", () => {
  it("is one statement", async () => {
    await lotus.database.query("delete from testing.statements");
    expect(new Set(await Promise.all(users.map((user) => pay(user, 1n))))).toEqual(new Set(["paid"]));
    const { rows } = await lotus.database.query<{ orders: string }>(
      "select orders from testing.statements order by orders",
    );
    expect(rows.map(({ orders }) => Number(orders))).toEqual([1, BATCH_CALLS]);
  });

  it.each(Array.from({ length: BATCH_CALLS }, (_, place) => place))(
    "charges all other users when the payment in position %i fails",
    async (place) => {
      const [first, ...batch] = users as [TestUser, ...TestUser[]];
      const before = await charges(batch);
      const outcomes = [pay(first, 1n), ...batch.map((user, index) => pay(user, index === place ? REFUSED_PRICE : 1n))];
      const [, ...answers] = await Promise.all(outcomes);
      expect(answers).toEqual(batch.map((_, index) => (index === place ? "a failure that a test injects" : "paid")));
      const made = (await charges(batch)).map((count, index) => count - (before[index] ?? 0));
      expect(made).toEqual(batch.map((_, index) => (index === place ? 0 : 1)));
    },
  );

  it("keeps the ledger correct and gives each outcome one notification", async () => {
    await lotus.database.query("update events.outbox set attempted_at = '-infinity'");
    await lotus.tick();
    await expectInvariants(lotus);
  });
});

describe("payments while two accounts are locked", () => {
  const LOCKED_MILLISECONDS = 4_000;

  /** Pays repeatedly from all users for a while. The bench row `locked` measures the rate. */
  async function keepPaying(payers: readonly TestUser[], milliseconds: number): Promise<void> {
    const until = performance.now() + milliseconds;
    await Promise.all(
      payers.map(async (user) => {
        do expect(await pay(user, 1n)).toBe("paid");
        while (performance.now() < until);
      }),
    );
  }

  it("continue for all other users, and charge a locked user exactly when they answer with success", async () => {
    const others = await Promise.all(Array.from({ length: 14 }, () => newUser(lotus, 1_000_000)));
    const locked = users.slice(0, 2);
    const before = await charges(locked);
    const holder = new Client({ connectionString: lotus.adminUrl });
    await holder.connect();
    await holder.query("begin");
    await holder.query("select from billing.accounts where id = any($1) for update", [locked.map(({ id }) => id)]);
    const waiting = locked.map((user) => Promise.all(Array.from({ length: 4 }, () => pay(user, 1n))));
    await keepPaying(others, LOCKED_MILLISECONDS);
    await holder.query("rollback");
    await holder.end();
    const answers = await Promise.all(waiting);
    for (const answer of answers.flat()) expect(["paid", "unavailable"]).toContain(answer);
    const made = (await charges(locked)).map((count, index) => count - (before[index] ?? 0));
    expect(made).toEqual(answers.map((each) => each.filter((answer) => answer === "paid").length));
  }, 60_000);
});
