/** GET /order/get?id=1f0e3dad-9990-4345-b7a1-66e8a2a26a3d. Shows one order of the caller. */
import { query } from "#kernel/database";
import { endpoint, ok } from "#kernel/endpoint";
import { Order, OrderQuery, type OrderRow, present, unknownOrder } from "./order.ts";

export default endpoint({
  method: "GET",
  caller: "user",
  summary: "Returns one order of the caller.",
  query: OrderQuery,
  answers: { 200: Order, 404: ["unknown-order"] },
  async handle({ user, query: { id }, span }) {
    const [row] = await query<OrderRow>(
      "order",
      'select id, subscription_id, price, status, created_at from "order".orders where id = $1 and user_id = $2',
      [id, user.id],
      "repeatable",
      span,
    );
    return row === undefined ? unknownOrder(id) : ok(present(row));
  },
});
