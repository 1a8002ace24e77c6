import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { call, newUser, startTestLotus, type TestLotus } from "../../scripts/testing/lotus.ts";

let lotus: TestLotus;
beforeAll(async () => {
  lotus = await startTestLotus();
});
afterAll(() => lotus.stop());

describe("GET /order/subscriptions", () => {
  it("lists the subscriptions without a token", async () => {
    const { status, body } = await call(lotus, "GET /order/subscriptions");
    expect([status, body]).toEqual([
      200,
      [
        { id: 1, name: "daily", price: 10 },
        { id: 2, name: "monthly", price: 95 },
        { id: 3, name: "yearly", price: 1200 },
      ],
    ]);
  });
});

describe("POST /order/create", () => {
  it("charges the exact price, records the order and notifies the user", async () => {
    const user = await newUser(lotus, "20000000.3");
    for (const [body, price, balance] of [
      ['{"price":0.1}', 0.1, 20000000.2],
      ['{"price":"0.2"}', 0.2, 20000000],
      ['{"price":12345678.9}', 12345678.9, 7654321.1],
      ['{"price":1.00}', 1, 7654320.1],
      ['{"price":"0.10","more":1}', 0.1, 7654320],
      ['\ufeff{"price":20,"price":20}', 20, 7654300],
    ] as const) {
      const answer = await user.call("POST /order/create", { body });
      expect([body, answer.status, answer.body]).toEqual([
        body,
        201,
        {
          order: {
            id: expect.any(String),
            idSubscription: null,
            price,
            status: "paid",
            createdAt: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/),
          },
          balance,
        },
      ]);
      expect((await user.call("GET /order/list?limit=1")).body).toEqual([answer.body.order]);
      expect((await user.call("GET /billing/history?limit=1")).body).toMatchObject([
        { kind: "charge", amount: price, balanceAfter: balance, orderId: answer.body.order.id },
      ]);
      expect((await user.call("GET /notification?limit=1")).body[0].message).toBe(
        `Hello! You pay for order. Order cost amount ${price}. You balance after ${balance}`,
      );
    }
  });

  it("refuses an order above the balance, keeps the balance, records the order and notifies the user", async () => {
    const user = await newUser(lotus, 10);
    const refused = await user.call("POST /order/create", { body: { price: "10.01" } });
    expect([refused.status, refused.body]).toMatchObject([400, { code: "insufficient-funds", balance: 10 }]);
    expect(refused.body.order).toMatchObject({ price: 10.01, status: "refused" });
    expect((await user.call("GET /billing/balance")).body).toEqual({ balance: 10 });
    expect((await user.call("GET /order/list")).body).toEqual([refused.body.order]);
    expect((await user.call("GET /notification?limit=1")).body[0].message).toBe(
      "Hello! You cannot pay for order. Order cost amount 10.01. You balance 10",
    );
  });

  it("refuses an invalid price, names the field, and records nothing", async () => {
    const user = await newUser(lotus, 100);
    const prices = [
      ...["0", "-1", "-0", "0.001", "1.001", "1e1", "1E+1", "10.0e0", "1000000000.01", `1${"0".repeat(40)}`],
      ...[
        '"0"',
        '"-1"',
        '"1e1"',
        '"+5"',
        '" 5"',
        '"5 "',
        '"0x10"',
        '"NaN"',
        '""',
        '"١"',
        '"05"',
        '"5\\u0000"',
        '"1,5"',
      ],
      ...["null", "true", "[]", "[10]", "{}", '{"text":"10"}', '{"__proto__":{"text":"10"}}', '"1; drop table x"'],
    ];
    for (const price of prices) {
      const { status, body } = await user.call("POST /order/create", { body: `{"price":${price}}` });
      expect([price, status, body.code, body.errors?.[0]?.field]).toEqual([price, 400, "invalid-request", "price"]);
      expect(body.errors).toHaveLength(1);
    }
    expect((await user.call("GET /order/list")).body).toEqual([]);
    expect((await user.call("GET /billing/balance")).body).toEqual({ balance: 100 });
  });
});
