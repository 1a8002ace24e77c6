/** Publishes events after the answer, in the background, in small batches. A failure loses no event: its outbox row remains. */
import { Agent as HttpAgent, request as httpRequest } from "node:http";
import { Agent as HttpsAgent, request as httpsRequest } from "node:https";
import { setTimeout as delay } from "node:timers/promises";
import { Refused, sendToKafka } from "./kafka.ts";
import { failure, log } from "./log.ts";
import {
  PUBLISH_BATCH_EVENTS_MAX,
  PUBLISH_MILLISECONDS_MAX,
  PUBLISH_PAUSE_MILLISECONDS,
  PUBLISH_QUEUE_EVENTS_MAX,
  settings,
} from "./settings.ts";
import { beginSend, type Span } from "./telemetry.ts";

/** A CloudEvent 1.0 in memory. `data` is a JSON value. */
export interface CloudEvent {
  readonly specversion: "1.0";
  readonly id: string;
  readonly source: string;
  readonly type: string;
  readonly subject?: string;
  readonly time?: string;
  readonly datacontenttype?: string;
  readonly partitionkey?: string;
  readonly traceparent?: string;
  readonly data?: unknown;
  readonly [extension: string]: unknown;
}

/** An outbox row as `events.envelope` returns it. The topic has no prefix. */
export interface Envelope {
  readonly topic: string;
  readonly event: CloudEvent;
}

/** Returns a CloudEvent in binary mode: its attributes by name, and its data as text. */
function encode({ data, datacontenttype: _alwaysJson, ...attributes }: CloudEvent) {
  return { attributes: Object.entries(attributes) as [string, string][], body: JSON.stringify(data) };
}

/** Below the five seconds after which Node's servers close an idle connection. */
const SINK_IDLE_MILLISECONDS_MAX = 2_000;
const SINK_CONNECTIONS_MAX = 16;
const kept = { keepAlive: true, timeout: SINK_IDLE_MILLISECONDS_MAX, maxSockets: SINK_CONNECTIONS_MAX };
let agent: HttpAgent | undefined;

interface Answer {
  readonly status: number;
  /** From Retry-After, in seconds. */
  readonly retryAfter: number | undefined;
}

/** Sends a body. `fetch` would cost three times as much CPU as the payment itself. */
function post(to: URL, headers: Readonly<Record<string, string | number>>, body: string): Promise<Answer> {
  const secure = to.protocol === "https:";
  agent ??= secure ? new HttpsAgent(kept) : new HttpAgent(kept);
  return new Promise((resolve, reject) => {
    const request = secure ? httpsRequest : httpRequest;
    const sending = request(to, { method: "POST", agent, headers }, (answer) => {
      answer.resume().once("error", reject);
      const seconds = Number(answer.headers["retry-after"]);
      answer.once("end", () =>
        resolve({ status: answer.statusCode ?? 0, retryAfter: seconds > 0 ? seconds : undefined }),
      );
    });
    const late = setTimeout(
      () => sending.destroy(new Error("the sink did not answer in time")),
      PUBLISH_MILLISECONDS_MAX,
    );
    sending.once("error", reject).once("close", () => clearTimeout(late));
    sending.end(body);
  });
}

