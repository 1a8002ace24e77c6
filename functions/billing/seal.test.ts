import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { verifyLedger } from "../../scripts/database/verify-ledger.ts";
import { expectInvariants } from "../../scripts/testing/invariants.ts";
import {
  eventually,
  holdAccount,
  newUser,
  startTestLotus,
  type TestLotus,
  type TestUser,
} from "../../scripts/testing/lotus.ts";

let lotus: TestLotus;
beforeAll(async () => {
  lotus = await startTestLotus();
});
afterAll(() => lotus.stop());

interface Line {
  readonly message: string;
  readonly moment: string;
  readonly hash: string;
}

/** The seals that the function has logged. */
const logged = () =>
  (lotus.lines.get("billing-seal") ?? [])
    .map((line) => JSON.parse(line) as Line)
    .filter(({ message }) => message === "sealed the ledger");

/** Runs all schedules, and returns the seal that the run made. */
async function seal(): Promise<Line> {
  const before = logged().length;
  await lotus.tick();
  return eventually("the ledger is sealed", () => logged()[before]);
}

/** Rewrites the last entry of a user, a deposit, with its hash, its transfer and both balances. */
const rewriteLastDeposit = (user: TestUser) =>
  lotus.database.query(
    `do $$
     declare
       e billing.entries; t billing.transfers; previous bytea;
     begin
       alter table billing.accounts disable trigger user;
       select * into e from billing.entries where account_id = '${user.id}' order by number desc limit 1;
       select * into t from billing.transfers where id = e.transfer_id;
       select hash into previous from billing.entries where account_id = e.account_id and number = e.number - 1;
       e.amount := e.amount + 100;
       e.balance_after := e.balance_after + 100;
       e.hash := billing.entry_hash(coalesce(previous, ''), e.account_id, e.number, e.transfer_id, t.kind, t.debit_account,
         t.credit_account, e.amount, e.balance_after, t.reference, t.created_at);
       update billing.transfers set amount = amount + 100 where id = t.id;
       update billing.entries set (amount, balance_after, hash) = (e.amount, e.balance_after, e.hash)
         where account_id = e.account_id and number = e.number;
       update billing.accounts set balance = balance + 100, last_hash = e.hash where id = e.account_id;
       update billing.accounts set balance = balance - 100 where id = t.debit_account;
       alter table billing.accounts enable trigger user;
     end $$`,
  );

describe("a seal", () => {
  it("matches the ledger, also after further transfers and further seals", async () => {
    const user = await newUser(lotus, 100);
    const first = await seal();
    await user.call("POST /billing/add-money?money=5");
    const second = await seal();
    await user.call("POST /order/pay?idSubscription=1");
    expect(first.hash).not.toBe(second.hash);
    expect(await verifyLedger(lotus.database, { seals: [first, second] })).toBeUndefined();
    await expectInvariants(lotus);
  });

  it("shows the rewritten last entry of an account, which plain verification accepts", async () => {
    const user = await newUser(lotus, 100);
    const kept = await seal();
    await rewriteLastDeposit(user);
    expect(await verifyLedger(lotus.database)).toBeUndefined();
    expect(await verifyLedger(lotus.database, { seals: [kept] })).toBe(
      `The ledger does not match the seal of ${kept.moment}: account ${user.id}, entry 1: the entry is not the one that was sealed.`,
    );
    // An attacker who rewrites the stored seal as well is found by the copy, though not by name.
    await lotus.database.query(
      "update billing.sealed_entries s set hash = e.hash from billing.entries e where e.account_id = s.account_id and e.number = s.number",
    );
    expect(await verifyLedger(lotus.database, { seals: [kept] })).toMatch(
      /^The seal of .* in the database, not .*: the seal or the entries that it covers were changed\.$/,
    );
  });

  it("waits for a transaction that may still write an earlier entry", async () => {
    const user = await newUser(lotus, 100);
    const before = logged().length;
    const held = await holdAccount(lotus, user);
    const sealing = lotus.tick();
    await eventually("the seal waits", async () => {
      const { rows } = await lotus.database.query(
        "select from billing.seals where sealed_at is null and horizon is not null",
      );
      return rows.length === 1;
    });
    expect(logged()).toHaveLength(before);
    await held.release();
    await sealing;
    await eventually("the ledger is sealed", () => logged().length === before + 1);
  });
});
