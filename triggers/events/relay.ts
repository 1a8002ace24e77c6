/** Every minute: publishes overdue events of the outbox, and limits the outbox, the dead letters, keys and notifications. */
import { query } from "#kernel/database";
import {
  DEAD_LETTER_HOURS_MAX,
  DEAD_LETTERS_BYTES_MAX,
  DEAD_LETTERS_MAX,
  FORGET_BATCH_KEYS_MAX,
  FORGET_BATCH_NOTIFICATIONS_MAX,
  FORGET_RUN_MILLISECONDS_MAX,
  IDEMPOTENCY_KEY_DAYS,
  NOTIFICATION_HOURS_MAX,
  PUBLISH_ATTEMPTS_MAX,
  RELAY_BATCH_BYTES_MAX,
  RELAY_BATCH_EVENTS_MAX,
  RELAY_OVERDUE_SECONDS,
  RELAY_RUN_MILLISECONDS_MAX,
  RELAY_UNRELEASED_EVENTS_MAX,
  TRIM_BATCH_DEAD_LETTERS_MAX,
} from "#kernel/limits";
import { failure, log } from "#kernel/log";
import { byTopic, type Envelope, publish } from "#kernel/outbox";
import { subscriber } from "#kernel/subscriber";
import { isRecording, measure, type Span } from "#kernel/telemetry";

const idsOf = (envelopes: readonly Envelope[]) => envelopes.map(({ event }) => event.id);

/**
 * Publishes events of one topic, and moves events that the broker refuses to the dead letters.
 * @param until the end of this run, on the clock of `performance.now()`
 * @param span the span of this run
 * @returns how many were published
 */
async function publishOrMoveToDeadLetters(envelopes: readonly Envelope[], until: number, span: Span): Promise<number> {
  const refused = await publish(envelopes, until, span);
  const published = envelopes.length - refused.length;
  measure("lotus.events.republished", published, { "messaging.destination.name": envelopes[0]?.topic ?? "" });
  for (const { envelope, reason } of refused) {
    log("error", "the broker refuses an event; it moved to the dead letters", { event: envelope.event.id, reason });
    await query("move-unpublishable-to-dead-letters", "select events.move_unpublishable_to_dead_letters($1, $2)", [
      envelope.event.id,
      reason,
    ]);
  }
  await query("forget-unawaited", "select events.forget_unawaited($1)", [idsOf(envelopes)]);
  return published;
}

async function claim(overdueSeconds: number, exceptTopics: readonly string[], span: Span): Promise<Envelope[]> {
  const [row] = await query<{ overdue: Envelope[] }>(
    "claim",
    "select events.claim($1, $2, $3, $4) as overdue",
    [`${overdueSeconds} seconds`, RELAY_BATCH_EVENTS_MAX, RELAY_BATCH_BYTES_MAX, exceptTopics],
    "repeatable",
    span,
  );
  return row?.overdue ?? [];
}

/** The ids of events that were claimed and neither published nor released, because the database failed as well. */
let unreleased: readonly string[] = [];

/**
 * Releases claimed events, and those that an earlier call could not release, so that an outage does not count as an attempt.
 * When the database fails, the next call tries again.
 */
async function release(ids: readonly string[]): Promise<void> {
  unreleased = [...new Set([...unreleased, ...ids])].slice(-RELAY_UNRELEASED_EVENTS_MAX);
  if (unreleased.length === 0) return;
  try {
    await query("release", "select events.release($1)", [unreleased]);
    unreleased = [];
  } catch (error) {
    log("error", "claimed events were not released; the next run tries again", {
      count: unreleased.length,
      ...failure(error),
    });
  }
}

/** Moves events that no subscriber settles to the dead letters, so that the number of publications has a limit. */
async function giveUp(): Promise<void> {
  const count = await deleteInBatches(RELAY_BATCH_EVENTS_MAX, (most) =>
    query<Deletion>("give-up", "select events.give_up($1, $2) as deleted", [PUBLISH_ATTEMPTS_MAX, most]),
  );
  if (count > 0)
    log("error", "events reached the limit of publications and were not settled; they moved to the dead letters", {
      count,
    });
}

