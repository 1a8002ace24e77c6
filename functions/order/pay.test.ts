import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  eventually,
  holdAccount,
  newUser,
  settled,
  startTestLotus,
  type TestLotus,
} from "../../scripts/testing/lotus.ts";

let lotus: TestLotus;
beforeAll(async () => {
  lotus = await startTestLotus();
});
afterAll(() => lotus.stop());

const messages = (body: { message: string }[]) => body.map(({ message }) => message);

describe("POST /order/pay", () => {
  it("charges for the subscription, records the order and notifies the user", async () => {
    const user = await newUser(lotus, 900);
    const paid = await user.call("POST /order/pay?idSubscription=1");
    expect(paid.status).toBe(200);
    expect(paid.body).toMatchObject({ balance: 890, order: { idSubscription: 1, price: 10, status: "paid" } });
    expect((await user.call("GET /billing/balance")).body).toEqual({ balance: 890 });
    expect((await user.call("GET /order/list")).body).toEqual([paid.body.order]);
    const { body } = await user.call("GET /notification");
    expect(messages(body)[0]).toBe("Hello! You pay for order. Order cost amount 10. You balance after 890");
    expect(body[0].email).toBe(user.email);
  });

  it("refuses an order above the balance, keeps the balance, and notifies the user", async () => {
    const user = await newUser(lotus, 890);
    const refused = await user.call("POST /order/pay?idSubscription=3");
    expect(refused.status).toBe(400);
    expect(refused.headers.get("content-type")).toBe("application/problem+json");
    expect(refused.body).toMatchObject({ code: "insufficient-funds", status: 400, balance: 890 });
    expect((await user.call("GET /billing/balance")).body).toEqual({ balance: 890 });
    expect((await user.call("GET /order/list")).body).toMatchObject([{ status: "refused", price: 1200 }]);
    const { body } = await user.call("GET /notification");
    expect(messages(body)[0]).toBe("Hello! You cannot pay for order. Order cost amount 1200. You balance 890");
  });

  it.each(["0", "99", "999999999"])("refuses the unknown subscription %s", async (id) => {
    const user = await newUser(lotus, 100);
    const { status, body } = await user.call(`POST /order/pay?idSubscription=${id}`);
    expect([status, body.code]).toEqual([404, "unknown-subscription"]);
    expect((await user.call("GET /order/list")).body).toEqual([]);
  });

  it.each([
    "",
    "?idSubscription=",
    "?idSubscription=1;drop",
    "?idSubscription=-1",
    "?idSubscription=1.0",
    "?idSubscription=1&idSubscription=1",
  ])("refuses %j and names the field", async (search) => {
    const user = await newUser(lotus);
    const { status, body } = await user.call(`POST /order/pay${search}`);
    expect([status, body.code]).toEqual([400, "invalid-request"]);
    expect(body.errors[0].field).toBe("idSubscription");
  });

  it("pays exactly fifty of two hundred concurrent orders when the balance covers fifty", async () => {
    const user = await newUser(lotus, 500);
    const answers = await Promise.all(Array.from({ length: 200 }, () => user.call("POST /order/pay?idSubscription=1")));
    expect(answers.filter(({ status }) => status === 200)).toHaveLength(50);
    expect(answers.filter(({ status, body }) => status === 400 && body.code === "insufficient-funds")).toHaveLength(
      150,
    );
    expect((await user.call("GET /billing/balance")).body).toEqual({ balance: 0 });
    await settled(lotus);
    const { rows } = await lotus.database.query(
      `select (select count(*)::int from billing.transfers where debit_account = $1 and kind = 'charge') as charges,
        (select count(*)::int from notification.notifications where user_id = $1 and message like '%pay for order%') as notifications`,
      [user.id],
    );
    expect(rows).toEqual([{ charges: 50, notifications: 200 }]);
  });

  it("does not wait for the account of another user", async () => {
    const [busy, other] = [await newUser(lotus, 1000), await newUser(lotus, 10)];
    const held = await holdAccount(lotus, busy);
    const waiting = Array.from({ length: 50 }, () => busy.call("POST /order/pay?idSubscription=1"));
    await eventually("a payment waits for the account", async () => (await held.waiting()) === 1);
    expect((await other.call("POST /order/pay?idSubscription=1")).body).toMatchObject({ balance: 0 });
    await held.release();
    expect((await Promise.all(waiting)).filter(({ status }) => status === 200)).toHaveLength(50);
    expect((await busy.call("GET /billing/balance")).body).toEqual({ balance: 500 });
  });

  describe("with an Idempotency-Key", () => {
    const keyed = (key: string) => ({ headers: { "idempotency-key": key } });

    it("returns the first answer, and has one effect", async () => {
      const user = await newUser(lotus, 900);
      const first = await user.call("POST /order/pay?idSubscription=1", keyed("a"));
      const second = await user.call("POST /order/pay?idSubscription=1", keyed("a"));
      expect([second.status, second.body]).toEqual([first.status, first.body]);
      expect((await user.call("GET /billing/balance")).body).toEqual({ balance: 890 });
    });

    it("returns the first refusal, although the balance suffices by then", async () => {
      const user = await newUser(lotus);
      const first = await user.call("POST /order/pay?idSubscription=1", keyed("a"));
      await user.call("POST /billing/add-money?money=1000");
      const second = await user.call("POST /order/pay?idSubscription=1", keyed("a"));
      expect(first.status).toBe(400);
      expect([second.status, second.body]).toEqual([first.status, first.body]);
      expect((await user.call("GET /billing/balance")).body).toEqual({ balance: 1000 });
    });

    it("refuses the key for another request, of this endpoint or another", async () => {
      const user = await newUser(lotus, 900);
      await user.call("POST /order/pay?idSubscription=1", keyed("a"));
      for (const request of ["POST /order/pay?idSubscription=2", "POST /order/create"]) {
        const options = request === "POST /order/create" ? { ...keyed("a"), body: { price: 10 } } : keyed("a");
        const { status, body } = await user.call(request, options);
        expect([status, body.code]).toEqual([422, "idempotency-key-reused"]);
      }
      expect((await user.call("GET /billing/balance")).body).toEqual({ balance: 890 });
    });

    it("belongs to its user", async () => {
      const [one, other] = [await newUser(lotus, 100), await newUser(lotus, 100)];
      await one.call("POST /order/pay?idSubscription=1", keyed("a"));
      expect((await other.call("POST /order/pay?idSubscription=2", keyed("a"))).body).toMatchObject({ balance: 5 });
    });

    it("gives concurrent requests one effect and one answer", async () => {
      const user = await newUser(lotus, 900);
      const answers = await Promise.all(
        Array.from({ length: 20 }, () => user.call("POST /order/pay?idSubscription=1", keyed("a"))),
      );
      expect(new Set(answers.map(({ status, body }) => JSON.stringify([status, body]))).size).toBe(1);
      expect((await user.call("GET /billing/balance")).body).toEqual({ balance: 890 });
    });

    it.each(["", "a b", "é", "x".repeat(256)])("must be visible ASCII of a bounded length: %j", async (key) => {
      const user = await newUser(lotus, 900);
      const { status, body } = await user.call("POST /order/pay?idSubscription=1", keyed(key));
      expect([status, body.errors?.[0]?.field]).toEqual([400, "Idempotency-Key"]);
    });
  });
});
