/** GET /billing/history. What moved on the caller's account, newest first, page by page. */
import * as v from "valibot";
import { query } from "#kernel/database";
import { endpoint } from "#kernel/endpoint";
import { AmountNumber, readBalance, toNumber } from "#kernel/money";

const Transfer = v.pipe(
  v.object({
    number: v.pipe(v.number(), v.integer(), v.minValue(1)),
    kind: v.picklist(["deposit", "withdrawal", "charge"]),
    amount: AmountNumber,
    balanceAfter: AmountNumber,
    orderId: v.pipe(v.nullable(v.pipe(v.string(), v.uuid())), v.description("The order that a charge is for.")),
    createdAt: v.pipe(v.string(), v.isoTimestamp()),
  }),
  v.title("Transfer"),
);

interface Row {
  number: string;
  kind: v.InferOutput<typeof Transfer>["kind"];
  amount: string;
  balance_after: string;
  reference: string | null;
  created_at: Date;
}

const SELECT = `select number, kind, amount, balance_after, reference, created_at from billing.transfers
  where account_id = $1 and number < $2 order by number desc limit $3`;

export default endpoint({
  method: "GET",
  caller: "user",
  summary: "Lists the transfers of the caller's account, newest first.",
  page: v.tuple([v.pipe(v.number(), v.safeInteger(), v.minValue(1))]),
  answers: { 200: v.array(Transfer) },
  async handle({ user, page }) {
    const rows = await query<Row>("history", SELECT, [
      user.id,
      page.after?.[0] ?? Number.MAX_SAFE_INTEGER,
      page.limit + 1,
    ]);
    return page.answer(
      rows,
      (row) => [Number(row.number)],
      (row) => ({
        number: Number(row.number),
        kind: row.kind,
        amount: toNumber(BigInt(row.amount)),
        balanceAfter: toNumber(readBalance(row.balance_after)),
        orderId: row.reference,
        createdAt: row.created_at.toISOString(),
      }),
    );
  },
});
