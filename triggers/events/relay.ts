/** Every minute. Publishes what has been in the outbox for too long, and forgets old idempotency keys. */
import { query } from "#kernel/database";
import { log } from "#kernel/log";
import { type Envelope, publish } from "#kernel/outbox";
import {
  IDEMPOTENCY_KEY_DAYS,
  RELAY_BATCH_EVENTS_MAX,
  RELAY_OVERDUE_SECONDS,
  RELAY_RUN_MILLISECONDS_MAX,
} from "#kernel/settings";
import { subscriber } from "#kernel/subscriber";

export default subscriber({
  schedule: "* * * * *",
  async handle() {
    const until = performance.now() + RELAY_RUN_MILLISECONDS_MAX;
    let published = 0;
    for (let more = true; more && performance.now() < until; ) {
      const [row] = await query<{ overdue: Envelope[] }>("claim", "select events.claim($1, $2) as overdue", [
        `${RELAY_OVERDUE_SECONDS} seconds`,
        RELAY_BATCH_EVENTS_MAX,
      ]);
      const overdue = row?.overdue ?? [];
      if (overdue.length > 0) await publish(overdue);
      published += overdue.length;
      more = overdue.length === RELAY_BATCH_EVENTS_MAX;
    }
    if (published > 0) log("info", "published overdue events", { count: published });
    await query("forget-keys", "select events.forget_keys($1, $2)", [
      `${IDEMPOTENCY_KEY_DAYS} days`,
      RELAY_BATCH_EVENTS_MAX,
    ]);
  },
});
