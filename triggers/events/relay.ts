/** Every minute. Publishes what has been in the outbox for too long, and forgets old idempotency keys. */
import { query } from "#kernel/database";
import { failure, log } from "#kernel/log";
import { type Envelope, publish } from "#kernel/outbox";
import {
  IDEMPOTENCY_KEY_DAYS,
  RELAY_BATCH_BYTES_MAX,
  RELAY_BATCH_EVENTS_MAX,
  RELAY_OVERDUE_SECONDS,
  RELAY_RUN_MILLISECONDS_MAX,
} from "#kernel/settings";
import { subscriber } from "#kernel/subscriber";

/** One batch. `more` is false when nothing is overdue, and when the broker takes nothing now. */
async function publishBatch(overdueSeconds: number): Promise<{ published: number; more: boolean }> {
  const [row] = await query<{ overdue: Envelope[] }>("claim", "select events.claim($1, $2, $3) as overdue", [
    `${overdueSeconds} seconds`,
    RELAY_BATCH_EVENTS_MAX,
    RELAY_BATCH_BYTES_MAX,
  ]);
  const overdue = row?.overdue ?? [];
  if (overdue.length === 0) return { published: 0, more: false };
  try {
    const refused = await publish(overdue);
    for (const { envelope, reason } of refused) {
      log("error", "an event that no broker takes was buried", { event: envelope.event.id, reason });
      await query("bury-unpublishable", "select events.bury_unpublishable($1, $2)", [envelope.event.id, reason]);
    }
    return { published: overdue.length - refused.length, more: true };
  } catch (error) {
    const { reason = "" } = failure(error);
    log("error", "overdue events were not published; the next run tries again", { count: overdue.length, reason });
    await query("release", "select events.release($1)", [overdue.map(({ event }) => event.id)]);
    return { published: 0, more: false };
  }
}

async function publishOverdue(): Promise<void> {
  const began = performance.now();
  let published = 0;
  for (let elapsed = 0; elapsed < RELAY_RUN_MILLISECONDS_MAX; elapsed = performance.now() - began) {
    // What was overdue when this run began: what it has published itself since then gets its time.
    const batch = await publishBatch(RELAY_OVERDUE_SECONDS + elapsed / 1000);
    published += batch.published;
    if (!batch.more) break;
  }
  if (published > 0) log("info", "published overdue events", { count: published });
}

export default subscriber({
  schedule: "* * * * *",
  async handle() {
    await publishOverdue();
    await query("forget-keys", "select events.forget_keys($1, $2)", [
      `${IDEMPOTENCY_KEY_DAYS} days`,
      RELAY_BATCH_EVENTS_MAX,
    ]);
  },
});
