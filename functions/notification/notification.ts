/** What a notification is, and how one is stored: once, however often its event is delivered. */
import * as v from "valibot";
import { query } from "#kernel/database";
import type { NotificationRequested } from "./events.ts";
import { message } from "./message.ts";

export const Notification = v.object({
  id: v.pipe(v.string(), v.uuid()),
  message: v.string(),
  email: v.string(),
  createdAt: v.pipe(v.string(), v.isoTimestamp()),
});

/**
 * Stores the notification that an event asks for, and settles the event, in one transaction.
 * @param key the event's key, which becomes the notification's id
 * @param time when it happened: the order in which notifications are shown
 */
export async function storeNotification(
  key: string,
  time: string,
  data: v.InferOutput<typeof NotificationRequested>,
): Promise<void> {
  await query("store-notification", "select notification.store($1, $2, $3, $4, $5)", [
    key,
    data.userId,
    data.recipient,
    message(data),
    time,
  ]);
}
