/** Runs the functions that events or a schedule invoke. It moves an event that the function can never handle to the dead letters. */
import { createHash } from "node:crypto";
import type { IncomingHttpHeaders } from "node:http";
import { setTimeout as delay } from "node:timers/promises";
import * as v from "valibot";
import { query } from "./database.ts";
import type { Scale } from "./endpoint.ts";
import {
  BATCH_ROWS_MAX,
  DATABASE_AWAY_MILLISECONDS_MAX,
  DATABASE_AWAY_STEP_MILLISECONDS,
  DEAD_LETTER_ATTRIBUTE_LENGTH_MAX,
  DEAD_LETTER_ATTRIBUTES_LENGTH_MAX,
  DEAD_LETTER_BODY_BYTES_MAX,
  EVENT_BODY_BYTES_MAX,
  PREFLIGHT_TYPE,
  REASON_LENGTH_MAX,
} from "./limits.ts";
import { failure, log } from "./log.ts";
import type { CloudEvent } from "./outbox.ts";
import { fieldErrors, Problem } from "./problem.ts";
import type { Schema } from "./request.ts";
import {
  beginSpan,
  isRecording,
  measure,
  readTraceparent,
  recordColdStart,
  type Span,
  type SpanContext,
} from "./telemetry.ts";

/** An event as a handler sees it. */
export interface Delivery<Data> {
  /** The identity of the event: a second delivery with the same key changes nothing. */
  readonly key: string;
  readonly data: Data;
  readonly time: string;
  /** The CloudEvents attributes, with extensions, unchanged. */
  readonly attributes: Readonly<Record<string, string>>;
  /** The data before it is parsed. */
  readonly body: Buffer | undefined;
  /** The name of the function that handles the event. */
  readonly subscriber: string;
  /** The span of this delivery. Statements that the handler sends become spans below it. */
  readonly span: Span;
}

/** The function can never handle the event. `message` is the reason in the dead letter. */
class Unacceptable extends Error {}

interface OfTopic<S extends Schema> {
  /** Events of this topic, delivered by a KafkaSource. */
  readonly topic: string;
  readonly data: S;
  handle(delivery: Delivery<v.InferOutput<S>>): Promise<void>;
}

interface OfSchedule {
  /** The schedule of a PingSource, in the five fields of cron. */
  readonly schedule: string;
  /** The topic that this function publishes for subscribers outside Lotus, and the schema of its data. */
  readonly publishes?: { readonly topic: string; readonly data: Schema };
  handle(delivery: Delivery<undefined>): Promise<void>;
}

interface OfDeadLetters {
  /** Marks the dead-letter sink: it handles the events that KafkaSource could not deliver. */
  readonly deadLetters: true;
  handle(delivery: Delivery<undefined>): Promise<void>;
}

interface Scaled {
  readonly scale?: Scale;
}

/** Describes a function that events or a schedule invoke. Its file exports the description by default. */
export type Subscriber = { readonly kind: "subscriber" } & Scaled & (OfTopic<Schema> | OfSchedule | OfDeadLetters);

/** Describes a function that is invoked by the events of a topic, by a schedule, or by undeliverable events. */
export function subscriber<S extends Schema>(description: OfTopic<S> & Scaled): Subscriber;
export function subscriber(description: (OfSchedule | OfDeadLetters) & Scaled): Subscriber;
export function subscriber(description: (OfTopic<Schema> | OfSchedule | OfDeadLetters) & Scaled): Subscriber {
  return { kind: "subscriber", ...description };
}

