/** GET /order/subscriptions. Lists the subscriptions with their prices. */
import * as v from "valibot";
import { query } from "#kernel/database";
import { endpoint, ok } from "#kernel/endpoint";
import { AmountNumber, toNumber } from "#kernel/money";

const Subscription = v.pipe(
  v.object({ id: v.pipe(v.number(), v.integer()), name: v.string(), price: AmountNumber }),
  v.title("Subscription"),
);

export default endpoint({
  method: "GET",
  caller: "anyone",
  summary: "Lists the subscriptions and their prices.",
  answers: { 200: v.array(Subscription) },
  async handle({ span }) {
    const rows = await query<{ id: number; name: string; price: string }>(
      "subscriptions",
      'select id, name, price from "order".subscriptions order by id',
      [],
      "repeatable",
      span,
    );
    return ok(rows.map(({ id, name, price }) => ({ id, name, price: toNumber(BigInt(price)) })));
  },
});
