/** Text of a client never becomes SQL: each text that an endpoint accepts, with texts that would end a literal or a statement. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { findFunctions } from "../../scripts/project/functions.ts";
import { call, newUser, startTestLotus, type TestLotus, type TestUser } from "../../scripts/testing/lotus.ts";

const endpoints = (await findFunctions()).filter((fn) => fn.kind === "endpoint");
const TEXTS = [
  "'; update billing.accounts set balance = 1; --",
  "' or '1'='1",
  '" or ""="',
  "\\'; select pg_sleep(20); --",
  "$$; drop schema billing cascade; $$",
  "1; delete from profile.users",
  "{null}",
  "%_",
];
/** Every name of a query parameter or a body's field. */
const FIELDS = ["money", "to", "id", "idSubscription", "limit", "cursor", "price", "email", "password", "username"];

let lotus: TestLotus;
let user: TestUser;
beforeAll(async () => {
  lotus = await startTestLotus();
  user = await newUser(lotus, 100);
});
afterAll(() => lotus.stop());

const state = async () =>
  (
    await lotus.database.query(
      `select (select count(*) from profile.users) as users,
         (select count(*) from billing.transfers) as transfers, (select sum(balance) from billing.accounts) as sum`,
    )
  ).rows[0];

describe("SQL in a text", () => {
  it.each(endpoints)("is refused or stored by $path as a text", async ({ path, description }) => {
    const before = await state();
    const began = performance.now();
    for (const text of TEXTS) {
      const query = new URLSearchParams(Object.fromEntries(FIELDS.map((field) => [field, text])));
      const body = Object.fromEntries(FIELDS.map((field) => [field, text]));
      for (const request of [`${description.method} ${path}?${query}`, `${description.method} ${path}`]) {
        const { status } = await user.call(request, {
          ...(description.method === "POST" && { body }),
          headers: { "idempotency-key": text.replaceAll(" ", "/") },
        });
        expect([request, status]).toEqual([request, status < 500 ? status : "below 500"]);
      }
    }
    expect(performance.now() - began).toBeLessThan(20_000);
    expect(await state()).toEqual(before);
  });

  it("is refused as a password, an email and a token", async () => {
    for (const text of TEXTS) {
      for (const body of [
        { email: user.email, password: text },
        { email: text, password: "correct horse battery" },
      ])
        expect([400, 401]).toContain((await call(lotus, "POST /profile/login", { body })).status);
      const headers = { authorization: `Bearer ${text}` };
      expect((await call(lotus, "GET /profile/me", { headers })).status).toBe(401);
    }
  });
});
