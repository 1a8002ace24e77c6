import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { PROGRAM, ROOT } from "../project/paths.ts";
import { newUser, settled, startTestLotus, type TestLotus, type TestUser } from "../testing/lotus.ts";
import { verifyLedger } from "./verify-ledger.ts";

const run = promisify(execFile);
const TABLES = ["billing.accounts", "billing.transfers", '"order".orders', "profile.users"] as const;
const copyOf = (table: string) => `kept.${table.replace(/\W/g, "_")}`;

let lotus: TestLotus;
let user: TestUser;
beforeAll(async () => {
  lotus = await startTestLotus();
  user = await newUser(lotus, 100);
  await newUser(lotus, 5);
  await user.call("POST /order/pay?idSubscription=1");
  await user.call("POST /order/pay?idSubscription=3");
  await user.call("POST /billing/withdraw-money?money=0.5");
  await user.call("POST /billing/add-money?money=7");
  await settled(lotus);
  await lotus.database.query("create schema kept");
  for (const table of TABLES) await lotus.database.query(`create table ${copyOf(table)} as table ${table}`);
});
afterAll(() => lotus.stop());
afterEach(async () => {
  for (const table of TABLES.toReversed()) await lotus.database.query(`delete from ${table}`);
  for (const table of TABLES) await lotus.database.query(`insert into ${table} select * from ${copyOf(table)}`);
});

/** npm run verify-ledger, without npm. */
async function command(...flags: string[]): Promise<{ code: number; text: string }> {
  return run(process.execPath, [PROGRAM, "verify-ledger", ...flags], { cwd: ROOT }).then(
    ({ stdout }) => ({ code: 0, text: stdout }),
    (error: { code: number; stderr: string }) => ({ code: error.code, text: error.stderr }),
  );
}

/** What a tamperer who knows how the chain is made would do afterwards. */
const REHASH = `do $$
  declare t billing.transfers; previous bytea := '';
  begin
    for t in select * from billing.transfers where account_id = '%USER%' order by number loop
      previous := billing.transfer_hash(previous, t);
      update billing.transfers set hash = previous where account_id = t.account_id and number = t.number;
    end loop;
    update billing.accounts set last_hash = previous where id = '%USER%';
  end $$`;

describe("verify-ledger", () => {
  it("says that a ledger is right, and what it has looked at", async () => {
    const { code, text } = await command("--database", lotus.adminUrl);
    expect([code, text]).toEqual([
      0,
      expect.stringMatching(/( {2}holds: .+\n){8}The ledger is right: 5 transfers\.\n$/),
    ]);
  });

  it("exits 1 with the first difference", async () => {
    await lotus.database.query("update billing.accounts set balance = balance + 1 where id = $1", [user.id]);
    const { code, text } = await command("--database", lotus.adminUrl);
    expect([code, text]).toEqual([
      1,
      `It does not hold that each account holds the sum of its transfers, and its chain ends in its hash: account ${user.id} holds 9651, its transfers make 9650 (in minor units).\n`,
    ]);
  });

  it("says where it looked when nothing answers there", async () => {
    const { code, text } = await command("--database", "postgres://lotus:secret@127.0.0.1:1/lotus");
    expect([code, text]).toEqual([
      1,
      expect.stringMatching(/^Nothing listens at 127\.0\.0\.1:1 \(connection refused\)\./),
    ]);
    expect(text).not.toContain("secret");
  });

  it.each([
    [
      "an amount",
      "update billing.transfers set amount = amount + 1 where account_id = '%USER%' and number = 1",
      /hash.*transfer 1/,
    ],
    [
      "a time",
      "update billing.transfers set created_at = created_at + interval '1 second' where account_id = '%USER%' and number = 2",
      /hash.*transfer 2/,
    ],
    [
      "a reference",
      "update billing.transfers set reference = null where account_id = '%USER%' and number = 2",
      /hash.*transfer 2/,
    ],
    [
      "a hash",
      "update billing.transfers set hash = '\\x00' where account_id = '%USER%' and number = 3",
      /hash.*transfer 3/,
    ],
    [
      "an amount and all hashes",
      `update billing.transfers set amount = 49 where account_id = '%USER%' and number = 3; ${REHASH}`,
      /balance after a transfer.*transfer 3: the balance after it is 8950, it should be 8951/,
    ],
    [
      "the last transfer's hash, and the account's with it",
      `update billing.accounts set last_hash = '\\x00' where id = '%USER%'`,
      /chain ends in its hash/,
    ],
    [
      "whom a charge went to, and all hashes",
      `update billing.transfers set credit_account = '00000000-0000-0000-0000-000000000002' where account_id = '%USER%' and number = 2; ${REHASH}`,
      /debits and credits.*transfer 2: a charge from user to cash-out/,
    ],
    [
      "the last transfer, which is gone",
      "delete from billing.transfers where account_id = '%USER%' and number = 4",
      /without a gap.*3 transfers, the last number is 3, the account says 4/,
    ],
    [
      "a transfer in the middle, which is gone",
      "delete from billing.transfers where account_id = '%USER%' and number = 2",
      /without a gap/,
    ],
    ["an order, which is gone", `delete from "order".orders where status = 'paid'`, /no charge is without an order/],
    [
      "an order's price",
      `update "order".orders set price = price - 1 where status = 'paid'`,
      /a paid order has one charge of its price.*paid, 999.* has 1 charges/,
    ],
    [
      "what became of an order",
      `update "order".orders set status = 'paid' where status = 'refused'`,
      /a paid order has one charge.*paid, 120000.* has 0 charges/,
    ],
    [
      "a user, who has no account",
      "insert into profile.users (id, email, normal_email, password_hash) values (gen_random_uuid(), 'ghost@example.com', 'ghost@example.com', '')",
      /each user has an account.*nothing will open one/,
    ],
  ])("notices a change of %s", async (_, tamper, sentence) => {
    expect(await verifyLedger(lotus.database)).toBeUndefined();
    await lotus.database.query(tamper.replaceAll("%USER%", user.id));
    expect(await verifyLedger(lotus.database)).toMatch(sentence);
  });
});
