/** POST /billing/transfer?money=100&to=ada@example.com. Transfers money to another user; notifications report it to both. */
import * as v from "valibot";
import { Email, normalEmail } from "#kernel/email";
import { endpoint } from "#kernel/endpoint";
import { Balance, MoneyQuery, moneyMover, moveMoney } from "./money-movement.ts";

const transfer = moneyMover("transfer");

export default endpoint({
  method: "POST",
  caller: "user",
  summary: "Transfers money to another user.",
  description:
    "`to` is the email of the recipient, compared as at login. Notifications report the transfer to both users, and a refusal to the caller. After a hundred emails without a user in an hour the caller waits.",
  idempotent: true,
  query: v.pipe(
    v.object({ ...MoneyQuery.entries, to: Email }),
    v.metadata({ examples: [{ money: 10.5, to: "bob@example.com" }] }),
  ),
  answers: {
    200: Balance,
    400: ["insufficient-funds", "balance-limit"],
    404: ["unknown-recipient"],
    409: ["account-not-open"],
    429: ["too-many-attempts"],
  },
  // The schema accepts only emails that have a normal form, so the fallback is only for the type checker.
  handle: (request) =>
    moveMoney(transfer, request, request.query.money, normalEmail(request.query.to) ?? request.query.to),
});
