/** POST /billing/add-money?money=1000. Adds money to the caller's account; a notification reports it. */
import * as v from "valibot";
import { endpoint } from "#kernel/endpoint";
import { Balance, MoneyQuery, moneyMover, moveMoney } from "./money-movement.ts";

const deposit = moneyMover("deposit");

export default endpoint({
  method: "POST",
  caller: "user",
  summary: "Puts money on the caller's account.",
  description: "A notification reports the outcome.",
  idempotent: true,
  query: v.pipe(MoneyQuery, v.metadata({ examples: [{ money: 100 }] })),
  answers: { 200: Balance, 400: ["balance-limit"], 409: ["account-not-open"] },
  handle: (request) => moveMoney(deposit, request, request.query.money),
});
