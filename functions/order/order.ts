/** What an order is, and how one is placed: charged, recorded and told of in one transaction. */
import * as v from "valibot";
import { inTurn, query } from "#kernel/database";
import type { EndpointRequest } from "#kernel/endpoint";
import { AmountNumber, type Money, readBalance, toNumber, toText } from "#kernel/money";
import type { Envelope } from "#kernel/outbox";
import { type CodeOf, Problem } from "#kernel/problem";

export const Order = v.pipe(
  v.object({
    id: v.pipe(v.string(), v.uuid()),
    idSubscription: v.pipe(
      v.nullable(v.pipe(v.number(), v.integer())),
      v.description("Null for an order that is for no subscription."),
    ),
    price: AmountNumber,
    status: v.picklist(["paid", "refused"]),
    createdAt: v.pipe(v.string(), v.isoTimestamp()),
  }),
  v.title("Order"),
);

/** A paid order, and what the account holds after it. */
export const Payment = v.pipe(v.object({ order: Order, balance: AmountNumber }), v.title("Payment"));

/** A row of "order".orders. */
export interface OrderRow {
  id: string;
  subscription_id: number | null;
  price: string | number;
  status: "paid" | "refused";
  created_at: string | Date;
}

/** An order as the API shows it. */
export function present(row: OrderRow): v.InferInput<typeof Order> {
  return {
    id: row.id,
    idSubscription: row.subscription_id,
    price: toNumber(BigInt(row.price)),
    status: row.status,
    createdAt: new Date(row.created_at).toISOString(),
  };
}

interface Placed {
  answer: { outcome: "done" | CodeOf<400 | 404 | 409 | 422>; balance: number; order: OrderRow };
  emitted: Envelope[];
}

/** Places an order for a subscription or for a price. Returns what was paid, or why it was refused. */
export async function placeOrder(
  what: { idSubscription: number } | { price: Money },
  {
    user,
    idempotency,
    source,
    traceparent,
    publish,
  }: Pick<EndpointRequest, "user" | "idempotency" | "source" | "traceparent" | "publish">,
): Promise<v.InferInput<typeof Payment> | Problem> {
  const [subscriptionId, price] = "price" in what ? [null, what.price] : [what.idSubscription, null];
  const [row] = await inTurn(user.id, () =>
    query<Placed>(
      "place-order",
      'select * from "order".place($1, $2, $3, $4, $5, $6, $7, $8)',
      [user.id, user.email, subscriptionId, price, idempotency.key, idempotency.fingerprint, source, traceparent],
      idempotency.repetition,
    ),
  );
  if (!row) throw new Error('"order".place gave no row');
  publish(row.emitted);
  const { outcome, balance, order } = row.answer;
  if (outcome === "unknown-subscription") {
    return new Problem(outcome, `There is no subscription ${subscriptionId}. GET /order/subscriptions lists them.`);
  }
  if (outcome === "insufficient-funds") {
    const cost = toText(BigInt(order.price));
    const detail = `Not enough money: the order costs ${cost}, the balance is ${toText(readBalance(balance))}. Nothing was charged.`;
    return new Problem(outcome, detail, {
      members: { order: present(order), balance: toNumber(readBalance(balance)) },
    });
  }
  if (outcome !== "done") return new Problem(outcome);
  return { order: present(order), balance: toNumber(readBalance(balance)) };
}
