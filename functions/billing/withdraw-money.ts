/** POST /billing/withdraw-money?money=100. Takes money from the caller's account; a notification reports success or refusal. */
import { endpoint } from "#kernel/endpoint";
import { Balance, MoneyQuery, moneyMover, moveMoney } from "./money-movement.ts";

const withdrawal = moneyMover("withdrawal");

export default endpoint({
  method: "POST",
  caller: "user",
  summary: "Takes money off the caller's account.",
  description: "A notification reports the outcome, done or refused.",
  idempotent: true,
  query: MoneyQuery,
  answers: { 200: Balance, 400: ["insufficient-funds"], 409: ["account-not-open"] },
  handle: (request) => moveMoney(withdrawal, request, request.query.money),
});
