/** A function that an event invokes: what it takes, and the handler. What can never succeed is buried, with its reason. */
import { createHash } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import * as v from "valibot";
import { query } from "./database.ts";
import { failure, log, type Trace, traceFrom } from "./log.ts";
import type { CloudEvent } from "./outbox.ts";
import { fieldErrors, Problem } from "./problem.ts";
import type { Schema } from "./request.ts";
import {
  DATABASE_AWAY_MILLISECONDS_MAX,
  DATABASE_AWAY_STEP_MILLISECONDS,
  EVENT_BODY_BYTES_MAX,
  REASON_LENGTH_MAX,
} from "./settings.ts";

/** An event as a handler sees it. */
export interface Delivery<Data> {
  /** Its identity: of two deliveries with the same key, the second changes nothing. */
  readonly key: string;
  readonly data: Data;
  readonly time: string;
  /** The CloudEvents attributes, extensions included, as they came. */
  readonly attributes: Readonly<Record<string, string>>;
  /** The data as it came: nobody has parsed it yet. */
  readonly body: Buffer | undefined;
  /** The function's name: who settles the event, or cannot handle it. */
  readonly subscriber: string;
}

/** The event can never be handled: it is buried, and `message` is the reason that people read. */
class Unacceptable extends Error {}

interface OfTopic<S extends Schema> {
  /** Events of this topic, delivered by a KafkaSource. */
  readonly topic: string;
  readonly data: S;
  handle(delivery: Delivery<v.InferOutput<S>>): Promise<void>;
}

interface OfSchedule {
  /** A PingSource's schedule, in cron's five fields. */
  readonly schedule: string;
  handle(delivery: Delivery<undefined>): Promise<void>;
}

interface OfDeadLetters {
  /** What the sources could not deliver. */
  readonly deadLetters: true;
  handle(delivery: Delivery<undefined>): Promise<void>;
}

export type Subscriber = { readonly kind: "subscriber" } & (OfTopic<Schema> | OfSchedule | OfDeadLetters);

/** Describes a function that events invoke: those of a topic, of a schedule, or those that nobody could handle. */
export function subscriber<S extends Schema>(description: OfTopic<S>): Subscriber;
export function subscriber(description: OfSchedule | OfDeadLetters): Subscriber;
export function subscriber(description: OfTopic<Schema> | OfSchedule | OfDeadLetters): Subscriber {
  return { kind: "subscriber", ...description };
}

/**
 * An event is what its source and id say (CloudEvents 1.0 §3.1), so a foreign event's key is made of both. A UUID is unique by
 * itself. The id that KafkaSource makes up for a plain record is its offset, which begins anew with a topic: hence the time. What has
 * no identity, because it is no CloudEvent, is what it holds.
 */
function keyOf(attributes: Record<string, string>, body: Buffer | undefined): string {
  const { id, source, type, time } = attributes;
  if (id !== undefined && v.UUID_REGEX.test(id)) return id.toLowerCase();
  const isEvent = id !== undefined && source !== undefined;
  const parts = isEvent ? [source, id] : [attributes, body?.toString("base64")];
  if (type === "dev.knative.kafka.event") parts.push(time);
  const hash = createHash("sha256").update(JSON.stringify(parts)).digest("hex");
  return `${hash.slice(0, 8)}-${hash.slice(8, 12)}-8${hash.slice(13, 16)}-8${hash.slice(17, 20)}-${hash.slice(20, 32)}`;
}

/** No finer than Postgres keeps it: what it would have to round up may lie in the year 10000. */
const UTC_TIME = /^(?!0000)\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?Z$/;

/**
 * The event's time (RFC 3339) as Postgres takes it: as it came when it is such a time in UTC, microseconds included; what JavaScript
 * understands besides, such as another zone, nanoseconds or 31 February, in UTC; now, when there is none.
 */
function timeOf(time = ""): string {
  const at = new Date(time);
  const text = Number.isNaN(at.getTime()) ? "" : at.toISOString();
  if (!UTC_TIME.test(text)) return new Date().toISOString();
  return UTC_TIME.test(time) && time.startsWith(text.slice(0, 19)) ? time : text;
}

/** What the framework hands over: attributes beside `data`, or, for a request that is no binary CloudEvent, its bare body. */
function read(event: CloudEvent | Buffer): { attributes: Record<string, string>; body: Buffer | undefined } {
  const whole = Buffer.isBuffer(event) ? (parseJson(event) as CloudEvent) : event;
  if (typeof whole !== "object" || whole === null || typeof whole.id !== "string" || typeof whole.source !== "string") {
    throw new Unacceptable("The request is not a CloudEvent: it has no id or no source.");
  }
  const {
    data_base64: base64,
    data = typeof base64 === "string" ? Buffer.from(base64, "base64") : undefined,
    ...rest
  } = whole;
  const attributes = Object.entries(rest).filter((entry): entry is [string, string] => typeof entry[1] === "string");
  const body = data === undefined ? undefined : Buffer.isBuffer(data) ? data : Buffer.from(JSON.stringify(data));
  return { attributes: Object.fromEntries(attributes), body: body?.length === 0 ? undefined : body };
}

const utf8 = new TextDecoder("utf-8", { fatal: true });

