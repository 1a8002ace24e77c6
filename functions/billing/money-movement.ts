/** Putting money on an account and taking it off: one statement, one transaction. */
import * as v from "valibot";
import { inTurn, query } from "#kernel/database";
import { type EndpointRequest, ok, type Success } from "#kernel/endpoint";
import { Amount, AmountNumber, type Money, readBalance, toNumber, toText } from "#kernel/money";
import type { Envelope } from "#kernel/outbox";
import { type CodeOf, Problem } from "#kernel/problem";

export const MoneyQuery = v.object({ money: Amount });
export const Balance = v.pipe(v.object({ balance: AmountNumber }), v.title("Balance"));

interface Moved {
  answer: { outcome: "done" | CodeOf<400 | 409 | 422>; balance: number };
  emitted: Envelope[];
}

/** Why money was not moved, as the caller reads it. */
export function refusal(code: CodeOf<400 | 409 | 422>, amount: Money, balance: number): Problem {
  if (code !== "insufficient-funds" && code !== "balance-limit") return new Problem(code);
  const held = toText(readBalance(balance));
  const detail =
    code === "insufficient-funds"
      ? `Not enough money: ${toText(amount)} is asked for, the balance is ${held}. Nothing was taken.`
      : `The account holds ${held}; with ${toText(amount)} more it would hold more than an account can. Nothing was added.`;
  return new Problem(code, detail, { members: { balance: toNumber(readBalance(balance)) } });
}

/** Moves money on the caller's own account, and answers with the balance after it. */
export async function moveMoney(
  kind: "deposit" | "withdrawal",
  { user, query: { money }, idempotency, source, traceparent, publish }: EndpointRequest<"user", typeof MoneyQuery>,
): Promise<Success<200, { balance: number }> | Problem> {
  const [row] = await inTurn(user.id, () =>
    query<Moved>(
      "move-money",
      "select * from billing.move_money($1, $2, $3, $4, $5, $6, $7, $8)",
      [user.id, user.email, kind, money, idempotency.key, idempotency.fingerprint, source, traceparent],
      idempotency.repetition,
    ),
  );
  if (!row) throw new Error("billing.move_money gave no row");
  publish(row.emitted);
  const { outcome, balance } = row.answer;
  if (outcome !== "done") return refusal(outcome, money, balance);
  return ok({ balance: toNumber(readBalance(balance)) });
}
