/** Checks the invariants of a Lotus whose events are settled. */
import { expect } from "vitest";
import { toText } from "#kernel/money";
import { message } from "../../functions/notification/message.ts";
import { verifyLedger } from "../database/verify-ledger.ts";
import { settled, type TestLotus } from "./lotus.ts";

interface Happened {
  user_id: string;
  kind: "deposit-done" | "withdrawal-done" | "order-paid" | "order-refunded" | "order-refused" | "transfer";
  /** Signed, in minor units. */
  amount: string;
  balance: string | null;
  counterparty: string | null;
}

/** The outcomes that must each have a notification. The balance at the time of a refused order is not recorded. */
const HAPPENED = `
  select e.account_id as user_id, e.amount, e.balance_after as balance, u.email as counterparty,
    case t.kind when 'charge' then 'order-paid' when 'refund' then 'order-refunded' when 'transfer' then 'transfer'
      else t.kind || '-done' end as kind
    from billing.entries e join billing.transfers t on t.id = e.transfer_id
    left join profile.users u on t.kind = 'transfer' and u.id = case when e.amount < 0 then t.credit_account else t.debit_account end
  union all
  select user_id, price, null, null, 'order-refused' from "order".orders where status = 'refused'`;

/** Refusals that only a notification records. */
const NOT_RECORDED = /^Hello! You cannot (?:add|withdraw|transfer|receive) /;

function told({ kind, counterparty, ...happened }: Happened): string {
  const signed = BigInt(happened.amount);
  const amount = toText(signed < 0n ? -signed : signed);
  const balance = happened.balance === null ? "?" : toText(BigInt(happened.balance));
  const facts = { userId: happened.user_id, recipient: "", orderId: "", amount, balance };
  if (kind !== "transfer") return message({ ...facts, kind });
  const [from, to] = [counterparty ?? "", counterparty ?? ""];
  return signed < 0n
    ? message({ ...facts, kind: "transfer-sent", to })
    : message({ ...facts, kind: "transfer-received", from });
}

/** Messages by user, in an order that does not depend on their arrival. */
function byUser(messages: readonly (readonly [user: string, text: string])[]): string[] {
  return messages.map(([user, text]) => `${user}: ${text}`).sort();
}

/**
 * Waits until the outbox is empty. Then expects a correct ledger, one account for each user, one notification for each outcome and
 * no others, and as many dead letters as the test has caused.
 */
export async function expectInvariants(lotus: TestLotus, deadLetters = 0): Promise<void> {
  await settled(lotus);
  const { database } = lotus;
  expect(await verifyLedger(database)).toBeUndefined();
  const users = await database.query<{ id: string }>("select id from profile.users");
  const accounts = await database.query<{ id: string }>("select id from billing.accounts where kind = 'user'");
  expect(accounts.rows.map(({ id }) => id).sort()).toEqual(users.rows.map(({ id }) => id).sort());
  const happened = await database.query<Happened>(HAPPENED);
  const notifications = await database.query<{ user_id: string; message: string }>(
    "select user_id, message from notification.notifications",
  );
  const welcome = message({ kind: "welcome", userId: "", recipient: "" });
  expect(
    byUser(
      notifications.rows
        .filter((row) => !NOT_RECORDED.test(row.message))
        .map((row) => [row.user_id, row.message.replace(/(cannot pay .* You balance) .*/, "$1 ?")]),
    ),
  ).toEqual(
    byUser([
      ...users.rows.map(({ id }) => [id, welcome] as const),
      ...happened.rows.map((row) => [row.user_id, told(row)] as const),
    ]),
  );
  const letters = await database.query("select subscriber, reason from events.dead_letters");
  expect(letters.rows.length, JSON.stringify(letters.rows)).toBe(deadLetters);
}