/** Encodes the characters that a header cannot contain (CloudEvents HTTP binding §3.1.3.2). */
const percentEncoded = (text: string) => text.replace(/[^!-~]|["%]/gu, encodeURIComponent);

/** @param until of performance.now(): a sink that is busy (503 with Retry-After) is tried again until then */
async function publishToSink(sink: URL, { topic, event }: Envelope, until: number): Promise<void> {
  const { attributes, body } = encode(event);
  const headers = {
    ...Object.fromEntries(attributes.map(([name, value]) => [`ce-${name}`, percentEncoded(value)])),
    // CloudEvents over HTTP have no topic, and the type of a foreign event does not name one.
    "lotus-topic": topic,
    "content-type": "application/json",
    "content-length": Buffer.byteLength(body),
  };
  for (;;) {
    const { status, retryAfter } = await post(sink, headers, body);
    if (status >= 200 && status <= 299) return;
    if (status === 413) throw new Refused("The sink does not accept it: it is too large (413).");
    if (status === 400) throw new Refused("The sink does not accept it: it is not an event (400).");
    const busy = status === 503 && retryAfter !== undefined && performance.now() + retryAfter * 1000 < until;
    if (!busy) throw new Error(`the sink answered ${status}`);
    await delay(retryAfter * 1000);
  }
}

/** Uses the Kafka protocol binding of CloudEvents 1.0 in binary mode. KafkaSource does not deliver the key, so `partitionkey` repeats it. */
function toKafkaRecord({ topic, event }: Envelope, prefix: string) {
  const { attributes, body } = encode(event);
  const headers = Object.fromEntries(attributes.map(([name, value]) => [`ce_${name}`, value]));
  return {
    topic: prefix + topic,
    key: event.partitionkey ?? null,
    value: body,
    headers: { ...headers, "content-type": "application/json" },
  };
}

async function send(envelopes: readonly Envelope[], until: number): Promise<void> {
  const { KAFKA_BROKERS: brokers, KAFKA_PREFIX: prefix, K_SINK: sink } = settings();
  if (brokers !== undefined) {
    return sendToKafka(
      brokers,
      envelopes.map((envelope) => toKafkaRecord(envelope, prefix)),
    );
  }
  if (sink === undefined) throw new Error("no broker is set: set KAFKA_BROKERS or K_SINK");
  const to = new URL(sink);
  await Promise.all(envelopes.map((envelope) => publishToSink(to, envelope, until)));
}

/** An event that the broker will never accept, and the reason. */
export interface Refusal {
  readonly envelope: Envelope;
  readonly reason: string;
}

/** Groups events by topic, so that a topic that the broker lacks delays no other. */
export function byTopic(envelopes: readonly Envelope[]): [topic: string, envelopes: Envelope[]][] {
  const topics = new Map<string, Envelope[]>();
  for (const envelope of envelopes) {
    const others = topics.get(envelope.topic);
    if (others === undefined) topics.set(envelope.topic, [envelope]);
    else others.push(envelope);
  }
  return [...topics];
}

/**
 * Hands events of one topic to the broker: Kafka where KAFKA_BROKERS is set, else over HTTP to K_SINK. It halves a refused
 * batch until it has found the refused events.
 * @param until of performance.now(): a sink that is busy is tried again until then; by default it is not
 * @param relay the span of the relay's run, when the relay publishes the events again
 * @returns the refused events; all others were accepted
 * @throws {Error} when the broker failed: some events may have arrived, and all stay in the outbox until they are settled
 */
export async function publish(envelopes: readonly Envelope[], until = 0, relay?: Span): Promise<Refusal[]> {
  const traceparents = envelopes.map(({ event }) => event.traceparent);
  const span = beginSend(envelopes[0]?.topic ?? "", traceparents, relay);
  try {
    await send(envelopes, until);
    span?.end();
    return [];
  } catch (error) {
    span?.end(error instanceof Refused ? "refused" : "not-published");
    if (!(error instanceof Refused)) throw error;
    if (envelopes.length === 1) return envelopes.map((envelope) => ({ envelope, reason: error.message }));
    const half = Math.ceil(envelopes.length / 2);
    const first = await publish(envelopes.slice(0, half), until, relay);
    return [...first, ...(await publish(envelopes.slice(half), until, relay))];
  }
}

const queue: Envelope[] = [];
let publishing: Promise<void> | undefined;

/** Publishes events of one topic. Reports failures to the log: the outbox rows remain. */
async function publishTopic(topic: string, envelopes: readonly Envelope[]): Promise<void> {
  try {
    for (const { envelope, reason } of await publish(envelopes)) {
      log("error", "the broker refused an event; the relay moves it to the dead letters", {
        event: envelope.event.id,
        reason,
      });
    }
  } catch (error) {
    log("warning", "events were not published; the relay publishes them", {
      topic,
      count: envelopes.length,
      reason: failure(error).reason ?? "",
    });
  }
}

/** Publishes until the queue stays empty for a pause: the first event goes at once, and those that follow go together. */
async function publishQueue(): Promise<void> {
  while (queue.length > 0) {
    const batch = queue.splice(0, PUBLISH_BATCH_EVENTS_MAX);
    await Promise.all(byTopic(batch).map(([topic, envelopes]) => publishTopic(topic, envelopes)));
    if (queue.length < PUBLISH_BATCH_EVENTS_MAX) await delay(PUBLISH_PAUSE_MILLISECONDS);
  }
  publishing = undefined;
}

/** Queues events that the database has just recorded. Call it after the answer. It never waits and never throws. */
export function publishLater(envelopes: readonly Envelope[]): void {
  const room = PUBLISH_QUEUE_EVENTS_MAX - queue.length;
  queue.push(...envelopes.slice(0, room));
  if (envelopes.length > room)
    log("warning", "the publish queue is full; the relay publishes the rest", { count: envelopes.length - room });
  if (queue.length > 0) publishing ??= publishQueue();
}

/** Resolves when the queue is empty. */
export async function flushQueue(): Promise<void> {
  while (publishing !== undefined) await publishing;
}
