/** The ledger's functions and constraints in the database, with one call and with many calls in a statement. */
import { randomUUID } from "node:crypto";
import { Client } from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { verifyLedger } from "../../scripts/database/verify-ledger.ts";
import { deposit } from "../../scripts/testing/deposit.ts";
import { startTestLotus, type TestLotus } from "../../scripts/testing/lotus.ts";

let lotus: TestLotus;
beforeAll(async () => {
  lotus = await startTestLotus();
});
afterAll(() => lotus.stop());

interface Placed {
  readonly position: number;
  readonly answer: { readonly outcome: string; readonly balance: string; readonly order?: { readonly id: string } };
  readonly emitted: readonly unknown[];
}

/** Opens accounts with money on them, in minor units. */
async function accounts(...money: number[]): Promise<string[]> {
  const ids = money.map(() => randomUUID());
  await lotus.database.query("select billing.open_account(id, gen_random_uuid()) from unnest($1::uuid[]) id", [ids]);
  for (const [index, amount] of money.entries())
    if (amount > 0) await deposit(lotus.database, [ids[index] ?? ""], amount);
  return ids;
}

/** Places orders of a price in one statement. */
async function place(waits: boolean, calls: readonly { user: string; price: number; key?: string; of?: string }[]) {
  const { rows } = await lotus.database.query<Placed>(
    `select * from "order".place($1, $2, $3, $4, $5, 'order-create', $6, $7, $8)`,
    [
      waits,
      calls.map(({ user }) => user),
      calls.map(() => "ada@example.com"),
      calls.map(({ key }) => key ?? null),
      calls.map(({ key, of, price }) => (key === undefined ? null : (of ?? `price ${price}`))),
      calls.map(() => null),
      calls.map(() => null),
      calls.map(({ price }) => price),
    ],
  );
  return rows;
}

it.each(["deposit", "withdrawal", "transfer"])("moves nothing in a %s without calls", async (kind) => {
  const { rows } = await lotus.database.query(
    "select * from billing.move_money($1, true, '{}', '{}', '{}', '{}', '{}', '{}', null, '{}')",
    [kind],
  );
  expect(rows).toEqual([]);
});

describe.each([
  ["waits for locked accounts", true],
  ["skips locked accounts", false],
])("a statement that %s", (_, waits) => {
  it("applies the calls of a user in their order; a refusal does not stop the next one", async () => {
    const [user = "", other = ""] = await accounts(1000, 500);
    const rows = await place(waits, [
      { user, price: 600 },
      { user, price: 600 },
      { user: other, price: 500 },
      { user, price: 400 },
      { user, price: 1 },
    ]);
    expect(rows.map(({ position, answer }) => [position, answer.outcome, Number(answer.balance)])).toEqual([
      [0, "done", 400],
      [1, "insufficient-funds", 400],
      [2, "done", 0],
      [3, "done", 0],
      [4, "insufficient-funds", 0],
    ]);
    expect(rows.every(({ emitted }) => emitted.length === 1)).toBe(true);
    expect(await verifyLedger(lotus.database)).toBeUndefined();
  });

  it("gives one effect and equal answers to calls with one key, and refuses the key for another request", async () => {
    const [user = ""] = await accounts(1000);
    const rows = await place(waits, [
      { user, price: 100, key: "a" },
      { user, price: 100, key: "a" },
      { user, price: 200, key: "a" },
      { user, price: 100, key: "b" },
    ]);
    expect(rows.map(({ answer, emitted }) => [answer.outcome, emitted.length])).toEqual([
      ["done", 1],
      ["done", 0],
      ["idempotency-key-reused", 0],
      ["done", 1],
    ]);
    expect(rows[1]?.answer).toEqual(rows[0]?.answer);
    const [again] = await place(waits, [{ user, price: 100, key: "a" }]);
    expect(again?.answer).toEqual(rows[0]?.answer);
    await lotus.database.query("delete from events.idempotency_keys where user_id = $1", [user]);
    const late = await place(waits, [
      { user, price: 100, key: "a" },
      { user, price: 50 },
    ]);
    expect(late.map(({ answer }) => answer.outcome)).toEqual(["idempotency-key-expired", "done"]);
    expect(await verifyLedger(lotus.database)).toBeUndefined();
  });
});

