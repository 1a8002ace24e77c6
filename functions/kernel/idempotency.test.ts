import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { findFunctions } from "../../scripts/project/functions.ts";
import { expectInvariants } from "../../scripts/testing/invariants.ts";
import { newUser, settled, startTestLotus, type TestLotus } from "../../scripts/testing/lotus.ts";

let lotus: TestLotus;
beforeAll(async () => {
  lotus = await startTestLotus();
});
afterAll(() => lotus.stop());

const keyed = (key: string, body?: object) => ({ headers: { "idempotency-key": key }, ...(body && { body }) });

const serviceOf = (request: string) => request.split("/")[1];

/** The calls that move money, except order/pay, which has its own test. The account has 900 before. */
const MOVES = [
  {
    request: "POST /billing/add-money?money=10",
    status: 200,
    balance: 910,
    again: "POST /billing/add-money?money=10.00",
  },
  { request: "POST /billing/withdraw-money?money=10", status: 200, balance: 890 },
  { request: "POST /order/create", body: { price: 10 }, status: 201, balance: 890, sameBody: { price: "10.00" } },
];

describe("an Idempotency-Key", () => {
  it("is accepted by each endpoint that moves money, and by no other endpoint", async () => {
    const idempotent = (await findFunctions()).flatMap((fn) =>
      fn.kind === "endpoint" && fn.description.idempotent ? [fn.name] : [],
    );
    expect(idempotent).toEqual([
      "billing-add-money",
      "billing-transfer",
      "billing-withdraw-money",
      "order-create",
      "order-pay",
      "order-refund",
    ]);
  });

  describe.each(MOVES)("with $request", ({ request, body, status, balance, again = request, sameBody = body }) => {
    it("returns the first answer, and has one effect, also when the amount is written differently", async () => {
      const user = await newUser(lotus, 900);
      const first = await user.call(request, keyed("a", body));
      expect([first.status, first.body.balance]).toEqual([status, balance]);
      const second = await user.call(again, keyed("a", sameBody));
      expect([second.status, second.body]).toEqual([first.status, first.body]);
      expect((await user.call("GET /billing/balance")).body).toEqual({ balance });
      await settled(lotus);
      // A welcome, the 900, and one more.
      expect((await user.call("GET /notification")).body).toHaveLength(3);
    });

    it("gives concurrent requests one effect and one answer", async () => {
      const user = await newUser(lotus, 900);
      const answers = await Promise.all(Array.from({ length: 10 }, () => user.call(request, keyed("a", body))));
      expect(new Set(answers.map((answer) => JSON.stringify([answer.status, answer.body]))).size).toBe(1);
      expect((await user.call("GET /billing/balance")).body).toEqual({ balance });
    });

    it("is refused for another request of the service, and belongs to its user", async () => {
      const [user, other] = [await newUser(lotus, 900), await newUser(lotus, 900)];
      await user.call(request, keyed("a", body));
      const others: readonly (readonly [request: string, body?: object | undefined])[] = [
        ["POST /billing/add-money?money=11"],
        ["POST /billing/withdraw-money?money=11"],
        ["POST /order/create", { price: 11 }],
        ["POST /order/pay?idSubscription=1"],
        ...MOVES.filter((move) => move.request !== request).map((move) => [move.request, move.body] as const),
      ];
      for (const [elsewhere, given] of others.filter(([one]) => serviceOf(one) === serviceOf(request))) {
        const answer = await user.call(elsewhere, keyed("a", given));
        expect([elsewhere, answer.status, answer.body.code]).toEqual([elsewhere, 422, "idempotency-key-reused"]);
      }
      expect((await user.call("GET /billing/balance")).body).toEqual({ balance });
      expect((await other.call(request, keyed("a", body))).body.balance).toBe(balance);
    });
  });

  it("belongs to its service: the same key at another service is another request", async () => {
    const user = await newUser(lotus, 900);
    expect((await user.call("POST /billing/add-money?money=10", keyed("a"))).body.balance).toBe(910);
    expect((await user.call("POST /order/create", keyed("a", { price: 10 }))).body.balance).toBe(900);
    expect((await user.call("POST /billing/add-money?money=10", keyed("a"))).body.balance).toBe(910);
    expect((await user.call("GET /billing/balance")).body).toEqual({ balance: 900 });
  });

  it.each([
    { request: "POST /billing/withdraw-money?money=10" },
    { request: "POST /order/create", body: { price: 10 } },
  ])("returns the first refusal of $request, although the balance suffices by then", async ({ request, body }) => {
    const user = await newUser(lotus);
    const first = await user.call(request, keyed("a", body));
    expect([first.status, first.body.code]).toEqual([400, "insufficient-funds"]);
    await user.call("POST /billing/add-money?money=1000");
    const second = await user.call(request, keyed("a", body));
    expect([second.status, second.body]).toEqual([first.status, first.body]);
    expect((await user.call("GET /billing/balance")).body).toEqual({ balance: 1000 });
  });

  it("stays unused after an invalid request", async () => {
    const user = await newUser(lotus, 900);
    expect((await user.call("POST /order/create", keyed("a", { price: 0 }))).status).toBe(400);
    expect((await user.call("POST /order/create", keyed("a", { price: 10 }))).body.balance).toBe(890);
  });

  it("may be up to 255 characters of visible ASCII", async () => {
    const user = await newUser(lotus, 900);
    const visible = Array.from({ length: 94 }, (_, n) => String.fromCharCode(0x21 + n)).join("");
    for (const key of [visible, "x".repeat(255)]) {
      const first = await user.call("POST /billing/add-money?money=1", keyed(key));
      expect([first.status, first.body]).toEqual([
        200,
        (await user.call("POST /billing/add-money?money=1", keyed(key))).body,
      ]);
    }
    for (const key of ["x".repeat(256), "a b", "\u00e9"]) {
      const { status, body } = await user.call("POST /billing/add-money?money=1", keyed(key));
      expect([key, status, body.errors?.[0]?.field]).toEqual([key, 400, "Idempotency-Key"]);
    }
    expect((await user.call("GET /billing/balance")).body).toEqual({ balance: 902 });
  });

  describe("that the relay has deleted", () => {
    /** Lets a week pass for all keys. */
    async function forget(): Promise<void> {
      await lotus.database.query("update events.idempotency_keys set created_at = now() - interval '7 days 1 minute'");
      await lotus.tick();
      expect((await lotus.database.query("select from events.idempotency_keys")).rowCount).toBe(0);
    }

    it("is refused with 409 by every endpoint that moves money, and has no effect", async () => {
      const [user, recipient] = [await newUser(lotus, 900), await newUser(lotus)];
      const { order } = (await user.call("POST /order/pay?idSubscription=1")).body;
      const requests: readonly (readonly [request: string, body?: object])[] = [
        ["POST /billing/add-money?money=10"],
        ["POST /billing/withdraw-money?money=10"],
        [`POST /billing/transfer?money=10&to=${recipient.email}`],
        ["POST /order/pay?idSubscription=1"],
        ["POST /order/create", { price: 10 }],
        [`POST /order/refund?id=${order.id}`],
      ];
      const answers = () =>
        Promise.all(requests.map(([request, body]) => user.call(request, keyed(request.slice(5, 25), body))));
      expect((await answers()).map(({ status }) => status)).toEqual([200, 200, 200, 200, 201, 200]);
      const before = (await user.call("GET /billing/balance")).body;
      await forget();
      expect((await answers()).map(({ status, body }) => [status, body.code])).toEqual(
        requests.map(() => [409, "idempotency-key-expired"]),
      );
      expect((await user.call("GET /billing/balance")).body).toEqual(before);
      await expectInvariants(lotus);
    });
  });

  it("does not keep a refusal whose cause may disappear", async () => {
    const user = await newUser(lotus, 100);
    const again = () => user.call("POST /order/pay?idSubscription=9", keyed("a"));
    const unknown = await again();
    expect([unknown.status, unknown.body.code]).toEqual([404, "unknown-subscription"]);
    await lotus.database.query(`insert into "order".subscriptions (id, name, price) values (9, 'weekly', 100)`);
    const paid = await again();
    expect([paid.status, paid.body.balance]).toEqual([200, 99]);
    await lotus.database.query(`update "order".subscriptions set price = 200 where id = 9`);
    expect((await again()).body).toEqual(paid.body);
  });
});
