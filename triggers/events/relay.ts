/** Every minute. Publishes what has been in the outbox for too long, and forgets old idempotency keys. */
import { query } from "#kernel/database";
import { failure, log } from "#kernel/log";
import { byTopic, type Envelope, publish } from "#kernel/outbox";
import {
  FORGET_BATCH_KEYS_MAX,
  FORGET_RUN_MILLISECONDS_MAX,
  IDEMPOTENCY_KEY_DAYS,
  RELAY_BATCH_BYTES_MAX,
  RELAY_BATCH_EVENTS_MAX,
  RELAY_OVERDUE_SECONDS,
  RELAY_RUN_MILLISECONDS_MAX,
} from "#kernel/settings";
import { subscriber } from "#kernel/subscriber";

const idsOf = (envelopes: readonly Envelope[]) => envelopes.map(({ event }) => event.id);

/**
 * Publishes events, and moves those that the broker refuses to the dead letters.
 * @param until of performance.now(): when this run ends
 * @returns how many were published
 */
async function publishOrMoveToDeadLetters(envelopes: readonly Envelope[], until: number): Promise<number> {
  const refused = await publish(envelopes, until);
  for (const { envelope, reason } of refused) {
    log("error", "an event that no broker takes was buried", { event: envelope.event.id, reason });
    await query("move-unpublishable-to-dead-letters", "select events.move_unpublishable_to_dead_letters($1, $2)", [
      envelope.event.id,
      reason,
    ]);
  }
  await query("forget-unawaited", "select events.forget_unawaited($1)", [idsOf(envelopes)]);
  return envelopes.length - refused.length;
}

async function claim(overdueSeconds: number, exceptTopics: readonly string[]): Promise<Envelope[]> {
  const [row] = await query<{ overdue: Envelope[] }>("claim", "select events.claim($1, $2, $3, $4) as overdue", [
    `${overdueSeconds} seconds`,
    RELAY_BATCH_EVENTS_MAX,
    RELAY_BATCH_BYTES_MAX,
    exceptTopics,
  ]);
  return row?.overdue ?? [];
}

/** Publishes what is overdue, until nothing is, or until the run has taken its time. */
async function publishOverdue(): Promise<void> {
  const began = performance.now();
  const until = began + RELAY_RUN_MILLISECONDS_MAX;
  // A topic that the brokers refuse or lack waits for the next run, and delays no other topic.
  const failed: string[] = [];
  let published = 0;
  for (let elapsed = 0; elapsed < RELAY_RUN_MILLISECONDS_MAX; elapsed = performance.now() - began) {
    // What was overdue when this run began: what it has published itself since then gets its time.
    const overdue = await claim(RELAY_OVERDUE_SECONDS + elapsed / 1000, failed);
    if (overdue.length === 0) break;
    for (const [topic, envelopes] of byTopic(overdue)) {
      try {
        published += await publishOrMoveToDeadLetters(envelopes, until);
      } catch (error) {
        const { reason = "" } = failure(error);
        log("error", "overdue events were not published; the next run tries again", {
          topic,
          count: envelopes.length,
          reason,
        });
        failed.push(topic);
        await query("release", "select events.release($1)", [idsOf(envelopes)]);
      }
    }
  }
  if (published > 0) log("info", "published overdue events", { count: published });
}

/** Deletes old idempotency keys, a batch at a time, for a limited time: the next run goes on. */
async function forgetKeys(): Promise<void> {
  const began = performance.now();
  let forgotten: number;
  do {
    const [row] = await query<{ forgotten: number }>("forget-keys", "select events.forget_keys($1, $2) as forgotten", [
      // Hours: a day has 23 or 25 of them when the session's time zone changes to or from summer time.
      `${IDEMPOTENCY_KEY_DAYS * 24} hours`,
      FORGET_BATCH_KEYS_MAX,
    ]);
    forgotten = row?.forgotten ?? 0;
  } while (forgotten === FORGET_BATCH_KEYS_MAX && performance.now() - began < FORGET_RUN_MILLISECONDS_MAX);
}

export default subscriber({
  schedule: "* * * * *",
  async handle() {
    await publishOverdue();
    await forgetKeys();
  },
});
