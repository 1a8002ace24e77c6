/** POST /order/pay?idSubscription=1. Charges the caller for a subscription and records the order; a notification reports it. */
import * as v from "valibot";
import { endpoint, ok } from "#kernel/endpoint";
import { Problem } from "#kernel/problem";
import { Payment, placeOrder } from "./order.ts";

const ID_MAX = 999_999_999;
const expected = "must be the id of a subscription, a whole number such as 1";

export default endpoint({
  method: "POST",
  caller: "user",
  summary: "Charges the caller for a subscription and records the order.",
  description: "A notification reports the outcome, paid or refused.",
  idempotent: true,
  query: v.object({
    idSubscription: v.pipe(
      v.string(expected),
      v.metadata({
        description: "The id of a subscription.",
        type: "integer",
        minimum: 0,
        maximum: ID_MAX,
        examples: [1],
      }),
      v.check((text) => /^(0|[1-9][0-9]*)$/.test(text) && Number(text) <= ID_MAX, expected),
      v.transform(Number),
    ),
  }),
  answers: { 200: Payment, 400: ["insufficient-funds"], 404: ["unknown-subscription"], 409: ["account-not-open"] },
  async handle(request) {
    const placed = await placeOrder(request.query, request);
    return placed instanceof Problem ? placed : ok(placed);
  },
});
