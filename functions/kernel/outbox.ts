/** Publishing: after the answer, in the background, in small batches. The outbox row is what makes it safe to fail. */
import { Agent as HttpAgent, request as httpRequest } from "node:http";
import { Agent as HttpsAgent, request as httpsRequest } from "node:https";
import { sendToKafka } from "./kafka.ts";
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

/** Not `fetch`: its streams and its signals cost three times as much as the payment that the event tells of. */
async function publishToSink(sink: URL, { event }: Envelope): Promise<void> {
  const secure = sink.protocol === "https:";
  agent ??= secure ? new HttpsAgent(kept) : new HttpAgent(kept);
  const { attributes, body } = encode(event);
  const headers: Record<string, string | number> = Object.fromEntries(
    attributes.map(([name, value]) => [`ce-${name}`, value]),
  );
  headers["content-type"] = "application/json";
  headers["content-length"] = Buffer.byteLength(body);
  await new Promise<void>((resolve, reject) => {
    const request = secure ? httpsRequest : httpRequest;
    const sending = request(sink, { method: "POST", agent, headers }, (answer) => {
      answer.resume().once("error", reject);
      answer.once("end", () => {
        const { statusCode = 0 } = answer;
        if (statusCode >= 200 && statusCode < 300) resolve();
        else reject(new Error(`the sink answered ${statusCode}`));
      });
    });
    const late = setTimeout(
      () => sending.destroy(new Error("the sink did not answer in time")),
      PUBLISH_MILLISECONDS_MAX,
    );
    sending.once("error", reject).once("close", () => clearTimeout(late));
    sending.end(body);
  });
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

/**
 * Hands events to the broker: Kafka where KAFKA_BROKERS is set, else over HTTP to K_SINK.
 * @throws when one was not accepted: all of them stay in the outbox until they are settled
 */
export async function publish(envelopes: readonly Envelope[]): Promise<void> {
  const { KAFKA_BROKERS: brokers, K_SINK: sink } = settings();
  if (brokers !== undefined) return sendToKafka(brokers, envelopes.map(toKafkaRecord));
  if (sink === undefined) throw new Error("neither KAFKA_BROKERS nor K_SINK is set");
  const to = new URL(sink);
  await Promise.all(envelopes.map((envelope) => publishToSink(to, envelope)));
}

const queue: Envelope[] = [];
let publishing: Promise<void> | undefined;

async function publishQueue(): Promise<void> {
  while (queue.length > 0) {
    const batch = queue.splice(0, PUBLISH_BATCH_EVENTS_MAX);
    try {
      await publish(batch);
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