function parseJson(body: Buffer): unknown {
  try {
    return JSON.parse(utf8.decode(body));
  } catch (error) {
    // Of the sentence, not the piece of the data that it quotes.
    throw new Unacceptable(
      `The data is not JSON in UTF-8: ${(error as Error).message.replace(/, (?:\.\.\.)?".*$/s, "")}.`,
    );
  }
}

/** Text as Postgres takes it: without NUL, and without halves of characters, which UTF-8 does not have. */
const storable = (text: string) => Buffer.from(text.replaceAll("\0", "\uFFFD")).toString();

/** Events of other producers are taken when their data fits; one of our own types must be of the version we know. */
function readData({ topic, data }: OfTopic<Schema>, type: string | undefined, body: Buffer | undefined): unknown {
  if (type?.startsWith("lotus.") && type !== `lotus.${topic}.v1`) {
    throw new Unacceptable(`The type ${type} is not known here; this subscriber knows lotus.${topic}.v1.`);
  }
  if (body === undefined) throw new Unacceptable("The event has no data.");
  if (body.length > EVENT_BODY_BYTES_MAX) {
    throw new Unacceptable(`The data has ${body.length} bytes; at most ${EVENT_BODY_BYTES_MAX} are taken.`);
  }
  const result = v.safeParse(data, parseJson(body));
  if (result.success) return result.output;
  const wrong = fieldErrors(result.issues, "data").map(({ field, detail }) => `${field}: ${detail}`);
  throw new Unacceptable(`The data is not that of ${topic}: ${wrong.join("; ")}.`);
}

/**
 * Moves an event to the dead letters and settles it, in one statement.
 * @param attemptsBefore an event that is still in the outbox, and was published fewer times, stays there instead
 * @returns whether the event was moved
 */
export async function moveToDeadLetters(
  { key, attributes, body, subscriber }: Pick<Delivery<unknown>, "key" | "attributes" | "body" | "subscriber">,
  reason: string,
  attemptsBefore = 0,
): Promise<boolean> {
  const [row] = await query<{ moved: boolean }>(
    "move-to-dead-letters",
    "select events.move_to_dead_letters($1, $2, $3, $4, $5, $6) as moved",
    [
      key,
      subscriber,
      storable(reason),
      JSON.stringify(attributes, (_, value) => (typeof value === "string" ? storable(value) : value)),
      body ?? null,
      attemptsBefore,
    ],
  );
  return row?.moved ?? false;
}

/**
 * Waits, for a while, for a database that is away. After a few failures a source hands an event to the dead letters, which need
 * the same database, and then goes on without it (KafkaSource): what others have sent is in no outbox of ours.
 */
async function withDatabase<T>(work: () => Promise<T>): Promise<T> {
  const until = performance.now() + DATABASE_AWAY_MILLISECONDS_MAX;
  for (;;) {
    try {
      return await work();
    } catch (error) {
      const away = error instanceof Problem && error.code === "unavailable";
      if (!away || performance.now() > until) throw error;
      await delay(DATABASE_AWAY_STEP_MILLISECONDS);
    }
  }
}

/** The CloudEvent function that the functions framework runs. It throws to be tried again, and returns when it is done. */
export function toCloudEventFunction(name: string, description: Subscriber) {
  return async (event: CloudEvent | Buffer): Promise<void> => {
    const began = performance.now();
    let attributes: Record<string, string> = {};
    let body: Buffer | undefined = Buffer.isBuffer(event) ? event : undefined;
    let trace: Trace = traceFrom(undefined);
    let reason: string | undefined;
    let failed = {};
    try {
      try {
        ({ attributes, body } = read(event));
        trace = traceFrom(attributes.traceparent);
        const data = "topic" in description ? readData(description, attributes.type, body) : undefined;
        const delivery = {
          key: keyOf(attributes, body),
          data: data as never,
          time: timeOf(attributes.time),
          attributes,
          body,
          subscriber: name,
        };
        const handle = () => description.handle(delivery);
        // A schedule comes again by itself.
        await ("schedule" in description ? handle() : withDatabase(handle));
      } catch (error) {
        if (!(error instanceof Unacceptable)) throw error;
        const why = error.message.slice(0, REASON_LENGTH_MAX);
        reason = why;
        await withDatabase(() =>
          moveToDeadLetters({ key: keyOf(attributes, body), attributes, body, subscriber: name }, why),
        );
      }
    } catch (error) {
      failed = failure(error);
      // The framework answers 500 and prints the message; the whole story is in the log line below.
      throw Object.assign(new Error(`${name} failed: ${failure(error).reason}`), { stack: undefined });
    } finally {
      const level = "reason" in failed ? "error" : reason === undefined ? "info" : "warning";
      log(level, level === "error" ? "failed; to be delivered again" : reason === undefined ? "handled" : "buried", {
        trace: trace.traceId,
        ...(attributes.id === undefined ? {} : { event: attributes.id }),
        ...("topic" in description ? { topic: description.topic } : {}),
        ...(attributes.subject === undefined ? {} : { caller: attributes.subject }),
        ...(reason === undefined ? {} : { reason }),
        milliseconds: Math.round((performance.now() - began) * 10) / 10,
        ...failed,
      });
    }
  };
}
