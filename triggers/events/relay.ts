/** Every minute. Publishes what has been in the outbox for too long, and forgets old idempotency keys. */
import { query } from "#kernel/database";
import { UnknownTopic } from "#kernel/kafka";
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

/** One batch. `more` is false when nothing is overdue, and when the broker takes nothing now. */
async function publishBatch(overdueSeconds: number): Promise<{ published: number; more: boolean }> {
  const [row] = await query<{ overdue: Envelope[] }>("claim", "select events.claim($1, $2, $3) as overdue", [
    `${overdueSeconds} seconds`,
    RELAY_BATCH_EVENTS_MAX,
    RELAY_BATCH_BYTES_MAX,
  ]);
  const topics = byTopic(row?.overdue ?? []);
  let published = 0;
  for (const [index, [topic, envelopes]] of topics.entries()) {
    try {
      published += await publishOrBury(envelopes);
    } catch (error) {
      const { reason = "" } = failure(error);
      log("error", "overdue events were not published; a later run tries again", {
        topic,
        count: envelopes.length,
        reason,
      });
      // Those of a topic that is not there have had their attempt, and wait longer for the next: others come before them.
      if (error instanceof UnknownTopic) continue;
      await query("release", "select events.release($1)", [idsOf(topics.slice(index).flatMap(([, left]) => left))]);
      return { published, more: false };
    }
  }
  return { published, more: topics.length > 0 };
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
