import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { Client } from "pg";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { PROGRAM, ROOT } from "../project/paths.ts";
import { expectInvariants } from "../testing/invariants.ts";
import { newUser, settled, startTestLotus, type TestLotus, type TestUser } from "../testing/lotus.ts";
import { verifyLedger } from "./verify-ledger.ts";

const run = promisify(execFile);
const TABLES = ["billing.accounts", "billing.transfers", "billing.entries", '"order".orders', "profile.users"] as const;
/** Tables whose triggers refuse what this test does. The owner of a database can disable them. */
const GUARDED = ["billing.accounts", "billing.entries"] as const;
const copyOf = (table: string) => `kept.${table.replace(/\W/g, "_")}`;

let lotus: TestLotus;
let user: TestUser;
let other: TestUser;
beforeAll(async () => {
  lotus = await startTestLotus();
  user = await newUser(lotus, 100);
  other = await newUser(lotus, 5);
  await user.call("POST /order/pay?idSubscription=1");
  await user.call("POST /order/pay?idSubscription=3");
  await user.call("POST /billing/withdraw-money?money=0.5");
  await user.call("POST /billing/add-money?money=7");
  await settled(lotus);
  await lotus.database.query("create schema kept");
  for (const table of TABLES) await lotus.database.query(`create table ${copyOf(table)} as table ${table}`);
  for (const table of GUARDED) await lotus.database.query(`alter table ${table} disable trigger user`);
});
afterAll(() => lotus.stop());
afterEach(async () => {
  for (const table of TABLES.toReversed()) await lotus.database.query(`delete from ${table}`);
  for (const table of TABLES) await lotus.database.query(`insert into ${table} select * from ${copyOf(table)}`);
});

/** Runs `npm run verify-ledger` without npm. */
async function command(...flags: string[]): Promise<{ code: number; text: string }> {
  return run(process.execPath, [PROGRAM, "verify-ledger", ...flags], { cwd: ROOT }).then(
    ({ stdout }) => ({ code: 0, text: stdout }),
    (error: { code: number; stderr: string }) => ({ code: error.code, text: error.stderr }),
  );
}

/** Recomputes all hashes of an account, as an attacker would. */
const REHASH = `do $$
  declare e record; previous bytea := '';
  begin
    for e in select x.*, t.kind, t.debit_account, t.credit_account, t.reference, t.created_at
      from billing.entries x join billing.transfers t on t.id = x.transfer_id where x.account_id = '%USER%' order by x.number
    loop
      previous := billing.entry_hash(previous, e.account_id, e.number, e.transfer_id, e.kind, e.debit_account, e.credit_account,
        e.amount, e.balance_after, e.reference, e.created_at);
      update billing.entries x set hash = previous where x.account_id = e.account_id and x.number = e.number;
    end loop;
    update billing.accounts set last_hash = previous where id = '%USER%';
  end $$`;

