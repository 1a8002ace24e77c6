/** Every minute. Publishes what has been in the outbox for too long, and forgets old idempotency keys. */
import { query } from "#kernel/database";
import { failure, log } from "#kernel/log";
import { type Envelope, publish } from "#kernel/outbox";
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

function byTopic(envelopes: readonly Envelope[]): [topic: string, envelopes: Envelope[]][] {
  const topics = new Map<string, Envelope[]>();
  for (const envelope of envelopes) {
    const others = topics.get(envelope.topic);
    if (others === undefined) topics.set(envelope.topic, [envelope]);
    else others.push(envelope);
  }
  return [...topics];
}

/** Publishes events, and buries those that no broker takes. Resolves to how many were published. */
async function publishOrBury(envelopes: readonly Envelope[]): Promise<number> {
  const refused = await publish(envelopes);
  for (const { envelope, reason } of refused) {
    log("error", "an event that no broker takes was buried", { event: envelope.event.id, reason });
    await query("bury-unpublishable", "select events.bury_unpublishable($1, $2)", [envelope.event.id, reason]);
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
  // A topic that brokers do not take, or lack, is left to the next run; it holds up no other.
  const failed: string[] = [];
  let published = 0;
  for (let elapsed = 0; elapsed < RELAY_RUN_MILLISECONDS_MAX; elapsed = performance.now() - began) {
    // What was overdue when this run began: what it has published itself since then gets its time.
    const overdue = await claim(RELAY_OVERDUE_SECONDS + elapsed / 1000, failed);
    if (overdue.length === 0) break;
    for (const [topic, envelopes] of byTopic(overdue)) {
      try {
        published += await publishOrBury(envelopes);
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
      `${IDEMPOTENCY_KEY_DAYS} days`,
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
