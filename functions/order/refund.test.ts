import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { deposit } from "../../scripts/testing/deposit.ts";
import { expectInvariants } from "../../scripts/testing/invariants.ts";
import { newUser, startTestLotus, type TestLotus, type TestUser } from "../../scripts/testing/lotus.ts";

let lotus: TestLotus;
beforeAll(async () => {
  lotus = await startTestLotus();
});
afterAll(() => lotus.stop());

const keyed = (key: string) => ({ headers: { "idempotency-key": key } });
const pay = async (user: TestUser) => (await user.call("POST /order/pay?idSubscription=1")).body.order;
const newest = async (of: TestUser) => (await of.call("GET /notification?limit=1")).body[0].message;

describe("POST /order/refund", () => {
  it("returns the price of the order, changes its status and notifies the user", async () => {
    const user = await newUser(lotus, 900);
    const order = await pay(user);
    const refunded = { ...order, status: "refunded" };
    const answer = await user.call(`POST /order/refund?id=${order.id}`);
    expect([answer.status, answer.body]).toEqual([200, { order: refunded, balance: 900 }]);
    expect((await user.call("GET /billing/balance")).body).toEqual({ balance: 900 });
    expect((await user.call("GET /order/list")).body).toEqual([refunded]);
    expect((await user.call(`GET /order/get?id=${order.id}`)).body).toEqual(refunded);
    expect((await user.call("GET /billing/history?limit=1")).body).toMatchObject([
      { number: 3, kind: "refund", amount: 10, balanceAfter: 900, reference: order.id, orderId: order.id },
    ]);
    expect(await newest(user)).toBe(
      "Hello! You receive a refund for order. Order cost amount 10. You balance after 900",
    );
    await expectInvariants(lotus);
  });

  it("returns the first answer to a second refund, which has no effect", async () => {
    const user = await newUser(lotus, 900);
    const order = await pay(user);
    const first = await user.call(`POST /order/refund?id=${order.id}`);
    await user.call("POST /billing/add-money?money=50");
    for (const options of [{}, keyed("a"), keyed("a"), keyed("b")]) {
      const again = await user.call(`POST /order/refund?id=${order.id}`, options);
      expect([again.status, again.body]).toEqual([first.status, first.body]);
    }
    expect((await user.call("GET /billing/balance")).body).toEqual({ balance: 950 });
    await expectInvariants(lotus);
  });

  it("has one effect when twenty requests arrive together", async () => {
    const user = await newUser(lotus, 900);
    const order = await pay(user);
    const answers = await Promise.all(
      Array.from({ length: 20 }, (_, n) =>
        user.call(`POST /order/refund?id=${order.id}`, n % 2 === 0 ? {} : keyed(`key-${n % 6}`)),
      ),
    );
    const [first] = answers;
    for (const { status, body } of answers) expect([status, body]).toEqual([200, first?.body]);
    expect((await user.call("GET /billing/balance")).body).toEqual({ balance: 900 });
    await expectInvariants(lotus);
  });

  it("refuses an order that is unknown, of another user, or not paid", async () => {
    const [user, other] = [await newUser(lotus, 5), await newUser(lotus, 100)];
    const refused = (await user.call("POST /order/pay?idSubscription=1")).body.order;
    const theirs = await pay(other);
    for (const id of [randomUUID(), theirs.id]) {
      const { status, body } = await user.call(`POST /order/refund?id=${id}`, keyed("a"));
      expect([status, body.code]).toEqual([404, "unknown-order"]);
    }
    const { status, body } = await user.call(`POST /order/refund?id=${refused.id}`);
    expect([status, body.code]).toEqual([409, "order-not-paid"]);
    for (const search of ["", "?id=", "?id=1", `?id=${theirs.id}x`]) {
      const answer = await user.call(`POST /order/refund${search}`);
      expect([search, answer.status, answer.body.errors?.[0]?.field]).toEqual([search, 400, "id"]);
    }
    expect((await user.call("GET /billing/balance")).body).toEqual({ balance: 5 });
    await expectInvariants(lotus);
  });

  // Last: a deposit without a notification would break the invariants that the other tests expect.
  it("refuses a refund that would exceed the limit of the account, and allows it later", async () => {
    const user = await newUser(lotus, 10);
    const order = await pay(user);
    await deposit(lotus.database, [user.id], 999_999_999_999_500n);
    const refused = await user.call(`POST /order/refund?id=${order.id}`);
    expect([refused.status, refused.body.code, refused.body.balance]).toEqual([400, "balance-limit", 9999999999995]);
    expect(await newest(user)).toBe(
      "Hello! You cannot receive a refund for order. Order cost amount 10. You balance 9999999999995",
    );
    await user.call("POST /billing/withdraw-money?money=100");
    expect((await user.call(`POST /order/refund?id=${order.id}`)).body.balance).toBe(9999999999905);
  });
});

describe("GET /order/get", () => {
  it("shows an order of the caller only", async () => {
    const [user, other] = [await newUser(lotus, 100), await newUser(lotus)];
    const order = await pay(user);
    const shown = await user.call(`GET /order/get?id=${order.id}`);
    expect([shown.status, shown.body]).toEqual([200, order]);
    for (const [caller, id] of [
      [other, order.id],
      [user, randomUUID()],
    ] as const) {
      const { status, body } = await caller.call(`GET /order/get?id=${id}`);
      expect([status, body.code]).toEqual([404, "unknown-order"]);
    }
    expect((await user.call("GET /order/get?id=x")).body.errors).toEqual([
      { field: "id", detail: "must be the id of an order, a UUID" },
    ]);
  });
});
