/** Places and refunds orders. Calls that arrive together share one database statement, which is one transaction. */
import * as v from "valibot";
import { batched } from "#kernel/batch";
import type { CallRequest } from "#kernel/endpoint";
import { AmountNumber, type Money, readBalance, toNumber, toText } from "#kernel/money";
import type { Envelope } from "#kernel/outbox";
import { type CodeOf, Problem } from "#kernel/problem";
import { expiredKey } from "#kernel/request";

export const Order = v.pipe(
  v.object({
    id: v.pipe(v.string(), v.uuid()),
    idSubscription: v.pipe(
      v.nullable(v.pipe(v.number(), v.integer())),
      v.description("Null for an order without a subscription."),
    ),
    price: AmountNumber,
    status: v.picklist(["paid", "refused", "refunded"]),
    createdAt: v.pipe(v.string(), v.isoTimestamp()),
  }),
  v.title("Order"),
);

/** A paid or refunded order, and the balance of the account after it. */
export const Payment = v.pipe(v.object({ order: Order, balance: AmountNumber }), v.title("Payment"));

const orderIdExpected = "must be the id of an order, a UUID";
/** The query of an endpoint that concerns one order. */
export const OrderQuery = v.object({
  id: v.pipe(
    v.string(orderIdExpected),
    v.metadata({ description: "The id of an order.", examples: ["01a22299-0f8b-7999-bf06-78b1e5e4ff3b"] }),
    v.uuid(orderIdExpected),
  ),
});

/** A row of "order".orders. */
export interface OrderRow {
  id: string;
  subscription_id: number | null;
  price: string;
  status: "paid" | "refused" | "refunded";
  created_at: Date;
}

/** The row inside the JSON answer of a statement. JSON has no times, so `created_at` is a text; `price` is a number. */
type OrderInJson = Omit<OrderRow, "price" | "created_at"> & { readonly price: number; readonly created_at: string };

/** Presents an order as the API shows it. */
export function present(row: OrderRow | OrderInJson): v.InferInput<typeof Order> {
  return {
    id: row.id,
    idSubscription: row.subscription_id,
    price: toNumber(BigInt(row.price)),
    status: row.status,
    createdAt: new Date(row.created_at).toISOString(),
  };
}

/** A call of a statement. Spreading the request into it would cost more, because V8 then makes a hidden class for each call. */
interface Call {
  readonly request: CallRequest;
}

/** The row that a statement returns for a call: the answer, and the events that it wrote to the outbox. */
interface Answered {
  readonly answer: {
    readonly outcome: "done" | CodeOf<400 | 404 | 409 | 422>;
    readonly balance: number;
    readonly order: OrderInJson;
  };
  readonly emitted: Envelope[];
}

/** Returns the parameters that both statements share. A process serves one function, so all calls have the same `source`. */
const columns = (calls: readonly Call[]) => [
  calls.map(({ request }) => request.user.id),
  calls.map(({ request }) => request.user.email),
  calls.map(({ request }) => request.idempotency.key),
  calls.map(({ request }) => request.idempotency.fingerprint),
  calls[0]?.request.source,
  calls.map(({ request }) => request.traceparent),
];

/**
 * Makes the function that runs calls in the SQL function `"order".<name>`.
 * @param values returns the parameters after `waits` and `columns`: one array for each column
 */
function orderStatement<OneCall extends Call>(name: string, values: (calls: readonly OneCall[]) => unknown[][]) {
  const statement = (waits: boolean) => {
    const parameters = [...columns([]), ...values([])].map((_, index) => `$${index + 1}`);
    return `select * from "order".${name}(${waits}, ${parameters.join(", ")})`;
  };
  return batched<OneCall, Answered>({
    name: `order.${name}`,
    many: statement(false),
    one: statement(true),
    valuesOfMany: (calls) => [...columns(calls), ...values(calls)],
    valuesOfOne: (call) => [...columns([call]), ...values([call])],
    keyOf: ({ request }) => request.user.id,
    repetitionOf: ({ request }) => request.idempotency.repetition,
    deadlineOf: ({ request }) => request.deadline,
    spanOf: ({ request }) => request.span,
  });
}

// A bundle leaves out the statement that its function does not call.
const place = /* @__PURE__ */ orderStatement<Call & { subscriptionId: number | null; price: Money | null }>(
  "place",
  (calls) => [
    calls.map(({ subscriptionId }) => subscriptionId),
    calls.map(({ price }) => (price === null ? null : String(price))),
  ],
);

const refund = /* @__PURE__ */ orderStatement<Call & { orderId: string }>("refund", (calls) => [
  calls.map(({ orderId }) => orderId),
]);

const refusal = (outcome: CodeOf<400 | 404 | 409 | 422>) =>
  outcome === "idempotency-key-expired" ? expiredKey() : new Problem(outcome);

/** Places an order for a subscription or for a price. Returns the payment, or the refusal. */
export async function placeOrder(
  item: { idSubscription: number } | { price: Money },
  request: CallRequest,
): Promise<v.InferInput<typeof Payment> | Problem> {
  const [subscriptionId, price] = "price" in item ? [null, item.price] : [item.idSubscription, null];
  const { answer, emitted } = await place({ request, subscriptionId, price });
  request.publish(emitted);
  const { outcome, balance, order } = answer;
  if (outcome === "unknown-subscription") {
    return new Problem(
      outcome,
      `The subscription ${subscriptionId} does not exist. GET /order/subscriptions lists them.`,
    );
  }
  if (outcome === "insufficient-funds") {
    const cost = toText(BigInt(order.price));
    const detail = `Not enough money: the order costs ${cost}, the balance is ${toText(readBalance(balance))}. The balance is unchanged.`;
    return new Problem(outcome, detail, {
      members: { order: present(order), balance: toNumber(readBalance(balance)) },
    });
  }
  if (outcome !== "done") return refusal(outcome);
  return { order: present(order), balance: toNumber(readBalance(balance)) };
}

/** Refunds a paid order of the caller. Returns the order and the balance after the refund, or the refusal. */
export async function refundOrder(
  orderId: string,
  request: CallRequest,
): Promise<v.InferInput<typeof Payment> | Problem> {
  const { answer, emitted } = await refund({ request, orderId });
  request.publish(emitted);
  const { outcome, balance, order } = answer;
  if (outcome === "unknown-order") return unknownOrder(orderId);
  if (outcome === "order-not-paid") {
    return new Problem(outcome, `The order ${orderId} was refused when it was placed, so it has no payment to refund.`);
  }
  if (outcome === "balance-limit") {
    const detail = `The account holds ${toText(readBalance(balance))}; with the refund it would exceed the limit of an account. The balance is unchanged.`;
    return new Problem(outcome, detail, { members: { balance: toNumber(readBalance(balance)) } });
  }
  if (outcome !== "done") return refusal(outcome);
  return { order: present(order), balance: toNumber(readBalance(balance)) };
}

/** Creates the refusal of an id: the caller has no order with this id. */
export function unknownOrder(orderId: string): Problem {
  return new Problem("unknown-order", `You have no order ${orderId}. GET /order/list lists your orders.`);
}
