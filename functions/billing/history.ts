/** GET /billing/history. Lists the entries of the caller's account, newest first, page by page. Each entry belongs to a transfer. */
import * as v from "valibot";
import { query } from "#kernel/database";
import { endpoint } from "#kernel/endpoint";
import { AmountNumber, readBalance, toNumber } from "#kernel/money";

const uuid = v.pipe(v.string(), v.uuid());

const Transfer = v.pipe(
  v.object({
    number: v.pipe(v.number(), v.integer(), v.minValue(1)),
    kind: v.picklist(["deposit", "withdrawal", "charge", "refund", "transfer-in", "transfer-out"]),
    amount: AmountNumber,
    balanceAfter: AmountNumber,
    counterparty: v.pipe(v.nullable(v.string()), v.description("The email of the other user of a transfer.")),
    reference: v.pipe(uuid, v.description("The order of a charge or a refund; the movement itself otherwise.")),
    orderId: v.pipe(v.nullable(uuid), v.description("The order of a charge or a refund.")),
    createdAt: v.pipe(v.string(), v.isoTimestamp()),
  }),
  v.title("Transfer"),
);

/** A row of billing.history: an entry with its transfer. */
interface Row {
  number: string;
  kind: "deposit" | "withdrawal" | "charge" | "refund" | "transfer";
  /** Signed, in minor units. */
  amount: string;
  balance_after: string;
  counterparty: string | null;
  reference: string;
  created_at: Date;
}

function kindOf({ kind, amount }: Row): v.InferOutput<typeof Transfer>["kind"] {
  if (kind !== "transfer") return kind;
  return amount.startsWith("-") ? "transfer-out" : "transfer-in";
}

export default endpoint({
  method: "GET",
  caller: "user",
  summary: "Lists the transfers of the caller's account, newest first.",
  page: v.tuple([v.pipe(v.number(), v.safeInteger(), v.minValue(1))]),
  answers: { 200: v.array(Transfer) },
  async handle({ user, page, span }) {
    const rows = await query<Row>(
      "history",
      "select * from billing.history($1, $2, $3)",
      [user.id, page.after?.[0] ?? Number.MAX_SAFE_INTEGER, page.limit + 1],
      "repeatable",
      span,
    );
    return page.answer(
      rows,
      (row) => [Number(row.number)],
      (row) => ({
        number: Number(row.number),
        kind: kindOf(row),
        amount: Math.abs(toNumber(BigInt(row.amount))),
        balanceAfter: toNumber(readBalance(row.balance_after)),
        counterparty: row.counterparty,
        reference: row.reference,
        orderId: row.kind === "charge" || row.kind === "refund" ? row.reference : null,
        createdAt: row.created_at.toISOString(),
      }),
    );
  },
});
