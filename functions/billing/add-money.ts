/** POST /billing/add-money?money=1000. Puts money on the caller's account; a notification tells of it. */
import { endpoint } from "#kernel/endpoint";
import { Balance, MoneyQuery, moveMoney } from "./money-movement.ts";

export default endpoint({
  method: "POST",
  caller: "user",
  idempotent: true,
  query: MoneyQuery,
  answers: { 200: Balance, 400: ["balance-limit"], 409: ["account-not-open"] },
  handle: (request) => moveMoney("deposit", request),
});
