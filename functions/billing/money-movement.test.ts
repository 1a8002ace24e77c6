import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { deposit } from "../../scripts/testing/deposit.ts";
import { newUser, startTestLotus, type TestLotus, type TestUser } from "../../scripts/testing/lotus.ts";

let lotus: TestLotus;
let user: TestUser;
beforeAll(async () => {
  lotus = await startTestLotus();
  user = await newUser(lotus);
});
afterAll(() => lotus.stop());

const add = (money: string, to = user) => to.call(`POST /billing/add-money?money=${money}`);
const withdraw = (money: string, from = user) => from.call(`POST /billing/withdraw-money?money=${money}`);
const balance = async (of = user) => (await of.call("GET /billing/balance")).body;
const newest = async (of: TestUser) => (await of.call("GET /notification?limit=1")).body[0].message;

describe("an account", () => {
  it("is empty right after registering", async () => {
    const { status, body } = await (await newUser(lotus)).call("GET /billing/balance");
    expect([status, body]).toEqual([200, { balance: 0 }]);
  });

  it("adds and withdraws money to the cent, and notifies the user of both", async () => {
    const ada = await newUser(lotus);
    for (const [move, money, held] of [
      [add, "0.1", "0.1"],
      [add, "0.2", "0.3"],
      [add, "10.50", "10.8"],
      [withdraw, "0.30", "10.5"],
      [add, "1000000000", "1000000010.5"],
      [withdraw, "0.01", "1000000010.49"],
      [withdraw, "1000000000.00", "10.49"],
      [withdraw, "10.49", "0"],
    ] as const) {
      const moved = await move(money, ada);
      expect([money, moved.status, moved.body]).toEqual([money, 200, { balance: Number(held) }]);
      expect(await balance(ada)).toEqual({ balance: Number(held) });
      const done = move === add ? "add money to" : "withdraw money from";
      expect(await newest(ada)).toBe(`Hello! You ${done} account. Amount ${Number(money)}. You balance after ${held}`);
    }
    const { body } = await ada.call("GET /billing/history");
    expect(body.slice(-3)).toMatchObject([
      { number: 3, kind: "deposit", amount: 10.5, balanceAfter: 10.8, orderId: null },
      { number: 2, kind: "deposit", amount: 0.2, balanceAfter: 0.3, orderId: null },
      { number: 1, kind: "deposit", amount: 0.1, balanceAfter: 0.1, orderId: null },
    ]);
  });

  it("refuses to withdraw more than the balance, keeps the balance and notifies the user", async () => {
    const ada = await newUser(lotus, "890.05");
    const refused = await withdraw("890.06", ada);
    expect(refused.headers.get("content-type")).toBe("application/problem+json");
    expect([refused.status, refused.body]).toEqual([
      400,
      {
        type: "urn:lotus:problem:insufficient-funds",
        title: "Not enough money",
        status: 400,
        code: "insufficient-funds",
        detail: "Not enough money: the request asks for 890.06, the balance is 890.05. The balance is unchanged.",
        balance: 890.05,
      },
    ]);
    expect(await balance(ada)).toEqual({ balance: 890.05 });
    expect(await newest(ada)).toBe("Hello! You cannot withdraw money from account. Amount 890.06. You balance 890.05");
    expect((await ada.call("GET /billing/history")).body).toHaveLength(1);
  });

  it("has at most the balance that a JSON number represents to the cent", async () => {
    const ada = await newUser(lotus);
    await balance(ada);
    await deposit(lotus.database, [ada.id], 999_999_999_999_998n);
    expect(await balance(ada)).toEqual({ balance: 9999999999999.98 });
    const refused = await add("0.02", ada);
    expect([refused.status, refused.body.code, refused.body.balance]).toEqual([400, "balance-limit", 9999999999999.98]);
    expect(await newest(ada)).toBe("Hello! You cannot add money to account. Amount 0.02. You balance 9999999999999.98");
    expect((await add("0.01", ada)).body).toEqual({ balance: 9999999999999.99 });
  });

  it("stays correct under concurrent payments and withdrawals", async () => {
    const ada = await newUser(lotus, 5);
    const answers = await Promise.all(
      Array.from({ length: 30 }, (_, n) => (n % 3 === 0 ? add("1", ada) : withdraw("1", ada))),
    );
    const done = (of: number) =>
      answers.filter(({ status }, n) => status === 200 && (n % 3 === 0 ? 1 : -1) === of).length;
    expect(done(1)).toBe(10);
    expect(await balance(ada)).toEqual({ balance: 5 + done(1) - done(-1) });
    expect(done(-1)).toBeGreaterThanOrEqual(5);
  });
});

describe("an amount", () => {
  const bad = [
    "?money=0",
    "?money=0.00",
    "?money=-1",
    "?money=-0",
    "?money=1.001",
    "?money=0.001",
    "?money=1e3",
    "?money=1E3",
    "?money=%D9%A1",
    `?money=1${"0".repeat(40)}`,
    `?money=0.${"0".repeat(400)}1`,
    "?money=%2B5",
    "?money=+5",
    "?money=%205",
    "?money=5%20",
    "?money=5%0a",
    "?money=5%00",
    "?money=05",
    "?money=.5",
    "?money=5.",
    "?money=1,5",
    "?money=1_000",
    "?money=0x10",
    "?money=NaN",
    "?money=Infinity",
    "?money=null",
    "?money=1%3Bselect%201",
    "?money=1000000000.01",
    "?money=1000000001",
    "?money=",
    "?money",
    "",
    "?Money=5",
    "?money[]=5",
    "?money=5&money=5",
    "?money=5&money=6",
  ];

  function detailOf(search: string): string {
    if (search.includes("&")) return "must be given once";
    if (!search.startsWith("?money=") && search !== "?money") return "is missing";
    return "must be an amount above 0 and at most 1000000000, with at most two decimals, such as 10 or 10.50";
  }

  it.each(["add-money", "withdraw-money"])("that is invalid is refused by %s, and has no effect", async (name) => {
    await add("100");
    const before = await balance();
    for (const search of bad) {
      const { status, body } = await user.call(`POST /billing/${name}${search}`);
      expect([search, status, body.code]).toEqual([search, 400, "invalid-request"]);
      expect([search, body.errors]).toEqual([search, [{ field: "money", detail: detailOf(search) }]]);
    }
    expect(await balance()).toEqual(before);
    expect(await newest(user)).toContain("You add money");
  });

  it("may be as large as the limit", async () => {
    const ada = await newUser(lotus);
    expect((await add("1000000000", ada)).body).toEqual({ balance: 1_000_000_000 });
    expect((await withdraw("1000000000.00", ada)).body).toEqual({ balance: 0 });
  });

  it("is read from the query only", async () => {
    const { status, body } = await user.call("POST /billing/add-money", { body: { money: 5 } });
    expect([status, body.errors]).toEqual([400, [{ field: "money", detail: "is missing" }]]);
  });
});