/** Publishes overdue events until the outbox has no more, or the time of the run is over. */
async function publishOverdue(span: Span): Promise<void> {
  const began = performance.now();
  const until = began + RELAY_RUN_MILLISECONDS_MAX;
  // A topic that the brokers refuse or lack waits for the next run, and delays no other topic.
  const failed: string[] = [];
  let published = 0;
  for (let elapsed = 0; elapsed < RELAY_RUN_MILLISECONDS_MAX; elapsed = performance.now() - began) {
    // Claims only events that were overdue when this run began, so that this run does not publish an event twice.
    const overdue = await claim(RELAY_OVERDUE_SECONDS + elapsed / 1000, failed, span);
    if (overdue.length === 0) break;
    for (const [topic, envelopes] of byTopic(overdue)) {
      try {
        published += await publishOrMoveToDeadLetters(envelopes, until, span);
      } catch (error) {
        const { reason = "" } = failure(error);
        log("error", "overdue events were not published; the next run tries again", {
          topic,
          count: envelopes.length,
          reason,
        });
        failed.push(topic);
        await release(idsOf(envelopes));
      }
    }
  }
  if (published > 0) log("info", "published overdue events", { count: published });
}

/** The row of a statement that deletes or moves a bounded number of rows. */
interface Deletion {
  readonly deleted: number;
}

/**
 * Repeats a statement that deletes a bounded number of rows until it deletes fewer, for a limited time. The next run continues.
 * @param batchMax rows that one statement deletes
 * @param remove deletes at most that number of rows
 * @returns the number of deleted rows
 */
async function deleteInBatches(batchMax: number, remove: (most: number) => Promise<Deletion[]>): Promise<number> {
  const began = performance.now();
  let deleted: number;
  let all = 0;
  do {
    const [row] = await remove(batchMax);
    deleted = row?.deleted ?? 0;
    all += deleted;
  } while (deleted === batchMax && performance.now() - began < FORGET_RUN_MILLISECONDS_MAX);
  return all;
}

/** Returns an interval in hours, because an interval of a day has 23 or 25 hours when the session's time zone changes its offset. */
const hours = (count: number) => `${count} hours`;

/** Deletes the oldest dead letters of other producers beyond the limits. */
async function trimDeadLetters(): Promise<void> {
  const count = await deleteInBatches(TRIM_BATCH_DEAD_LETTERS_MAX, (most) =>
    query<Deletion>("trim-dead-letters", "select events.trim_dead_letters($1, $2, $3, $4) as deleted", [
      hours(DEAD_LETTER_HOURS_MAX),
      DEAD_LETTERS_MAX,
      DEAD_LETTERS_BYTES_MAX,
      most,
    ]),
  );
  if (count > 0) log("warning", "old dead letters of other producers were deleted", { count });
}

/** Deletes old idempotency keys and old notifications. */
async function forget(): Promise<void> {
  await deleteInBatches(FORGET_BATCH_KEYS_MAX, (most) =>
    query<Deletion>("forget-keys", "select events.forget_keys($1, $2) as deleted", [
      hours(IDEMPOTENCY_KEY_DAYS * 24),
      most,
    ]),
  );
  await deleteInBatches(FORGET_BATCH_NOTIFICATIONS_MAX, (most) =>
    query<Deletion>("forget-notifications", "select notification.forget($1, $2) as deleted", [
      hours(NOTIFICATION_HOURS_MAX),
      most,
    ]),
  );
}

interface OutboxFigures {
  readonly outbox_rows: string;
  readonly outbox_seconds: number;
  readonly dead_letters: string;
}

async function reportOutbox(span: Span): Promise<void> {
  const [figures] = await query<OutboxFigures>("figures", "select * from events.figures()", [], "repeatable", span);
  if (figures === undefined) return;
  measure("lotus.outbox.rows", Number(figures.outbox_rows));
  measure("lotus.outbox.age", figures.outbox_seconds);
  measure("lotus.dead_letters", Number(figures.dead_letters));
}

interface LedgerFigures {
  readonly seal_seconds: number | null;
  readonly trial_balance: string;
}

async function reportLedger(span: Span): Promise<void> {
  const [figures] = await query<LedgerFigures>(
    "ledger-figures",
    "select * from billing.figures()",
    [],
    "repeatable",
    span,
  );
  if (figures === undefined) return;
  measure("lotus.trial_balance", Number(figures.trial_balance));
  // The ledger has no seal before its first hour, so the age is absent.
  if (figures.seal_seconds !== null) measure("lotus.seal.age", figures.seal_seconds);
}

/** Reports a part of the state of the database as metrics. Without telemetry it sends no query. A failure does not stop the relay. */
async function reported(report: (span: Span) => Promise<void>, span: Span): Promise<void> {
  if (!isRecording()) return;
  await report(span).catch((error: unknown) => log("warning", "some figures were not reported", failure(error)));
}

export default subscriber({
  schedule: "* * * * *",
  async handle({ span }) {
    await reported(reportOutbox, span);
    // Before events at the limit of publications move to the dead letters: a released event has one publication more.
    await release([]);
    await giveUp();
    await publishOverdue(span);
    await trimDeadLetters();
    await forget();
    // The sum of all balances takes the longest, and no event waits for it.
    await reported(reportLedger, span);
  },
});
