/** What a notification is, and how one is stored: once, however often its event is delivered. */
import * as v from "valibot";
import { query } from "#kernel/database";
import type { NotificationRequested } from "./events.ts";
import { message } from "./message.ts";

export const Notification = v.pipe(
  v.object({
    id: v.pipe(v.string(), v.uuid()),
    message: v.string(),
    email: v.string(),
    createdAt: v.pipe(v.string(), v.isoTimestamp()),
  }),
  v.title("Notification"),
);

/** A notification that is asked for. */
export interface Requested {
  /** The event's key, which becomes the notification's id. */
  readonly key: string;
  /** When it happened: the order in which notifications are shown. RFC 3339. */
  readonly time: string;
  readonly data: v.InferOutput<typeof NotificationRequested>;
}

/** A row of notification.notifications. */
export interface NotificationRow {
  readonly id: string;
  readonly message: string;
  readonly email: string;
  readonly created_at: string;
}

/** Stores notifications and settles the events that ask for them, in one statement. Returns them as they are stored. */
export async function storeNotifications(requested: readonly Requested[]): Promise<NotificationRow[]> {
  const rows = requested.map(({ key, time, data }) => ({
    id: key,
    message: message(data),
    email: data.recipient,
    created_at: time,
  }));
  await query(
    "store-notifications",
    `select notification.store(id, user_id, email, message, created_at)
      from unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::timestamptz[]) r (id, user_id, email, message, created_at)`,
    [
      rows.map(({ id }) => id),
      requested.map(({ data }) => data.userId),
      rows.map(({ email }) => email),
      rows.map(({ message }) => message),
      rows.map(({ created_at }) => created_at),
    ],
  );
  return rows;
}