describe("a refund", () => {
  const refund = async (user: string, orders: readonly string[]) => {
    const nulls = orders.map(() => null);
    const { rows } = await lotus.database.query<Placed>(
      `select * from "order".refund(true, $1, $2, $3, $3, 'order-refund', $3, $4)`,
      [orders.map(() => user), orders.map(() => "ada@example.com"), nulls, orders],
    );
    return rows;
  };

  it("of one order twice in a statement has one effect and two equal answers", async () => {
    const [user = ""] = await accounts(1000);
    const [placed] = await place(true, [{ user, price: 600 }]);
    const order = placed?.answer.order?.id ?? "";
    const [first, second] = await refund(user, [order, order]);
    expect(first?.answer).toMatchObject({ outcome: "done", balance: 1000 });
    expect(second?.answer).toEqual(first?.answer);
    expect([first?.emitted.length, second?.emitted.length]).toEqual([1, 0]);
  });

  it("never returns the charge of another user, also when its caller does not check the order", async () => {
    const [user = "", other = ""] = await accounts(1000, 0);
    const [placed] = await place(true, [{ user, price: 600 }]);
    const refundToOther = lotus.database.query(
      "select billing.move_unchecked('order', 'refund', true, $1, array[null::uuid], array[null::bigint], $2, $3, $3, $3)",
      [[other], [placed?.answer.order?.id], [null]],
    );
    await expect(refundToOther).rejects.toThrow("has no charge");
  });
});

describe("a statement that skips locked accounts", () => {
  it("answers the calls of other accounts, and leaves out those of the locked account", async () => {
    const [locked = "", free = ""] = await accounts(1000, 1000);
    const holder = new Client({ connectionString: lotus.adminUrl });
    await holder.connect();
    await holder.query("begin");
    await holder.query("select from billing.accounts where id = $1 for update", [locked]);
    const rows = await place(false, [
      { user: locked, price: 1 },
      { user: free, price: 1 },
      { user: locked, price: 1 },
    ]);
    await holder.query("rollback");
    await holder.end();
    expect(rows.map(({ position }) => position)).toEqual([1]);
  });
});

describe("the database", () => {
  it.each([
    [
      "a second charge of an order",
      "23505",
      "insert into billing.transfers (id, kind, debit_account, credit_account, amount, reference, created_at) select gen_random_uuid(), kind, debit_account, credit_account, amount, reference, now() from billing.transfers where kind = 'charge' limit 1",
    ],
    ["an amount of 0", "23514", "update billing.transfers set amount = 0"],
    ["a transfer from an account to itself", "23514", "update billing.transfers set debit_account = credit_account"],
    ["a negative balance of a user", "23514", "update billing.accounts set balance = -1 where kind = 'user'"],
    [
      "a balance beyond the limit",
      "23514",
      "update billing.accounts set balance = 1000000000000000 where kind = 'user'",
    ],
    [
      "a change of the sum of all balances",
      "23000",
      "update billing.accounts set balance = balance + 1 where kind = 'revenue'",
    ],
    [
      "an account that is opened with money",
      "23000",
      "insert into billing.accounts (id, kind, balance) values (gen_random_uuid(), 'user', 1)",
    ],
    [
      "a gap between entries",
      "23000",
      "insert into billing.entries (account_id, number, transfer_id, amount, balance_after, hash) select account_id, number + 2, gen_random_uuid(), 1, 1, '' from billing.entries order by number desc limit 1",
    ],
    [
      "a second entry of a transfer for one account",
      "23505",
      "insert into billing.entries (account_id, number, transfer_id, amount, balance_after, hash) select account_id, number + 1, transfer_id, 1, 1, '' from billing.entries order by number desc limit 1",
    ],
  ])("refuses %s", async (_, code, statement) => {
    const [user = ""] = await accounts(1000);
    await place(true, [{ user, price: 10 }]);
    await expect(lotus.database.query(statement)).rejects.toMatchObject({ code });
  });
});
