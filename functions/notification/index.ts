/** GET /notification. What the caller was told, newest first, page by page; what is still on its way is stored first. */
import * as v from "valibot";
import { query } from "#kernel/database";
import { endpoint } from "#kernel/endpoint";
import type { Envelope } from "#kernel/outbox";
import { NotificationRequested } from "./events.ts";
import { Notification, storeNotification } from "./notification.ts";

/** Events that one look finds, and looks in one request: what is older than that the trigger will store. */
const UNSETTLED_EVENTS_MAX = 100;
const LOOKS_MAX = 20;

interface Row {
  id: string;
  message: string;
  email: string;
  created_at: string;
}

/** The rows after that notification of the caller's; without one, from the first. Somebody else's is followed by nothing. */
const SELECT = `select
  coalesce((select jsonb_agg(n) from (
    select id, message, email, created_at from notification.notifications
    where user_id = $1 and (created_at, id) < (
      case when $2::uuid is null then 'infinity'
        else (select created_at from notification.notifications where id = $2 and user_id = $1) end,
      coalesce($2, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
    order by created_at desc, id desc limit $3) n), '[]') as page,
  events.unsettled($1, 'notification-requested', 'notification-store', $4) as unsettled`;

export default endpoint({
  method: "GET",
  caller: "user",
  page: v.tuple([v.pipe(v.string(), v.uuid())]),
  answers: { 200: v.array(Notification) },
  async handle({ user, page }) {
    for (let look = 1; ; look++) {
      const [row] = await query<{ page: Row[]; unsettled: Envelope[] }>("notifications", SELECT, [
        user.id,
        page.after?.[0] ?? null,
        page.limit + 1,
        UNSETTLED_EVENTS_MAX,
      ]);
      const pending = (row?.unsettled ?? []).map(({ event }) => ({
        event,
        data: v.safeParse(NotificationRequested, event.data),
      }));
      const storable = pending.filter(({ data }) => data.success);
      if (storable.length === 0 || look === LOOKS_MAX) {
        return page.answer(
          row?.page ?? [],
          ({ id }) => [id],
          ({ id, message, email, created_at }) => ({
            id,
            message,
            email,
            createdAt: new Date(created_at).toISOString(),
          }),
        );
      }
      // The same statement as the trigger's: whichever comes first, the other changes nothing.
      await Promise.all(
        storable.map(({ event, data }) =>
          storeNotification(event.id, event.time ?? "", data.output as v.InferOutput<typeof NotificationRequested>),
        ),
      );
    }
  },
});
