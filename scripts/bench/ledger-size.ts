/** Payments on a ledger of a million entries, against the same on an empty one; and how long the whole of it takes to verify. */
import { verifyLedger } from "../database/verify-ledger.ts";
import { report } from "./report.ts";
import { alternate, type Database, readLoadFlags, startPay, withWorld } from "./world.ts";

export const about = "payments a second with 1 000 000 ledger entries, against an empty ledger (≥ .9)";

const USERS = 1_000;
const ENTRIES = 1_000_000;
const RATIO_MIN = 0.9;

/** Deposits of 1.00 for everybody who has an account, chained as the ledger chains them, in one statement. */
async function fill({ admin }: Database, entriesEach: number): Promise<void> {
  await admin.query(`
    with recursive chain as (
      select a.id, a.last_hash as hash, a.balance, a.transfers as number, null::billing.transfers as t, 0 as added
      from billing.accounts a where a.kind = 'user'
      union all
      select c.id, billing.transfer_hash(c.hash, next.t), (next.t).balance_after, (next.t).number, next.t, c.added + 1
      from chain c, lateral (select row(c.id, c.number + 1, 'deposit', '00000000-0000-0000-0000-000000000001', c.id,
        100, c.balance + 100, null, '2026-01-01'::timestamptz + c.number * interval '1 second', '')::billing.transfers as t) next
      where c.added < ${entriesEach}
    ), inserted as (
      insert into billing.transfers
      select (t).account_id, (t).number, (t).kind, (t).debit_account, (t).credit_account, (t).amount, (t).balance_after,
        (t).reference, (t).created_at, hash
      from chain where added > 0
    )
    update billing.accounts a set balance = c.balance, transfers = c.number, last_hash = c.hash
    from chain c where c.id = a.id and c.added = ${entriesEach}`);
  await admin.query("vacuum analyze billing.transfers, billing.accounts");
}

export default async function ledgerSize(args: readonly string[]): Promise<void> {
  const options = readLoadFlags(args);
  await withWorld(async (world) => {
    const [full, empty] = [await world.database(), await world.database()];
    const tokens = async (database: Database) => (await database.users(USERS)).map(({ token }) => token);
    const [fullTokens, emptyTokens] = [await tokens(full), await tokens(empty)];
    const began = performance.now();
    await fill(full, ENTRIES / USERS);
    const filled = performance.now();
    const difference = await verifyLedger(full.admin);
    if (difference !== undefined) throw new Error(difference);
    const seconds = (from: number, to: number) => ((to - from) / 1_000).toFixed(1);
    console.log(`  Filled in ${seconds(began, filled)} s, verified in ${seconds(filled, performance.now())} s.`);
    const sides = [await startPay(full, options.node), await startPay(empty, options.node)] as const;
    const [large, small] = await alternate(options, [
      (duration) => world.load({ port: sides[0].port, seconds: duration, tokens: fullTokens }),
      (duration) => world.load({ port: sides[1].port, seconds: duration, tokens: emptyTokens }),
    ]);
    await Promise.all(sides.map((side) => side.stop()));
    report([{ what: "payments a second", lotus: large, floor: small, ratioMin: RATIO_MIN }], ["1 000 000", "empty"]);
  });
}
