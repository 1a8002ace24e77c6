/** GET /order/list. The caller's orders, paid and refused, newest first, page by page. */
import * as v from "valibot";
import { query } from "#kernel/database";
import { endpoint } from "#kernel/endpoint";
import { Order, type OrderRow, present } from "./order.ts";

/** Selects the page after the order `$2`, or the first page when `$2` is null. The page after another user's order is empty. */
const SELECT = `select id, subscription_id, price, status, created_at from "order".orders
  where user_id = $1 and (created_at, id) < (
    case when $2::uuid is null then 'infinity' else (select created_at from "order".orders where id = $2 and user_id = $1) end,
    coalesce($2, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
  order by created_at desc, id desc limit $3`;

export default endpoint({
  method: "GET",
  caller: "user",
  summary: "Lists the caller's orders, paid and refused, newest first.",
  page: v.tuple([v.pipe(v.string(), v.uuid())]),
  answers: { 200: v.array(Order) },
  async handle({ user, page, span }) {
    const rows = await query<OrderRow>(
      "orders",
      SELECT,
      [user.id, page.after?.[0] ?? null, page.limit + 1],
      "repeatable",
      span,
    );
    return page.answer(rows, ({ id }) => [id], present);
  },
});
