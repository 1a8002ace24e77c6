/** POST /order/refund?id=1f0e3dad-9990-4345-b7a1-66e8a2a26a3d. Returns the price of a paid order; a notification reports it. */
import { endpoint, ok } from "#kernel/endpoint";
import { Problem } from "#kernel/problem";
import { OrderQuery, Payment, refundOrder } from "./order.ts";

export default endpoint({
  method: "POST",
  caller: "user",
  summary: "Refunds a paid order of the caller.",
  description: "A second refund returns the first answer. A notification reports the refund.",
  idempotent: true,
  query: OrderQuery,
  answers: {
    200: Payment,
    400: ["balance-limit"],
    404: ["unknown-order"],
    409: ["order-not-paid", "account-not-open"],
  },
  async handle(request) {
    const refunded = await refundOrder(request.query.id, request);
    return refunded instanceof Problem ? refunded : ok(refunded);
  },
});
