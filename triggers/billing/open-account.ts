/** user-registered. Opens the billing account of a new user, once. */
import { query } from "#kernel/database";
import { subscriber } from "#kernel/subscriber";
import { UserRegistered } from "../../functions/profile/events.ts";

export default subscriber({
  topic: "user-registered",
  data: UserRegistered,
  async handle({ key, data, span }) {
    await query("open-account", "select billing.open_account($1, $2)", [data.userId, key], "repeatable", span);
  },
});