describe("verify-ledger", () => {
  it("reports that a ledger is correct, and its checks", async () => {
    const { code, text } = await command("--database", lotus.adminUrl);
    expect([code, text]).toEqual([
      0,
      expect.stringMatching(/( {2}holds: .+\n){10}The ledger is right: 5 entries, \d+ entries\/s\.\n$/),
    ]);
  });

  it("compares only the sum of all balances with --quick", async () => {
    await lotus.database.query(`update billing.entries set hash = '\\x00'`);
    const { code, text } = await command("--database", lotus.adminUrl, "--quick");
    expect([code, text]).toEqual([
      0,
      expect.stringMatching(/^Database .*\n {2}holds: all balances add up to 0\nAll balances add up to 0\.\n$/),
    ]);
    await lotus.database.query("update billing.accounts set balance = 1 where id = $1", [user.id]);
    expect(await verifyLedger(lotus.database, { quick: true })).toMatch(/all balances add up to 0/);
  });

  it("exits 1 with the first difference", async () => {
    await lotus.database.query(
      "update billing.accounts set balance = balance + case when id = $1 then 1 else -1 end where id in ($1, $2)",
      [user.id, "00000000-0000-0000-0001-000000000001"],
    );
    const { code, text } = await command("--database", lotus.adminUrl);
    expect([code, text]).toEqual([
      1,
      `It does not hold that each account contains the sum of its entries, and its chain ends in its hash: account ${user.id} contains 9651, its entries make 9650 (in minor units).\n`,
    ]);
  });

  it("names the address when no server answers", async () => {
    const { code, text } = await command("--database", "postgres://lotus:secret@127.0.0.1:1/lotus");
    expect([code, text]).toEqual([
      1,
      expect.stringMatching(/^No server listens at 127\.0\.0\.1:1 \(connection refused\)\./),
    ]);
    expect(text).not.toContain("secret");
  });

  /** A transfer of the user by the number of its entry. */
  const transfer = (number: number) =>
    `(select transfer_id from billing.entries where account_id = '%USER%' and number = ${number})`;
  const entry = (number: number) => `where account_id = '%USER%' and number = ${number}`;
  const CASH_IN = "00000000-0000-0000-0001-000000000001";

  it.each([
    ["an amount", `update billing.entries set amount = amount + 1 ${entry(1)}`, /hash.*entry 1/],
    [
      "the amount of a transfer",
      `update billing.transfers set amount = 1 where id = ${transfer(2)}`,
      /each side of a transfer.*the entry is -1000, it should be -1/,
    ],
    [
      "a time",
      `update billing.transfers set created_at = created_at + interval '1 second' where id = ${transfer(2)}`,
      /hash.*entry 2/,
    ],
    ["a reference", `update billing.transfers set reference = id where id = ${transfer(2)}`, /hash.*entry 2/],
    ["a hash", `update billing.entries set hash = '\\x00' ${entry(3)}`, /hash.*entry 3/],
    [
      "an amount and all hashes",
      `update billing.entries set amount = -49 ${entry(3)}; ${REHASH}`,
      /balance after an entry.*entry 3: the balance after it is 8950, it should be 8951/,
    ],
    [
      "the hash of an account",
      `update billing.accounts set last_hash = '\\x00' where id = '%USER%'`,
      /chain ends in its hash/,
    ],
    [
      "the credit account of a charge, and all hashes",
      `update billing.transfers set credit_account = '00000000-0000-0000-0002-000000000001' where id = ${transfer(2)}; ${REHASH}`,
      /debits and credits.*a charge from user to cash-out/,
    ],
    [
      "the deletion of the last entry",
      `delete from billing.entries ${entry(4)}`,
      /without a gap.*3 entries, the last number is 3, the account says 4/,
    ],
    ["the deletion of an entry in the middle", `delete from billing.entries ${entry(2)}`, /without a gap/],
    [
      "the deletion of the last charge with its order, in an account that is adjusted",
      `delete from "order".orders where status = 'paid'; delete from billing.transfers where id = ${transfer(4)};
       delete from billing.entries ${entry(4)};
       update billing.accounts a set (balance, entries, last_hash) =
         (select e.balance_after, e.number, e.hash from billing.entries e ${entry(3)}) where id = '%USER%'`,
      /all balances add up to 0.*the sum of all balances is -700/,
    ],
    [
      "the balance of a system account",
      `update billing.accounts set balance = 500 where id = '${CASH_IN}'`,
      /all balances add up to 0/,
    ],
    [
      "the balances of two system accounts",
      "update billing.accounts set balance = balance + case kind when 'cash-in' then 1 else -1 end where kind in ('cash-in', 'revenue') and id::text like '%000000000001'",
      /each system account contains the sum of its transfers/,
    ],
    [
      "two invented system accounts",
      "insert into billing.accounts (id, kind, balance) values (gen_random_uuid(), 'cash-in', -100), (gen_random_uuid(), 'revenue', 100)",
      /each system account contains the sum of its transfers/,
    ],
    [
      "the deletion of an order",
      `delete from "order".orders where status = 'paid'`,
      /no charge or refund lacks an order/,
    ],
    [
      "the price of an order",
      `update "order".orders set price = price - 1 where status = 'paid'`,
      /a paid order has one charge of its price.*paid, 999.* its charge is 1000/,
    ],
    [
      "the user of an order",
      `update "order".orders set user_id = '%OTHER%' where status = 'paid'`,
      /a paid order has one charge.*user %OTHER%\): its charge is 1000 of account %USER%/,
    ],
    [
      "the status of a refused order",
      `update "order".orders set status = 'paid' where status = 'refused'`,
      /a paid order has one charge.*paid, 120000.*its charge is {2}of account/,
    ],
    [
      "the status of a paid order",
      `update "order".orders set status = 'refunded' where status = 'paid'`,
      /a paid order has one charge.*refunded, 1000.*its refund {2}to account/,
    ],
    [
      "a user without an account",
      "insert into profile.users (id, email, normal_email, password_hash) values (gen_random_uuid(), 'ghost@example.com', 'ghost@example.com', '')",
      /each user has an account.*no event will open one/,
    ],
  ])("notices a change of %s", async (_, tamper, sentence) => {
    const named = (text: string) => text.replaceAll("%USER%", user.id).replaceAll("%OTHER%", other.id);
    expect(await verifyLedger(lotus.database)).toBeUndefined();
    await lotus.database.query(named(tamper));
    // Chunks of one row split every account. A chunk of all rows splits no account.
    for (const chunkRows of [1, 2, 20_000])
      expect(await verifyLedger(lotus.database, { chunkRows })).toMatch(new RegExp(named(sentence.source)));
  });
});

describe("verify-ledger beside payments", () => {
  it("finds no difference in small chunks, and reports every entry", async () => {
    const users = await Promise.all(Array.from({ length: 4 }, () => newUser(lotus, 1000)));
    let verifications = 0;
    let reported = { entries: 0, of: 0 };
    const differences: string[] = [];
    const load = users.map(async (payer, index) => {
      const next = users[(index + 1) % users.length] ?? payer;
      while (verifications < 2) {
        const { body } = await payer.call("POST /order/pay?idSubscription=1");
        await payer.call(`POST /billing/transfer?money=1&to=${next.email}`);
        await payer.call("POST /billing/add-money?money=20");
        await payer.call(`POST /order/refund?id=${body.order.id}`);
      }
    });
    const client = new Client({ connectionString: lotus.adminUrl });
    await client.connect();
    for (; verifications < 2; verifications++) {
      const progress = (seen: typeof reported) => {
        reported = seen;
      };
      const difference = await verifyLedger(client, { chunkRows: 20, progress });
      if (difference !== undefined) differences.push(difference);
    }
    await client.end();
    await Promise.all(load);
    expect(differences).toEqual([]);
    expect(reported.entries).toBeGreaterThan(5);
    expect(reported.of).toBeGreaterThanOrEqual(reported.entries);
    await expectInvariants(lotus);
  }, 60_000);
});
