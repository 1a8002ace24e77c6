/** Moves money for deposits, withdrawals and transfers. Calls that arrive together share one database statement. */
import * as v from "valibot";
import { batched } from "#kernel/batch";
import { type CallRequest, ok, type Success } from "#kernel/endpoint";
import { Amount, AmountNumber, type Money, readBalance, toNumber, toText } from "#kernel/money";
import type { Envelope } from "#kernel/outbox";
import { type CodeOf, invalid, Problem } from "#kernel/problem";
import { expiredKey } from "#kernel/request";

export const MoneyQuery = v.object({ money: Amount });
export const Balance = v.pipe(v.object({ balance: AmountNumber }), v.title("Balance"));

/** A movement of money that a user requests. */
export interface MoneyCall {
  readonly request: CallRequest;
  readonly money: Money;
  /** The recipient of a transfer: an email in its normal form. */
  readonly recipient: string | null;
}

/** The row that billing.move_money returns for a call: the answer, and the events that it wrote to the outbox. */
interface Moved {
  readonly answer: {
    readonly outcome: "done" | "own-account" | "too-many-attempts" | CodeOf<400 | 404 | 409 | 422>;
    readonly balance: number;
    /** With `too-many-attempts`: the seconds until the user may name a recipient again. */
    readonly wait?: number;
  };
  readonly emitted: Envelope[];
}

/** Makes the function that moves money for calls of one kind. A process serves one function, so all calls have the same `source`. */
export function moneyMover(kind: "deposit" | "withdrawal" | "transfer"): (call: MoneyCall) => Promise<Moved> {
  const statement = (waits: boolean) =>
    `select * from billing.move_money('${kind}', ${waits}, $1, $2, $3, $4, $5, $6, $7, $8)`;
  const values = (calls: readonly MoneyCall[]) => [
    calls.map(({ request }) => request.user.id),
    calls.map(({ request }) => request.user.email),
    calls.map(({ recipient }) => recipient),
    calls.map(({ money }) => String(money)),
    calls.map(({ request }) => request.idempotency.key),
    calls.map(({ request }) => request.idempotency.fingerprint),
    calls[0]?.request.source,
    calls.map(({ request }) => request.traceparent),
  ];
  return batched<MoneyCall, Moved>({
    name: `billing.${kind}`,
    many: statement(false),
    one: statement(true),
    valuesOfMany: values,
    valuesOfOne: (call) => values([call]),
    keyOf: ({ request }) => request.user.id,
    repetitionOf: ({ request }) => request.idempotency.repetition,
    deadlineOf: ({ request }) => request.deadline,
    spanOf: ({ request }) => request.span,
  });
}

/** Creates the refusal for an outcome other than `done`. */
function refusal({ outcome, balance, wait }: Moved["answer"], { money, recipient }: MoneyCall): Problem {
  switch (outcome) {
    case "own-account":
      return invalid([{ field: "to", detail: "must be the email of another user" }]);
    case "unknown-recipient":
      return new Problem(outcome, "No user has the email in `to`. The balance is unchanged.");
    case "too-many-attempts":
      return new Problem(
        outcome,
        `Too many of your transfers named an email without a user. The balance is unchanged; try again in ${wait} seconds.`,
        { headers: { "retry-after": String(wait) } },
      );
    case "idempotency-key-expired":
      return expiredKey();
    case "insufficient-funds":
    case "balance-limit": {
      const held = toText(readBalance(balance));
      const details = {
        "insufficient-funds": `Not enough money: the request asks for ${toText(money)}, the balance is ${held}. The balance is unchanged.`,
        "balance-limit":
          recipient === null
            ? `The account holds ${held}; with ${toText(money)} more it would exceed the limit of an account. The balance is unchanged.`
            : `With ${toText(money)} more the recipient's account would exceed the limit of an account. The balance is unchanged.`,
      };
      return new Problem(outcome, details[outcome], { members: { balance: toNumber(readBalance(balance)) } });
    }
    case "done":
      throw new TypeError("A movement that is done has no refusal.");
    default:
      return new Problem(outcome);
  }
}

/**
 * Moves money from or to the caller's account, and answers with the balance after it.
 * @param move the function that {@link moneyMover} made for this endpoint
 * @param recipient the recipient of a transfer: an email in its normal form
 */
export async function moveMoney(
  move: (call: MoneyCall) => Promise<Moved>,
  request: CallRequest,
  money: Money,
  recipient: string | null = null,
): Promise<Success<200, { balance: number }> | Problem> {
  const call = { request, money, recipient };
  const { answer, emitted } = await move(call);
  request.publish(emitted);
  if (answer.outcome !== "done") return refusal(answer, call);
  return ok({ balance: toNumber(readBalance(answer.balance)) });
}
