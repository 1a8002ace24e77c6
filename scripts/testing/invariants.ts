/** What holds of every Lotus once its events have settled, whatever has happened to it before. */
import { expect } from "vitest";
import { toText } from "#kernel/money";
import { message } from "../../functions/notification/message.ts";
import { verifyLedger } from "../database/verify-ledger.ts";
import { settled, type TestLotus } from "./lotus.ts";

interface Happened {
  user_id: string;
  kind: "deposit" | "withdrawal" | "order-refused" | "order-paid";
  amount: string;
  balance: string | null;
}

/** What each user must have been told; of a refused order the balance is nowhere recorded. */
const HAPPENED = `
  select account_id as user_id, case kind when 'charge' then 'order-paid' else kind end as kind, amount, balance_after as balance
    from billing.transfers
  union all
  select user_id, 'order-refused', price, null from "order".orders where status = 'refused'`;

/** A refused movement of money leaves no row but its notification. */
const NOT_RECORDED = /^Hello! You cannot (?:add|withdraw) money/;

function told({ kind, ...happened }: Happened): string {
  const amount = toText(BigInt(happened.amount));
  const balance = happened.balance === null ? "?" : toText(BigInt(happened.balance));
  const to = { userId: happened.user_id, recipient: "" };
  if (kind === "deposit" || kind === "withdrawal") return message({ ...to, kind: `${kind}-done`, amount, balance });
  return message({ ...to, kind, orderId: "", amount, balance });
}

/** Messages by user, in an order that does not depend on when they came. */
function byUser(messages: readonly (readonly [user: string, text: string])[]): string[] {
  return messages.map(([user, text]) => `${user}: ${text}`).sort();
}

/**
 * Waits until the outbox is empty, and expects: the ledger to be right, with an account for each user and a charge for each paid
 * order; one notification for each outcome, and none besides; no dead letters but the expected ones.
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
