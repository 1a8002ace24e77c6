import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { signToken } from "../../functions/profile/signing.ts";
import { eachOf } from "../process/concurrency.ts";
import { expectInvariants } from "../testing/invariants.ts";
import { type Answer, call, roleOf, startTestLotus, type TestLotus } from "../testing/lotus.ts";
import { runScenario } from "./run.ts";

/** More registrations wait for the two cores longer than a request may take. */
const REGISTRATIONS_AT_ONCE = 10;

let lotus: TestLotus;
beforeAll(async () => {
  lotus = await startTestLotus();
});
afterAll(() => lotus.stop());

describe("the scenario", () => {
  it("passes for twenty users at the same time, on functions that have yet to start", async () => {
    const summary = await runScenario({ baseUrl: lotus.url, users: 20, quiet: true });
    expect(summary).toMatchObject({ runs: 20, requests: 20 * 14, assertions: 20 * 22, failed: 0, failures: [] });
    await expectInvariants(lotus);
  }, 60_000);

  it("reports what fails, each failure once", async () => {
    await lotus.database.query(`revoke execute on function "order".place from ${roleOf(lotus, "order")}`);
    const summary = await runScenario({ baseUrl: lotus.url, times: 2, quiet: true });
    await lotus.database.query(`grant execute on function "order".place to ${roleOf(lotus, "order")}`);
    expect(summary.failed).toBeGreaterThan(0);
    expect(summary.failures.map(({ count }) => count)).toEqual(summary.failures.map(() => 2));
    expect(summary.failures[0]?.what).toMatch(/^9\. POST \/order\/pay\?idSubscription=1 \| /);
  });
});

describe("GET /billing/balance", () => {
  it("is 0 right after registering, for each of a hundred", async () => {
    // Signed here: a hundred logins would only hash a hundred passwords more.
    vi.stubEnv("SIGNING_KEY_FILE", lotus.manifests.functions.get("profile-login")?.SIGNING_KEY_FILE ?? "");
    const emails = Array.from({ length: 100 }, () => `${randomUUID()}@example.com`);
    const balances: Answer[] = [];
    await eachOf(emails, REGISTRATIONS_AT_ONCE, async (email) => {
      const { body } = await call(lotus, "POST /profile/register", { body: { email, password: "correct horse" } });
      balances.push(await call(lotus, "GET /billing/balance", { token: await signToken({ id: body.id, email }) }));
    });
    expect(balances).toHaveLength(100);
    expect(balances.map(({ status, body }) => [status, body])).toEqual(balances.map(() => [200, { balance: 0 }]));
    await expectInvariants(lotus);
    // A hundred passwords are hashed here.
  }, 60_000);
});
