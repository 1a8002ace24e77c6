/** Every minute: publishes overdue events of the outbox, and limits the outbox, the dead letters and the idempotency keys. */
import { query } from "#kernel/database";
import { failure, log } from "#kernel/log";
import { byTopic, type Envelope, publish } from "#kernel/outbox";
import {
  DEAD_LETTER_HOURS_MAX,
  DEAD_LETTERS_BYTES_MAX,
  DEAD_LETTERS_MAX,
  FORGET_BATCH_KEYS_MAX,
  FORGET_RUN_MILLISECONDS_MAX,
  IDEMPOTENCY_KEY_DAYS,
  PUBLISH_ATTEMPTS_MAX,
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
    log("error", "the broker refuses an event; it moved to the dead letters", { event: envelope.event.id, reason });
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

/** Moves events that no subscriber settles to the dead letters, so that the relay does not publish them for ever. */
async function giveUp(): Promise<void> {
  const began = performance.now();
  let moved: number;
  let all = 0;
  do {
    const [row] = await query<{ moved: number }>("give-up", "select events.give_up($1, $2) as moved", [
      PUBLISH_ATTEMPTS_MAX,
      RELAY_BATCH_EVENTS_MAX,
    ]);
    moved = row?.moved ?? 0;
    all += moved;
  } while (moved === RELAY_BATCH_EVENTS_MAX && performance.now() - began < FORGET_RUN_MILLISECONDS_MAX);
  if (all > 0)
    log("error", "events were published again and again and never settled; they moved to the dead letters", {
      count: all,
    });
}

/** Publishes overdue events until the outbox has no more, or the time of the run is over. */
async function publishOverdue(): Promise<void> {
  const began = performance.now();
  const until = began + RELAY_RUN_MILLISECONDS_MAX;
  // A topic that the brokers refuse or lack waits for the next run, and delays no other topic.
  const failed: string[] = [];
  let published = 0;
  for (let elapsed = 0; elapsed < RELAY_RUN_MILLISECONDS_MAX; elapsed = performance.now() - began) {
    // Overdue since this run began: an event that this run has published gets its time.
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

/** Deletes old idempotency keys in batches, for a limited time. The next run continues. */
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

/** Deletes the oldest dead letters of other producers beyond the limits. */
async function trimDeadLetters(): Promise<void> {
  const [row] = await query<{ deleted: number }>(
    "trim-dead-letters",
    "select events.trim_dead_letters($1, $2, $3) as deleted",
    [`${DEAD_LETTER_HOURS_MAX} hours`, DEAD_LETTERS_MAX, DEAD_LETTERS_BYTES_MAX],
  );
  if (row !== undefined && row.deleted > 0)
    log("warning", "old dead letters of other producers were deleted", { count: row.deleted });
}

export default subscriber({
  schedule: "* * * * *",
  async handle() {
    await giveUp();
    await publishOverdue();
    await trimDeadLetters();
    await forgetKeys();
  },
});
