import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { BATCH_KEY_CALLS_MAX, BATCH_WAIT_MILLISECONDS_MAX } from "#kernel/limits";
import { holdAccount, newUser, startTestLotus, type TestLotus, type TestUser } from "../lotus.ts";

let lotus: TestLotus;
beforeAll(async () => {
  lotus = await startTestLotus();
});
afterAll(() => lotus.stop());

const PRICE = 10;
const RICH = 1_000_000;
const pay = (user: TestUser) => user.call("POST /order/pay?idSubscription=1");
const statusOf = async (user: TestUser) => (await pay(user)).status;
const balanceOf = async (user: TestUser) => (await user.call("GET /billing/balance")).body.balance as number;

describe("while another transaction holds two accounts", () => {
  it("payments of other users continue at once, and those of the two are charged exactly when they receive 200, else 503", async () => {
    const [one, two, other] = await Promise.all([1000, 1000, RICH].map((money) => newUser(lotus, money)));
    if (one === undefined || two === undefined || other === undefined) throw new Error("There are three users.");
    const locks = [await holdAccount(lotus, one), await holdAccount(lotus, two)];
    const waiting = [one, two].map((user) => Promise.all([1, 2, 3].map(() => statusOf(user))));
    const began = performance.now();
    const until = began + BATCH_WAIT_MILLISECONDS_MAX / 2;
    let paid = 0;
    for (; performance.now() < until; paid++) expect(await statusOf(other)).toBe(200);
    // Before group commit, two locked accounts let one payment through every five seconds.
    expect(paid).toBeGreaterThan(20);
    await locks[0]?.release();
    expect(await waiting[0]).toEqual([200, 200, 200]);
    expect(await waiting[1]).toEqual([503, 503, 503]);
    expect(performance.now() - began).toBeLessThan(2 * BATCH_WAIT_MILLISECONDS_MAX);
    await locks[1]?.release();
    expect([await balanceOf(one), await balanceOf(two), await balanceOf(other)]).toEqual([
      1000 - 3 * PRICE,
      1000,
      RICH - paid * PRICE,
    ]);
  });
});

describe("more payments of one user than may wait", () => {
  it("are refused at once, while another user pays", async () => {
    const [busy, other] = [await newUser(lotus, 1000), await newUser(lotus, 1000)];
    const lock = await holdAccount(lotus, busy);
    const waiting = Promise.all(Array.from({ length: BATCH_KEY_CALLS_MAX + 100 }, () => pay(busy)));
    expect(await statusOf(other)).toBe(200);
    await lock.release();
    const answers = await waiting;
    const paid = answers.filter(({ status }) => status === 200).length;
    const refused = answers.filter(
      ({ status, headers }) => status >= 429 && headers.get("retry-after") !== null,
    ).length;
    expect(paid + refused + answers.filter(({ status }) => status === 400).length).toBe(answers.length);
    expect(await balanceOf(busy)).toBe(1000 - paid * PRICE);
  });
});
