import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { deposit } from "../../scripts/testing/deposit.ts";
import { expectInvariants } from "../../scripts/testing/invariants.ts";
import { call, newUser, startTestLotus, type TestLotus, type TestUser } from "../../scripts/testing/lotus.ts";

let lotus: TestLotus;
beforeAll(async () => {
  lotus = await startTestLotus();
});
afterAll(() => lotus.stop());

const transfer = (from: TestUser, money: number | string, to: string, key?: string) =>
  from.call(`POST /billing/transfer?money=${money}&to=${encodeURIComponent(to)}`, {
    headers: key === undefined ? {} : { "idempotency-key": key },
  });
const balance = async (of: TestUser) => (await of.call("GET /billing/balance")).body.balance;
const newest = async (of: TestUser) => (await of.call("GET /notification?limit=1")).body[0].message;

describe("POST /billing/transfer", () => {
  it("moves money between two users, shows it in both histories and notifies both", async () => {
    const [ada, bob] = [await newUser(lotus, 100), await newUser(lotus)];
    const answer = await transfer(ada, "30.5", bob.email.toUpperCase());
    expect([answer.status, answer.body]).toEqual([200, { balance: 69.5 }]);
    expect(await balance(bob)).toBe(30.5);
    const [sent, received] = [
      (await ada.call("GET /billing/history?limit=1")).body[0],
      (await bob.call("GET /billing/history?limit=1")).body[0],
    ];
    expect(sent).toMatchObject({ kind: "transfer-out", amount: 30.5, balanceAfter: 69.5, counterparty: bob.email });
    expect(received).toMatchObject({ kind: "transfer-in", amount: 30.5, balanceAfter: 30.5, counterparty: ada.email });
    expect(received.reference).toBe(sent.reference);
    expect(await newest(ada)).toBe(`Hello! You transfer money to ${bob.email}. Amount 30.5. You balance after 69.5`);
    expect(await newest(bob)).toBe(`Hello! You receive money from ${ada.email}. Amount 30.5. You balance after 30.5`);
    await expectInvariants(lotus);
  });

  it("refuses an unknown recipient, the caller's own account, and more money than the balance", async () => {
    const [ada, bob] = [await newUser(lotus, 10), await newUser(lotus)];
    const unknown = await transfer(ada, 1, "nobody@example.com");
    expect([unknown.status, unknown.body.code]).toEqual([404, "unknown-recipient"]);
    const own = await transfer(ada, 1, ada.email.toUpperCase());
    expect([own.status, own.body.errors]).toEqual([
      400,
      [{ field: "to", detail: "must be the email of another user" }],
    ]);
    const poor = await transfer(ada, "10.01", bob.email);
    expect([poor.status, poor.body.code, poor.body.balance]).toEqual([400, "insufficient-funds", 10]);
    expect(await newest(ada)).toBe(`Hello! You cannot transfer money to ${bob.email}. Amount 10.01. You balance 10`);
    for (const search of ["?money=1", "?to=ada@example.com", "?money=1&to=ada", "?money=0&to=ada@example.com"]) {
      const { status } = await ada.call(`POST /billing/transfer${search}`);
      expect([search, status]).toEqual([search, 400]);
    }
    expect([await balance(ada), await balance(bob)]).toEqual([10, 0]);
    await expectInvariants(lotus);
  });

  it("succeeds for 200 crosswise transfers and for rings at the same time, and loses no money", async () => {
    const people = await Promise.all(Array.from({ length: 4 }, () => newUser(lotus, 1000)));
    const at = (n: number) => people[n % people.length] as TestUser;
    const answers = await Promise.all(
      Array.from({ length: 200 }, (_, n) => {
        // Two users to each other, a ring, and the ring in the other direction.
        const [from, to] = n < 100 ? [at(n % 2), at((n + 1) % 2)] : n < 150 ? [at(n), at(n + 1)] : [at(n + 1), at(n)];
        return transfer(from, 1, to.email);
      }),
    );
    expect(answers.filter(({ status }) => status !== 200)).toEqual([]);
    const balances = await Promise.all(people.map(balance));
    expect(balances.reduce((sum, one) => sum + one, 0)).toBe(4000);
    await expectInvariants(lotus);
  });

  it("has one effect with one key, also at the same time", async () => {
    const [ada, bob] = [await newUser(lotus, 100), await newUser(lotus)];
    const answers = await Promise.all(Array.from({ length: 10 }, () => transfer(ada, 10, bob.email, "k")));
    for (const { status, body } of answers) expect([status, body]).toEqual([200, { balance: 90 }]);
    expect((await transfer(ada, 10, bob.email, "k")).body).toEqual({ balance: 90 });
    expect((await transfer(ada, 11, bob.email, "k")).body.code).toBe("idempotency-key-reused");
    expect([await balance(ada), await balance(bob)]).toEqual([90, 10]);
  });

  it("does not keep the answer to an unknown recipient, who may register later", async () => {
    const ada = await newUser(lotus, 100);
    const email = `later-${ada.id}@example.com`;
    expect((await transfer(ada, 10, email, "k")).body.code).toBe("unknown-recipient");
    await call(lotus, "POST /profile/register", { body: { email, password: "correct horse battery" } });
    expect((await transfer(ada, 10, email, "k")).body).toEqual({ balance: 90 });
  });

  it("lets a user look up a hundred emails an hour: afterwards answers do not reveal whether an email has a user", async () => {
    const [prober, other, bob] = [await newUser(lotus, 10), await newUser(lotus, 10), await newUser(lotus)];
    expect((await transfer(prober, 1, bob.email, "before")).body).toEqual({ balance: 9 });
    const probe = (n: number) => transfer(prober, 1, `${n}-${prober.id}@example.com`, n % 2 ? `probe-${n}` : undefined);
    for (let n = 0; n < 100; n += 20) {
      const answers = await Promise.all(Array.from({ length: 20 }, (_, index) => probe(n + index)));
      expect(answers.map(({ body }) => body.code)).toEqual(answers.map(() => "unknown-recipient"));
    }
    for (const to of [bob.email, "nobody@example.com", prober.email]) {
      const { status, headers, body } = await transfer(prober, 1, to);
      expect([to, status, body.code, body.balance]).toEqual([to, 429, "too-many-attempts", undefined]);
      const wait = Number(headers.get("retry-after"));
      expect(wait).toBeGreaterThan(3_000);
      expect(wait).toBeLessThanOrEqual(3_600);
      expect(body.detail).toContain(`try again in ${wait} seconds`);
    }
    // An answer that was given stays, and the limit concerns transfers of this user only.
    expect((await transfer(prober, 1, bob.email, "before")).body).toEqual({ balance: 9 });
    expect((await prober.call("POST /billing/withdraw-money?money=1")).body).toEqual({ balance: 8 });
    expect((await transfer(other, 1, bob.email)).body).toEqual({ balance: 9 });
    await lotus.database.query("update profile.attempts set forgotten_at = now() where bucket = $1", [
      `recipients:${prober.id}`,
    ]);
    expect((await transfer(prober, 1, "nobody@example.com")).body.code).toBe("unknown-recipient");
    expect((await transfer(prober, 1, bob.email)).body).toEqual({ balance: 7 });
    await expectInvariants(lotus);
  });

  // After the tests that expect the invariants: the relay publishes the events of this registration a minute later.
  it("opens the account of a recipient whose registration is on its way", async () => {
    const ada = await newUser(lotus, 10);
    const email = `new-${ada.id}@example.com`;
    await lotus.database.query("select profile.register($1, $1, null, '', 'profile-register', null)", [email]);
    expect((await transfer(ada, 4, email)).body).toEqual({ balance: 6 });
  });

  // Last: a deposit without a notification would break the invariants that the other tests expect.
  it("refuses what the recipient's account cannot contain, without its balance", async () => {
    const [ada, bob] = [await newUser(lotus, 10), await newUser(lotus, 1)];
    await deposit(lotus.database, [bob.id], 999_999_999_999_898n);
    const refused = await transfer(ada, "0.02", bob.email);
    expect([refused.status, refused.body.code, refused.body.balance]).toEqual([400, "balance-limit", 10]);
    expect(refused.body.detail).toBe(
      "With 0.02 more the recipient's account would exceed the limit of an account. The balance is unchanged.",
    );
    expect((await transfer(ada, "0.01", bob.email)).body).toEqual({ balance: 9.99 });
  });
});
