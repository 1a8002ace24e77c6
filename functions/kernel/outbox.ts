/** Publishing: after the answer, in the background, in small batches. The outbox row is what makes it safe to fail. */
import { Agent as HttpAgent, request as httpRequest } from "node:http";
import { Agent as HttpsAgent, request as httpsRequest } from "node:https";
import { Refused, sendToKafka } from "./kafka.ts";
import { failure, log } from "./log.ts";
import { PUBLISH_BATCH_EVENTS_MAX, PUBLISH_MILLISECONDS_MAX, PUBLISH_QUEUE_EVENTS_MAX, settings } from "./settings.ts";

/** A CloudEvent 1.0 in memory. `data` is what JSON carries. */
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

/** An outbox row as `events.envelope` gives it. */
export interface Envelope {
  readonly topic: string;
  readonly event: CloudEvent;
}

/** A CloudEvent in binary mode: its attributes by name, and its data as text. */
function encode({ data, datacontenttype: _alwaysJson, ...attributes }: CloudEvent) {
  return { attributes: Object.entries(attributes) as [string, string][], body: JSON.stringify(data) };
}

/** Node's servers close what has been idle for five seconds: whoever sends into that loses the event to the relay. */
const SINK_IDLE_MILLISECONDS_MAX = 2_000;
const SINK_CONNECTIONS_MAX = 16;
const kept = { keepAlive: true, timeout: SINK_IDLE_MILLISECONDS_MAX, maxSockets: SINK_CONNECTIONS_MAX };
let agent: HttpAgent | undefined;

/** Sends a body; resolves to the answer's status. Not `fetch`: that costs three times as much as the payment itself. */
function post(to: URL, headers: Readonly<Record<string, string | number>>, body: string): Promise<number> {
  const secure = to.protocol === "https:";
  agent ??= secure ? new HttpsAgent(kept) : new HttpAgent(kept);
  return new Promise((resolve, reject) => {
    const request = secure ? httpsRequest : httpRequest;
    const sending = request(to, { method: "POST", agent, headers }, (answer) => {
      answer.resume().once("error", reject);
      answer.once("end", () => resolve(answer.statusCode ?? 0));
    });
    const late = setTimeout(
      () => sending.destroy(new Error("the sink did not answer in time")),
      PUBLISH_MILLISECONDS_MAX,
    );
    sending.once("error", reject).once("close", () => clearTimeout(late));
    sending.end(body);
  });
}

/** What a header cannot hold, and what stands for it (CloudEvents HTTP binding §3.1.3.2). */
const percentEncoded = (text: string) => text.replace(/[^!-~]|["%]/gu, encodeURIComponent);

async function publishToSink(sink: URL, { topic, event }: Envelope): Promise<void> {
  const { attributes, body } = encode(event);
  const status = await post(
    sink,
    {
      ...Object.fromEntries(attributes.map(([name, value]) => [`ce-${name}`, percentEncoded(value)])),
      // CloudEvents over HTTP know no topics; an event of somebody else's type does not tell it by that.
      "lotus-topic": topic,
      "content-type": "application/json",
      "content-length": Buffer.byteLength(body),
    },
    body,
  );
  if (status === 413) throw new Refused("The sink does not take it: it is too large (413).");
  if (status === 400) throw new Refused("The sink does not take it: to the sink it is no event (400).");
  if (status < 200 || status > 299) throw new Error(`the sink answered ${status}`);
}

/** The Kafka protocol binding of CloudEvents 1.0, binary mode. KafkaSource does not deliver the key: hence `partitionkey`. */
function toKafkaRecord({ topic, event }: Envelope) {
  const { attributes, body } = encode(event);
  const headers = Object.fromEntries(attributes.map(([name, value]) => [`ce_${name}`, value]));
  return {
    topic,
    key: event.partitionkey ?? null,
    value: body,
    headers: { ...headers, "content-type": "application/json" },
  };
}

async function send(envelopes: readonly Envelope[]): Promise<void> {
  const { KAFKA_BROKERS: brokers, K_SINK: sink } = settings();
  if (brokers !== undefined) return sendToKafka(brokers, envelopes.map(toKafkaRecord));
  if (sink === undefined) throw new Error("neither KAFKA_BROKERS nor K_SINK is set");
  const to = new URL(sink);
  await Promise.all(envelopes.map((envelope) => publishToSink(to, envelope)));
}

/** An event that the broker will never take, and why. */
export interface Refusal {
  readonly envelope: Envelope;
  readonly reason: string;
}

/**
 * Hands events to the broker: Kafka where KAFKA_BROKERS is set, else over HTTP to K_SINK. A batch that is refused is halved
 * until those are found that are to blame.
 * @returns those that were refused for good; the others have been accepted
 * @throws when the broker failed: some may have arrived all the same, and all stay in the outbox until they are settled
 */
export async function publish(envelopes: readonly Envelope[]): Promise<Refusal[]> {
  try {
    await send(envelopes);
    return [];
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (envelopes.length === 1) return envelopes.map((envelope) => ({ envelope, reason: error.message }));
    const half = Math.ceil(envelopes.length / 2);
    return [...(await publish(envelopes.slice(0, half))), ...(await publish(envelopes.slice(half)))];
  }
}

const queue: Envelope[] = [];
let publishing: Promise<void> | undefined;

async function publishQueue(): Promise<void> {
  while (queue.length > 0) {
    const batch = queue.splice(0, PUBLISH_BATCH_EVENTS_MAX);
    try {
      for (const { envelope, reason } of await publish(batch)) {
        log("error", "an event was refused; the relay will bury it", { event: envelope.event.id, reason });
      }
    } catch (error) {
      log("warning", "events were not published; the relay will", {
        count: batch.length,
        reason: failure(error).reason ?? "",
      });
    }
  }
  publishing = undefined;
}

/** Queues events that the database has just recorded. Call it when the answer has been sent. Never waits, never throws. */
export function publishLater(envelopes: readonly Envelope[]): void {
  const room = PUBLISH_QUEUE_EVENTS_MAX - queue.length;
  queue.push(...envelopes.slice(0, room));
  if (envelopes.length > room)
    log("warning", "the publish queue is full; the relay will publish", { count: envelopes.length - room });
  if (queue.length > 0) publishing ??= publishQueue();
}

/** Resolves when nothing waits to be published any more. */
export async function flushQueue(): Promise<void> {
  while (publishing !== undefined) await publishing;
}
