/** GET /notification. Lists the caller's notifications, newest first. It stores the caller's unsettled notifications before. */
import * as v from "valibot";
import { query } from "#kernel/database";
import { endpoint } from "#kernel/endpoint";
import type { Envelope } from "#kernel/outbox";
import { PAGE_ROWS_MAX } from "#kernel/settings";
import { NotificationRequested } from "./events.ts";
import { Notification, type NotificationRow, storeNotifications, type Unsettled } from "./notification.ts";

/** Events that one look finds, the newest first: more than a page has. And looks in one request: the rest the trigger will store. */
const UNSETTLED_EVENTS_MAX = PAGE_ROWS_MAX + 1;
const LOOKS_MAX = 20;

/** The rows after that notification of the caller's; without one, from the first. Somebody else's is followed by nothing. */
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

/** Returns the caller's unsettled events that request a notification for the caller. The trigger judges all others. */
function requestedOf(unsettled: readonly Envelope[], userId: string): Unsettled[] {
  return unsettled.flatMap(({ event }) => {
    const data = v.safeParse(NotificationRequested, event.data);
    if (!data.success || data.output.userId !== userId || event.time === undefined) return [];
    return [{ key: event.id, time: event.time, data: data.output, traceparent: event.traceparent }];
  });
}

/** Newest first. Times are of one form, to the microsecond in UTC, so their texts are in the order of the times. */
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
    for (let look = 1; ; look++) {
      const [row] = await query<{ page: NotificationRow[]; unsettled: Envelope[] }>(
        "notifications",
        SELECT,
        [user.id, page.after?.[0] ?? null, page.limit + 1, UNSETTLED_EVENTS_MAX],
        "repeatable",
        span,
      );
      const { page: rows, unsettled } = row ?? { page: [], unsettled: [] };
      const requested = requestedOf(unsettled, user.id);
      if (requested.length === 0 || look === LOOKS_MAX) return answer(rows);
      // The same statement as the trigger's: whichever comes first, the other changes nothing.
      const stored = await storeNotifications(requested, span);
      // On the first page all that was on its way is known now; another one has to be looked up again.
      const known = page.after === undefined && unsettled.length < UNSETTLED_EVENTS_MAX;
      if (!known) continue;
      // A replayed event may have its notification already.
      const shown = new Set(rows.map(({ id }) => id));
      const added = stored.filter(({ id }) => !shown.has(id));
      return answer([...rows, ...added].sort(newestFirst).slice(0, page.limit + 1));
    }
  },
});
