/** POST /order/create {"price":10}. Charges the caller a price and records the order; a notification reports it. */
import * as v from "valibot";
import { created, endpoint } from "#kernel/endpoint";
import { AMOUNT_PATTERN, Amount } from "#kernel/money";
import { Problem } from "#kernel/problem";
import { textOrNumber } from "#kernel/request";
import { Payment, placeOrder } from "./order.ts";

export default endpoint({
  method: "POST",
  caller: "user",
  summary: "Charges the caller a price and records the order.",
  description: "A notification reports the outcome, paid or refused.",
  idempotent: true,
  body: v.object({ price: textOrNumber(Amount, { type: ["string", "number"], pattern: AMOUNT_PATTERN }) }),
  answers: { 201: Payment, 400: ["insufficient-funds"], 409: ["account-not-open"] },
  async handle({ body, ...request }) {
    const placed = await placeOrder(body, request);
    return placed instanceof Problem ? placed : created(placed);
  },
});
