/** GET /order/list. The caller's orders, paid and refused, newest first, page by page. */
import * as v from "valibot";
import { query } from "#kernel/database";
import { endpoint } from "#kernel/endpoint";
import { Order, type OrderRow, present } from "./order.ts";

const SELECT = `select id, subscription_id, price, status, created_at::text as created_at from "order".orders
  where user_id = $1 and (created_at, id) < ($2, $3) order by created_at desc, id desc limit $4`;

export default endpoint({
  method: "GET",
  caller: "user",
  page: v.tuple([v.pipe(v.string(), v.regex(/^\d{4}-[\d:. +-]+$/)), v.pipe(v.string(), v.uuid())]),
  answers: { 200: v.array(Order) },
  async handle({ user, page }) {
    const [time, id] = page.after ?? ["infinity", "ffffffff-ffff-ffff-ffff-ffffffffffff"];
    const rows = await query<OrderRow>("orders", SELECT, [user.id, time, id, page.limit + 1]);
    return page.answer(rows, (row) => [row.created_at, row.id], present);
  },
});
