/** GET /billing/balance. Returns the caller's balance. It opens a new user's account when the event of the registration is late. */
import { query } from "#kernel/database";
import { endpoint, ok } from "#kernel/endpoint";
import { readBalance, toNumber } from "#kernel/money";
import { Problem } from "#kernel/problem";
import { Balance } from "./money-movement.ts";

export default endpoint({
  method: "GET",
  caller: "user",
  summary: "Returns the balance of the caller's account.",
  description: "It includes events that are still on their way, such as the opening of a new account.",
  answers: { 200: Balance, 409: ["account-not-open"] },
  async handle({ user, span }) {
    const [row] = await query<{ balance: string | null }>(
      "balance",
      "select billing.balance($1) as balance",
      [user.id],
      "repeatable",
      span,
    );
    if (!row || row.balance === null) return new Problem("account-not-open");
    return ok({ balance: toNumber(readBalance(row.balance)) });
  },
});