const INSTALLATION_SOURCE = /^\/lotus\/([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\//i;

/** Returns the installation's id in the source of an event of Lotus: `/lotus/<id>/<function>`. Other sources have none. */
function installationOf(source: string | undefined): string | undefined {
  return INSTALLATION_SOURCE.exec(source ?? "")?.[1]?.toLowerCase();
}

let installation: string | undefined;

/** Returns the id of this installation, from the database. */
async function ownInstallation(): Promise<string> {
  installation ??= (await query<{ id: string }>("installation", "select events.installation_id() as id", []))[0]?.id;
  if (installation === undefined) throw new Error("the database has no installation id; run npm run migrate");
  return installation;
}

/**
 * Returns the key of an event. An event of this installation has its id as key, which is the id of its outbox row. All others have
 * a hash, so that they cannot settle an outbox row. The hash covers source, id (CloudEvents 1.0 §3.1) and also data: HTTP removes
 * spaces around an id, and KafkaSource replaces characters outside Latin-1, so different ids can look equal. A duplicate is better
 * than a lost event.
 */
function keyOf(attributes: Record<string, string>, body: Buffer | undefined, own: string): string {
  const { id, source, type, time, knativekafkapartition: partition, knativekafkaoffset: offset } = attributes;
  if (id !== undefined && v.UUID_REGEX.test(id) && installationOf(source) === own) return id.toLowerCase();
  const isEvent = id !== undefined && source !== undefined;
  const parts: unknown[] = isEvent ? [source, id, hashOf(body ?? "")] : [attributes, body?.toString("base64")];
  // KafkaSource makes the id of a plain record from its offset. Offsets begin again when a topic is recreated; the time differs.
  if (type === "dev.knative.kafka.event") parts.push(time);
  if (offset !== undefined && `${id}${source}`.includes("?")) parts.push(partition, offset);
  const hash = hashOf(JSON.stringify(parts));
  return `${hash.slice(0, 8)}-${hash.slice(8, 12)}-8${hash.slice(13, 16)}-8${hash.slice(17, 20)}-${hash.slice(20, 32)}`;
}

function hashOf(content: string | Buffer): string {
  return createHash("sha256").update(content).digest("hex");
}

/** A time in UTC with at most microseconds. Postgres would round further digits, possibly up into the year 10000. */
const UTC_TIME = /^(?!0000)\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?Z$/;

/**
 * Returns the event's time (RFC 3339) in a form that Postgres accepts. A time in UTC with at most microseconds stays unchanged.
 * Another time that JavaScript can parse, such as one in another zone, is converted to UTC. Any other text becomes the present time.
 */
function timeOf(time = ""): string {
  const at = new Date(time);
  const text = Number.isNaN(at.getTime()) ? "" : at.toISOString();
  if (!UTC_TIME.test(text)) return new Date().toISOString();
  return UTC_TIME.test(time) && time.startsWith(text.slice(0, 19)) ? time : text;
}

const ATTRIBUTE_NAME = /^[a-z0-9]+$/;
const STRUCTURED = /^application\/cloudevents(?:-batch)?\+json\s*(?:;|$)/i;

/** Decodes an attribute that became a header (CloudEvents HTTP binding §3.1.3.2). Leaves text that is not encoded unchanged. */
function percentDecoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/**
 * Reads the request that delivers an event. It replaces the framework, which would pass an incomplete event on as plain data.
 * @returns an event in binary mode, or the body of a request in structured or batch mode
 * @throws {Problem} 415 when the request has none of these modes
 */
export function readDelivery(headers: IncomingHttpHeaders, body: Buffer | undefined): CloudEvent | Buffer {
  if (headers["ce-specversion"] === undefined) {
    if (body !== undefined && STRUCTURED.test(headers["content-type"] ?? "")) return body;
    throw new Problem(
      "unsupported-media-type",
      "Send a CloudEvent: in binary mode with the header ce-specversion, or as application/cloudevents+json or application/cloudevents-batch+json.",
    );
  }
  // KafkaSource does not percent-encode attributes, so `%41` and `A` are two ids.
  const decoded = headers["ce-knativekafkaoffset"] === undefined ? percentDecoded : (text: string) => text;
  const attributes = Object.entries(headers).flatMap(([header, text]) => {
    const name = header.startsWith("ce-") ? header.slice(3) : "";
    return ATTRIBUTE_NAME.test(name) && typeof text === "string" ? [[name, decoded(text)]] : [];
  });
  return { ...Object.fromEntries(attributes), data: body } as CloudEvent;
}

/** Returns the events of a request: several for a batch. */
function eventsOf(request: CloudEvent | Buffer): unknown[] {
  if (!Buffer.isBuffer(request)) return [request];
  try {
    const parsed = parseJson(request);
    return Array.isArray(parsed) ? parsed : [parsed];
  } catch {
    // A body that is not JSON becomes one dead letter: handleEvent parses it again and records the reason.
    return [request];
  }
}

interface Event {
  readonly attributes: Record<string, string>;
  readonly body: Buffer | undefined;
}

/** Splits an event into attributes and data. The event is in JSON format, or in binary mode with a Buffer as data. */
function splitEvent(event: unknown): Event {
  if (Buffer.isBuffer(event)) return { attributes: {}, body: event };
  if (typeof event !== "object" || event === null || Array.isArray(event)) {
    return { attributes: {}, body: Buffer.from(JSON.stringify(event)) };
  }
  const {
    data_base64: base64,
    data = typeof base64 === "string" ? Buffer.from(base64, "base64") : undefined,
    ...rest
  } = event as Partial<CloudEvent>;
  const attributes = Object.entries(rest).filter((entry): entry is [string, string] => typeof entry[1] === "string");
  const body = data === undefined ? undefined : Buffer.isBuffer(data) ? data : Buffer.from(JSON.stringify(data));
  return { attributes: Object.fromEntries(attributes), body: body?.length === 0 ? undefined : body };
}

const REQUIRED = ["specversion", "id", "source", "type"];

/** @throws {Unacceptable} naming the required attributes that are missing or empty (CloudEvents 1.0 §3.1) */
function requireAttributes({ attributes }: Event): void {
  const missing = REQUIRED.filter((name) => (attributes[name] ?? "") === "");
  if (missing.length === 0) return;
  const problem = missing.length === 1 ? `the attribute ${missing[0]} is` : `the attributes ${missing.join(", ")} are`;
  throw new Unacceptable(`The request is not a CloudEvent: ${problem} missing or empty.`);
}

const utf8 = new TextDecoder("utf-8", { fatal: true });

function parseJson(body: Buffer): unknown {
  try {
    return JSON.parse(utf8.decode(body));
  } catch (error) {
    // The engine's message quotes the data. The reason must not contain it.
    throw new Unacceptable(
      `The data is not JSON in UTF-8: ${(error as Error).message.replace(/, (?:\.\.\.)?".*$/s, "")}.`,
    );
  }
}

/** Returns text that Postgres can store: without NUL and without halves of surrogate pairs. */
const storable = (text: string) => Buffer.from(text.replaceAll("\0", "\uFFFD")).toString();

/** Returns a hint when the data looks like a complete event: KafkaSource treats one without the right content type as plain data. */
function structuredHint(data: unknown): string {
  const looksStructured =
    typeof data === "object" && data !== null && ["specversion", "id", "source"].every((name) => name in data);
  return looksStructured
    ? " It looks like a structured CloudEvent with another content type than application/cloudevents+json, such as application/json."
    : "";
}

/** Accepts events of other producers when their data fits. An event of a Lotus type must have the known version. */
function readData({ topic, data }: OfTopic<Schema>, type: string | undefined, body: Buffer | undefined): unknown {
  if (type?.startsWith("lotus.") && type !== `lotus.${topic}.v1`) {
    throw new Unacceptable(`The type ${type} is not known here; this subscriber knows lotus.${topic}.v1.`);
  }
  if (body === undefined) throw new Unacceptable("The event has no data.");
  if (body.length > EVENT_BODY_BYTES_MAX) {
    throw new Unacceptable(`The data has ${body.length} bytes; at most ${EVENT_BODY_BYTES_MAX} are accepted.`);
  }
  const given = parseJson(body);
  const result = v.safeParse(data, given);
  if (result.success) return result.output;
  const wrong = fieldErrors(result.issues, "data").map(({ field, detail }) => `${field}: ${detail}`);
  throw new Unacceptable(`The data is not that of ${topic}: ${wrong.join("; ")}.${structuredHint(given)}`);
}

/** Shortens attributes to the lengths that a dead letter may contain. */
function storableAttributes(attributes: Readonly<Record<string, string>>): Record<string, string> {
  let remaining = DEAD_LETTER_ATTRIBUTES_LENGTH_MAX;
  const kept: [string, string][] = [];
  for (const [name, text] of Object.entries(attributes)) {
    const value = storable(text.slice(0, DEAD_LETTER_ATTRIBUTE_LENGTH_MAX));
    remaining -= name.length + value.length;
    if (remaining >= 0) kept.push([storable(name), value]);
  }
  return Object.fromEntries(kept);
}

/**
 * Moves an event to the dead letters and settles it, in one statement. It cuts attributes and data to the limits in limits.ts;
 * the reason names the cut of the data.
 * @param attemptsBefore the publications after which the event moves. An event with fewer stays in the outbox; 0 moves it at once
 * @returns false when the event stays in the outbox, or, with `attemptsBefore` above 0, when the subscriber has already settled it
 */
export async function moveToDeadLetters(
  {
    key,
    attributes,
    body,
    subscriber,
    span,
  }: Pick<Delivery<unknown>, "key" | "attributes" | "body" | "subscriber" | "span">,
  reason: string,
  attemptsBefore = 0,
): Promise<boolean> {
  const cut = body !== undefined && body.length > EVENT_BODY_BYTES_MAX;
  const kept = cut ? body.subarray(0, DEAD_LETTER_BODY_BYTES_MAX) : (body ?? null);
  const suffix = cut ? ` The first ${DEAD_LETTER_BODY_BYTES_MAX} of ${body.length} bytes are stored.` : "";
  const [row] = await query<{ moved: boolean }>(
    "move-to-dead-letters",
    "select events.move_to_dead_letters($1, $2, $3, $4, $5, $6) as moved",
    [
      key,
      subscriber,
      storable(reason.slice(0, REASON_LENGTH_MAX) + suffix),
      JSON.stringify(storableAttributes(attributes)),
      kept,
      attemptsBefore,
    ],
    "repeatable",
    span,
  );
  return row?.moved ?? false;
}

/** SQLSTATE classes of errors that the event or the function causes: every attempt would fail in the same way. */
const PERMANENT_SQLSTATE = /^(?:21|22|23|42|44|P0)/;

/** Returns whether a later attempt may succeed: the database is unavailable, read-only, full, or refuses the login. */
function isTemporary(error: unknown): boolean {
  if (error instanceof Problem) return error.code === "unavailable" || error.code === "outcome-unknown";
  const { code } = (error ?? {}) as { code?: unknown };
  return typeof code === "string" && /^[0-9A-Z]{5}$/.test(code) && !PERMANENT_SQLSTATE.test(code);
}

/**
 * Repeats work while the database is unavailable. KafkaSource passes an event to the dead-letter sink after six failures, and drops
 * it when the sink fails too. The sink needs the same database, and the outbox does not contain the events of other producers.
 */
async function repeatWhileUnavailable<T>(work: () => Promise<T>): Promise<T> {
  const until = performance.now() + DATABASE_AWAY_MILLISECONDS_MAX;
  for (;;) {
    try {
      return await work();
    } catch (error) {
      if (!isTemporary(error) || performance.now() > until) throw error;
      await delay(DATABASE_AWAY_STEP_MILLISECONDS);
    }
  }
}

const traceparents = new WeakMap<object, unknown>();

/**
 * Remembers the `traceparent` of the request that delivers an event. The span of the delivery links to it and does not descend from
 * it, because KafkaSource may send the `traceparent` of another record of its batch.
 */
export function markDelivered(event: CloudEvent | Buffer, traceparent: unknown): void {
  if (traceparent !== undefined) traceparents.set(event, traceparent);
}

/** Begins the span of a delivery in the trace of the event's producer. A schedule has no producer. */
function beginDelivery(
  name: string,
  description: Subscriber,
  attributes: Readonly<Record<string, string>>,
  began: number,
): Span {
  const isTimer = "schedule" in description;
  const topic = "topic" in description ? description.topic : "dead-letters";
  const span = isTimer
    ? beginSpan(name, "server", undefined, began).set({ "faas.trigger": "timer" })
    : beginSpan(`process ${topic}`, "consumer", readTraceparent(attributes.traceparent), began);
  recordColdStart(span);
  if (isTimer || !span.sampled) return span;
  return span.set({
    "faas.trigger": "pubsub",
    "messaging.system": "kafka",
    "messaging.operation.name": "process",
    "messaging.operation.type": "process",
    "messaging.destination.name": topic,
    "messaging.consumer.group.name": name,
    "messaging.message.id": attributes.id,
    "messaging.destination.partition.id": attributes.knativekafkapartition,
    "messaging.kafka.offset": attributes.knativekafkaoffset,
  });
}

/** Ends the span of a delivery, and measures its duration. */
function endDelivery(
  span: Span,
  name: string,
  description: Subscriber,
  began: number,
  level: "info" | "warning" | "error",
): void {
  if (!isRecording()) return;
  const outcome = { info: "handled", warning: "dead-letter", error: "failed" }[level];
  const errorType = level === "info" ? undefined : outcome;
  measure("messaging.process.duration", (performance.now() - began) / 1000, {
    "messaging.system": "schedule" in description ? "timer" : "kafka",
    "messaging.operation.name": "process",
    "messaging.consumer.group.name": name,
    ...("topic" in description && { "messaging.destination.name": description.topic }),
    ...(errorType && { "error.type": errorType }),
  });
  span.set({ "lotus.outcome": outcome }).end(errorType);
}

/** Handles one event, or moves it to the dead letters. Throws when a later delivery may succeed. */
async function handleEvent(
  name: string,
  description: Subscriber,
  given: unknown,
  deliveredBy: SpanContext | undefined,
): Promise<void> {
  const began = performance.now();
  const event = splitEvent(given);
  const { attributes, body } = event;
  const span = beginDelivery(name, description, attributes, began).link(deliveredBy);
  let reason: string | undefined;
  let errorFields = {};
  const deliveryOf = (own: string, data: unknown) => ({
    key: keyOf(attributes, body, own),
    data: data as never,
    time: timeOf(attributes.time),
    attributes,
    body,
    subscriber: name,
    span,
  });
  try {
    // The next run of a schedule repeats its work, so a failure needs no retry.
    if ("schedule" in description) return await description.handle(deliveryOf("", undefined));
    if (attributes.type === PREFLIGHT_TYPE) return;
    await repeatWhileUnavailable(async () => {
      const own = await ownInstallation();
      try {
        if (Buffer.isBuffer(given)) parseJson(given);
        requireAttributes(event);
        if ("deadLetters" in description) return await description.handle(deliveryOf(own, undefined));
        const other = installationOf(attributes.source);
        if (other !== undefined && other !== own) {
          throw new Unacceptable(
            `The event belongs to the installation ${other}, and this is ${own}. Installations that share a Kafka each need a KAFKA_PREFIX.`,
          );
        }
        await description.handle(deliveryOf(own, readData(description, attributes.type, body)));
      } catch (error) {
        if (!(error instanceof Unacceptable)) throw error;
        reason = error.message.slice(0, REASON_LENGTH_MAX);
        await moveToDeadLetters(deliveryOf(own, undefined), reason);
      }
    });
  } catch (error) {
    errorFields = failure(error);
    throw error;
  } finally {
    const level = "reason" in errorFields ? "error" : reason === undefined ? "info" : "warning";
    const messages = {
      error: "failed; the source delivers the event again",
      info: "handled",
      warning: "moved to the dead letters",
    };
    log(level, messages[level], {
      trace_id: span.traceId,
      span_id: span.spanId,
      ...(attributes.id === undefined ? {} : { event: attributes.id }),
      ...("topic" in description ? { topic: description.topic } : {}),
      ...(attributes.subject === undefined ? {} : { caller: attributes.subject }),
      ...(reason === undefined ? {} : { reason }),
      milliseconds: Math.round((performance.now() - began) * 10) / 10,
      ...errorFields,
    });
    endDelivery(span, name, description, began, level);
  }
}

/** Returns the function that the functions framework runs for a request. It throws when the source must deliver the events again. */
export function toCloudEventFunction(name: string, description: Subscriber) {
  return async (request: CloudEvent | Buffer): Promise<void> => {
    let firstError: unknown;
    const deliveredBy = readTraceparent(traceparents.get(request));
    const events = eventsOf(request);
    // The events of a batch share statements. When one fails, the others are handled, and the source delivers the batch again.
    // A second delivery of a handled event changes nothing.
    for (let from = 0; from < events.length; from += BATCH_ROWS_MAX) {
      const handled = events
        .slice(from, from + BATCH_ROWS_MAX)
        .map((event) => handleEvent(name, description, event, deliveredBy));
      for (const result of await Promise.allSettled(handled))
        if (result.status === "rejected") firstError ??= result.reason;
    }
    if (firstError === undefined) return;
    // The framework answers 500 and prints this message. The log line of the event has the stack already.
    throw Object.assign(new Error(`${name} failed: ${failure(firstError).reason}`), { stack: undefined });
  };
}
