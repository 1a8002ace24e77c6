import { Client } from "pg";
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

/** Runs all schedules until a seal is complete, and returns it. A run waits for transactions of other tests on the same server. */
async function seal(): Promise<Line> {
  const before = logged().length;
  return eventually("the ledger is sealed", async () => {
    await lotus.tick();
    return logged()[before];
  });
}

/** Begins a seal without the function. Returns its moment. */
async function beginSeal(): Promise<string> {
  const { rows } = await lotus.database.query<{ moment: string }>(
    `select to_char(billing.begin_seal() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as moment`,
  );
  return rows[0]?.moment ?? "";
}

/** Continues a seal by one account. Returns its state, and its hash when it is complete. */
async function continueSeal(moment: string): Promise<{ state: string; hash?: string }> {
  const { rows } = await lotus.database.query<{ progress: { state: string; hash?: string } }>(
    "select billing.continue_seal($1, 1, 'billing-seal', null) as progress",
    [moment],
  );
  return rows[0]?.progress ?? { state: "" };
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

  it("covers no payment that commits after its beginning, on accounts that it has or has not reached", async () => {
    const users = await Promise.all(Array.from({ length: 3 }, () => newUser(lotus, 100)));
    const pay = () => Promise.all(users.map((user) => user.call("POST /order/pay?idSubscription=1")));
    const moment = await beginSeal();
    await pay();
    await eventually("the seal has reached an account", async () => (await continueSeal(moment)).state === "sealing");
    await pay();
    const hash = await eventually("the seal is complete", async () => {
      await pay();
      return (await continueSeal(moment)).hash;
    });
    const { rows } = await lotus.database.query<{ number: string }>(
      "select number from billing.sealed_entries where moment = $1 and account_id = any($2)",
      [moment, users.map(({ id }) => id)],
    );
    expect(rows.map(({ number }) => Number(number))).toEqual([1, 1, 1]);
    expect(await verifyLedger(lotus.database, { seals: [{ moment, hash }] })).toBeUndefined();
    const next = await seal();
    expect(await verifyLedger(lotus.database, { seals: [{ moment, hash }, next] })).toBeUndefined();
  });

  it("waits for a transaction that may write an earlier entry, and the next run continues it", async () => {
    const user = await newUser(lotus, 100);
    const before = logged().length;
    const held = await holdAccount(lotus, user);
    await lotus.tick();
    await eventually("the run has ended", () =>
      lotus.lines.get("billing-seal")?.some((line) => line.includes("the next run continues")),
    );
    expect(logged()).toHaveLength(before);
    const begun = await lotus.database.query<{ moment: Date }>(
      "select moment from billing.seals where sealed_at is null",
    );
    expect(begun.rows).toHaveLength(1);
    await held.release();
    const { moment } = await seal();
    expect(new Date(moment)).toEqual(begun.rows[0]?.moment);
  });

  it("is one seal when two runs begin at the same time", async () => {
    await seal();
    const [first, second] = [new Client(lotus.adminUrl), new Client(lotus.adminUrl)];
    await Promise.all([first.connect(), second.connect()]);
    const begin = async (client: Client) =>
      (await client.query("select billing.begin_seal() as moment")).rows[0].moment;
    await first.query("begin");
    const moment = await begin(first);
    let ended = false;
    const later = begin(second).finally(() => {
      ended = true;
    });
    await eventually("the second run waits or has begun", async () => {
      const { rowCount } = await lotus.database.query(
        `select from pg_locks where not granted and relation = 'billing.seals'::regclass
         and database = (select oid from pg_database where datname = current_database())`,
      );
      return ended || rowCount === 1;
    });
    await first.query("commit");
    expect(await later).toEqual(moment);
    await Promise.all([first.end(), second.end()]);
    await seal();
  });

  // Last: the ledger and its seals stay changed.
  it("shows the rewritten last entry of an account, which plain verification accepts", async () => {
    const user = await newUser(lotus, 100);
    const kept = await seal();
    await rewriteLastDeposit(user);
    expect(await verifyLedger(lotus.database)).toBeUndefined();
    expect(await verifyLedger(lotus.database, { seals: [kept] })).toBe(
      `The ledger does not match the seal of ${kept.moment}: account ${user.id}, entry 1: the entry is not the one that was sealed.`,
    );
    // The copy also reveals that the stored seal was rewritten, but not which account.
    await lotus.database.query(
      "update billing.sealed_entries s set hash = e.hash from billing.entries e where e.account_id = s.account_id and e.number = s.number",
    );
    expect(await verifyLedger(lotus.database, { seals: [kept] })).toMatch(
      /^The seal of .* in the database, not .*: the seal or the entries that it covers were changed\.$/,
    );
  });
});
