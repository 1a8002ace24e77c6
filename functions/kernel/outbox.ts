/** Publishes events in the background, after the answer. When it fails, the outbox rows remain and the relay publishes them. */
import { Agent as HttpAgent, request as httpRequest } from "node:http";
import { Agent as HttpsAgent, request as httpsRequest } from "node:https";
import { setTimeout as delay } from "node:timers/promises";
import { Refused, sendToKafka } from "./kafka.ts";
import {
  PUBLISH_BATCH_EVENTS_MAX,
  PUBLISH_MILLISECONDS_MAX,
  PUBLISH_PAUSE_MILLISECONDS,
  PUBLISH_QUEUE_EVENTS_MAX,
} from "./limits.ts";
import { failure, log } from "./log.ts";
import { settings } from "./settings.ts";
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

/** An outbox row as the SQL function `events.envelope` returns it. The topic is without KAFKA_PREFIX. */
export interface Envelope {
  readonly topic: string;
  readonly event: CloudEvent;
}

/** Splits a CloudEvent for binary mode, in which the attributes are headers and the data is the body. */
function encode({ data, datacontenttype: _alwaysJson, ...attributes }: CloudEvent) {
  return { attributes: Object.entries(attributes) as [string, string][], body: JSON.stringify(data) };
}

/** Closes an idle connection before the sink does: servers of Node close it after five seconds. */
const SINK_IDLE_MILLISECONDS_MAX = 2_000;
const SINK_CONNECTIONS_MAX = 16;
const agentOptions = { keepAlive: true, timeout: SINK_IDLE_MILLISECONDS_MAX, maxSockets: SINK_CONNECTIONS_MAX };
let agent: HttpAgent | undefined;

interface Answer {
  readonly status: number;
  /** From Retry-After, in seconds. */
  readonly retryAfter: number | undefined;
}

/** Sends a POST request with node:http: `fetch` would cost three times as much CPU as the payment itself. */
function post(to: URL, headers: Readonly<Record<string, string | number>>, body: string): Promise<Answer> {
  const secure = to.protocol === "https:";
  agent ??= secure ? new HttpsAgent(agentOptions) : new HttpAgent(agentOptions);
  return new Promise((resolve, reject) => {
    const request = secure ? httpsRequest : httpRequest;
    const sending = request(to, { method: "POST", agent, headers }, (answer) => {
      answer.resume().once("error", reject);
      const seconds = Number(answer.headers["retry-after"]);
      answer.once("end", () =>
        resolve({ status: answer.statusCode ?? 0, retryAfter: seconds > 0 ? seconds : undefined }),
      );
    });
    const timer = setTimeout(
      () => sending.destroy(new Error("the sink did not answer in time")),
      PUBLISH_MILLISECONDS_MAX,
    );
    sending.once("error", reject).once("close", () => clearTimeout(timer));
    sending.end(body);
  });
}

/** Encodes the characters that a header cannot contain (CloudEvents HTTP binding §3.1.3.2). */
const percentEncoded = (text: string) => text.replace(/[^!-~]|["%]/gu, encodeURIComponent);

/**
 * Publishes one event over HTTP.
 * @param until the time of `performance.now()` at which the retries of a busy sink (503 with Retry-After) end
 */
async function publishToSink(sink: URL, { topic, event }: Envelope, until: number): Promise<void> {
  const { attributes, body } = encode(event);
  const headers = {
    ...Object.fromEntries(attributes.map(([name, value]) => [`ce-${name}`, percentEncoded(value)])),
    // CloudEvents over HTTP have no topic, and the type of another producer's event does not name one.
    "lotus-topic": topic,
    "content-type": "application/json",
    "content-length": Buffer.byteLength(body),
  };
  for (;;) {
    const { status, retryAfter } = await post(sink, headers, body);
    if (status >= 200 && status <= 299) return;
    if (status === 413) throw new Refused("The sink does not accept it: it is too large (413).");
    if (status === 400) throw new Refused("The sink does not accept it: it is not an event (400).");
    const retries = status === 503 && retryAfter !== undefined && performance.now() + retryAfter * 1000 < until;
    if (!retries) throw new Error(`the sink answered ${status}`);
    await delay(retryAfter * 1000);
  }
}

/**
 * Returns the record of an event in binary mode (CloudEvents 1.0, Kafka protocol binding). The attribute `partitionkey` repeats
 * the key, because KafkaSource does not deliver the key.
 */
function toKafkaRecord({ topic, event }: Envelope, prefix: string) {
  const { attributes, body } = encode(event);
  const headers: Record<string, string> = { "content-type": "application/json" };
  for (const [name, value] of attributes) headers[`ce_${name}`] = value;
  return { topic: prefix + topic, key: event.partitionkey ?? null, value: body, headers };
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

/** An event that the broker will never accept, with the reason. The relay moves it to the dead letters. */
export interface Refusal {
  readonly envelope: Envelope;
  readonly reason: string;
}

/** Groups events by topic, so that a topic that is missing in Kafka does not delay the others. */
export function byTopic(envelopes: readonly Envelope[]): [topic: string, envelopes: Envelope[]][] {
  const topics = new Map<string, Envelope[]>();
  for (const envelope of envelopes) {
    const group = topics.get(envelope.topic);
    if (group === undefined) topics.set(envelope.topic, [envelope]);
    else group.push(envelope);
  }
  return [...topics];
}

/**
 * Publishes events of one topic: to Kafka when KAFKA_BROKERS is set, otherwise over HTTP to K_SINK. When the broker refuses a batch,
 * `publish` halves the batch until it has found each refused event.
 * @param until the time of `performance.now()` at which the retries of a busy sink end; by default it does not retry
 * @param relay the span of the relay's run; only the relay passes it
 * @returns the refused events; the broker accepted all others
 * @throws {Error} when the broker failed. It may have accepted some of the events. All outbox rows remain
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

/** Publishes events of one topic. It logs failures and does not throw, because the outbox rows remain for the relay. */
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

/** Publishes the queue: the first event at once. After each batch it pauses, so that later events share the next batch. */
async function publishQueue(): Promise<void> {
  while (queue.length > 0) {
    const batch = queue.splice(0, PUBLISH_BATCH_EVENTS_MAX);
    await Promise.all(byTopic(batch).map(([topic, envelopes]) => publishTopic(topic, envelopes)));
    if (queue.length < PUBLISH_BATCH_EVENTS_MAX) await delay(PUBLISH_PAUSE_MILLISECONDS);
  }
  publishing = undefined;
}

/** Queues events whose outbox rows are committed. Call it after the answer. It does not wait or throw. */
export function publishLater(envelopes: readonly Envelope[]): void {
  const room = PUBLISH_QUEUE_EVENTS_MAX - queue.length;
  queue.push(...envelopes.slice(0, room));
  if (envelopes.length > room)
    log("warning", "the publish queue is full; the relay publishes the rest", { count: envelopes.length - room });
  if (queue.length > 0) publishing ??= publishQueue();
}

/** Waits until the queue is empty: each event is published, or left to the relay. A process calls it before it ends. */
export async function flushQueue(): Promise<void> {
  while (publishing !== undefined) await publishing;
}
