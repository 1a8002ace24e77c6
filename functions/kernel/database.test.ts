import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { newUser, startTestLotus, type TestLotus } from "../../scripts/testing/lotus.ts";

let lotus: TestLotus;
beforeAll(async () => {
  lotus = await startTestLotus();
});
afterAll(() => lotus.stop());

/** The next statements that write a transfer, as many as that, report this SQLSTATE. */
async function report(state: string, times: number): Promise<void> {
  await lotus.database.query("drop sequence if exists billing.reports; create sequence billing.reports");
  await lotus.database.query(`
    create or replace function billing.report() returns trigger language plpgsql security definer as $$ begin
      if nextval('billing.reports') <= ${times} then raise exception 'reported by a test' using errcode = '${state}'; end if;
      return new;
    end $$;
    create or replace trigger report before insert on billing.transfers for each row execute function billing.report()`);
}

describe("what a database reports", () => {
  it.each([
    ["a deadlock, in which this one gives way", "40P01"],
    ["that it is being shut down", "57P01"],
    ["that it has no more connections", "53300"],
  ])("%s, is known to have changed nothing: the payment is sent again", async (_, state) => {
    const user = await newUser(lotus, 100);
    await report(state, 1);
    expect((await user.call("POST /order/pay?idSubscription=1")).status).toBe(200);
    await report(state, 2);
    const { status, headers, body } = await user.call("POST /order/pay?idSubscription=1");
    expect([status, body.code, headers.get("retry-after")]).toEqual([503, "unavailable", "1"]);
    expect((await user.call("GET /billing/balance")).body).toEqual({ balance: 90 });
  });

  it("through a pooler that has lost the server, may have changed something: only a payment with a key is sent again", async () => {
    const user = await newUser(lotus, 100);
    const keyed = { headers: { "idempotency-key": randomUUID() } };
    await report("08P01", 1);
    const unkeyed = await user.call("POST /order/pay?idSubscription=1");
    expect([unkeyed.status, unkeyed.body.code]).toEqual([503, "outcome-unknown"]);
    await report("08P01", 1);
    expect((await user.call("POST /order/pay?idSubscription=1", keyed)).status).toBe(200);
  });

  it("of a payment with a key whose outcome is still unknown after the second attempt, is told as it is", async () => {
    const user = await newUser(lotus, 100);
    const keyed = { headers: { "idempotency-key": randomUUID() } };
    await report("08006", 2);
    const { status, body } = await user.call("POST /order/pay?idSubscription=1", keyed);
    expect([status, body.code]).toEqual([503, "outcome-unknown"]);
    expect((await user.call("POST /order/pay?idSubscription=1", keyed)).status).toBe(200);
    expect((await user.call("GET /billing/balance")).body).toEqual({ balance: 90 });
  });
});
