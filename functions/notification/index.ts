/** GET /notification. Stores the caller's notifications whose events are still in the outbox. Then lists all, newest first. */
import * as v from "valibot";
import { query } from "#kernel/database";
import { endpoint } from "#kernel/endpoint";
import { PAGE_ROWS_MAX } from "#kernel/limits";
import type { Envelope } from "#kernel/outbox";
import { NotificationRequested } from "./events.ts";
import { Notification, type NotificationRow, storeNotifications, type Unsettled } from "./notification.ts";

/** Limits the unsettled events that one statement finds, newest first. It is above the rows of a page. */
const UNSETTLED_EVENTS_MAX = PAGE_ROWS_MAX + 1;
/** Limits the statements of one request that search for unsettled events. The trigger stores the others. */
const SEARCHES_MAX = 20;

/**
 * Selects the page after the notification `$2`, or the first page when `$2` is null, and the caller's unsettled events. The page
 * after another user's notification is empty.
 */
const SELECT = `select
  coalesce((select jsonb_agg(n) from (
    select id, message, email, to_char(created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as created_at
    from notification.notifications t
    where user_id = $1 and (t.created_at, id) < (
      case when $2::uuid is null then 'infinity'
        else (select created_at from notification.notifications where id = $2 and user_id = $1) end,
      coalesce($2, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
    order by t.created_at desc, id desc limit $3) n), '[]') as page,
  events.unsettled($1, 'notification-requested', 'notification-store', $4) as unsettled`;

/** Returns the unsettled events that request a notification for the caller. The trigger handles the others, also invalid ones. */
function requestedOf(unsettled: readonly Envelope[], userId: string): Unsettled[] {
  return unsettled.flatMap(({ event }) => {
    const data = v.safeParse(NotificationRequested, event.data);
    if (!data.success || data.output.userId !== userId || event.time === undefined) return [];
    return [{ key: event.id, time: event.time, data: data.output, traceparent: event.traceparent }];
  });
}

/** Orders rows newest first. All times are UTC texts with microseconds, so the order of the texts is the order of the times. */
function newestFirst(a: NotificationRow, b: NotificationRow): number {
  return a.created_at === b.created_at ? (a.id < b.id ? 1 : -1) : a.created_at < b.created_at ? 1 : -1;
}

const present = ({ id, message, email, created_at }: NotificationRow) => ({
  id,
  message,
  email,
  createdAt: new Date(created_at).toISOString(),
});

export default endpoint({
  method: "GET",
  caller: "user",
  summary: "Lists the caller's notifications, newest first.",
  description: "It stores notifications that are still on their way first.",
  page: v.tuple([v.pipe(v.string(), v.uuid())]),
  answers: { 200: v.array(Notification) },
  async handle({ user, page, span }) {
    const answer = (rows: readonly NotificationRow[]) => page.answer(rows, ({ id }) => [id], present);
    for (let search = 1; ; search++) {
      const [row] = await query<{ page: NotificationRow[]; unsettled: Envelope[] }>(
        "notifications",
        SELECT,
        [user.id, page.after?.[0] ?? null, page.limit + 1, UNSETTLED_EVENTS_MAX],
        "repeatable",
        span,
      );
      const { page: rows, unsettled } = row ?? { page: [], unsettled: [] };
      const requested = requestedOf(unsettled, user.id);
      if (requested.length === 0 || search === SEARCHES_MAX) return answer(rows);
      // The trigger stores by the same statement. When both store a notification, the second one has no effect.
      const stored = await storeNotifications(requested, span);
      // The first page is complete when the statement found all unsettled events. Every other page is selected again.
      const complete = page.after === undefined && unsettled.length < UNSETTLED_EVENTS_MAX;
      if (!complete) continue;
      // A replayed event may have its notification already.
      const shown = new Set(rows.map(({ id }) => id));
      const added = stored.filter(({ id }) => !shown.has(id));
      return answer([...rows, ...added].sort(newestFirst).slice(0, page.limit + 1));
    }
  },
});
