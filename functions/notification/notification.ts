/** Stores notifications. A second delivery of the same event stores nothing. */
import * as v from "valibot";
import { batched } from "#kernel/batch";
import { query } from "#kernel/database";
import { beginSettling, type Span, Statement } from "#kernel/telemetry";
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

/** A notification that an event requests. */
export interface Requested {
  /** The event's key, which becomes the notification's id. */
  readonly key: string;
  /** The time of the event (RFC 3339). It orders the notifications. */
  readonly time: string;
  readonly data: v.InferOutput<typeof NotificationRequested>;
  /** The span of the delivery. */
  readonly span?: Span;
}

/** A notification that a reader found unsettled. */
export interface Unsettled extends Requested {
  /** The context of the event's producer, which the outbox row contains. */
  readonly traceparent: string | undefined;
}

/** A row of notification.notifications. */
export interface NotificationRow {
  readonly id: string;
  readonly message: string;
  readonly email: string;
  readonly created_at: string;
}

/** The parameters of notification.store, after `waits`: one array for each column. */
function columnsOf(rows: readonly StoredRow[]): unknown[] {
  return [
    rows.map(({ id }) => id),
    rows.map(({ userId }) => userId),
    rows.map(({ email }) => email),
    rows.map(({ message }) => message),
    rows.map(({ created_at }) => created_at),
  ];
}

interface StoredRow extends NotificationRow {
  readonly userId: string;
}

const rowOf = ({ key, time, data }: Requested): StoredRow => ({
  id: key,
  userId: data.userId,
  message: message(data),
  email: data.recipient,
  created_at: time,
});

const STORE = 'select "position" from notification.store($1, $2, $3, $4, $5, $6)';

/** Stores one notification and settles the event that requested it. Joins the notifications of other events in one statement. */
export const storeNotification = batched<Requested, { readonly position: number }>({
  name: "notification.store",
  many: STORE,
  one: STORE,
  valuesOfMany: (requested) => [false, ...columnsOf(requested.map(rowOf))],
  valuesOfOne: (requested) => [true, ...columnsOf([rowOf(requested)])],
  keyOf: ({ key }) => key,
  repetitionOf: () => "repeatable",
  spanOf: ({ span }) => span,
});

/**
 * Stores the notifications that a reader found unsettled, and settles their events, in one statement. Returns their rows.
 * @param reader the span of the reader's request; the traces of the events continue with separate spans
 */
export async function storeNotifications(unsettled: readonly Unsettled[], reader: Span): Promise<NotificationRow[]> {
  const rows = unsettled.map(rowOf);
  const settling = beginSettling("notification-requested", unsettled, reader);
  const statement = new Statement("notification.store", STORE, [reader, ...settling.spans], rows.length);
  try {
    await query("notification.store (reader)", STORE, [true, ...columnsOf(rows)], "repeatable", statement);
    settling.end();
  } catch (error) {
    settling.end("failed");
    throw error;
  }
  return rows.map(({ userId: _, ...row }) => row);
}
