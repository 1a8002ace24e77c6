/** How an event reaches a function: as Knative's KafkaSource and PingSource deliver it. */
import { setTimeout as delay } from "node:timers/promises";
import * as v from "valibot";
import { parse } from "yaml";

const sink = v.strictObject({
  ref: v.strictObject({
    apiVersion: v.literal("serving.knative.dev/v1"),
    kind: v.literal("Service"),
    name: v.string(),
    namespace: v.optional(v.string()),
  }),
});

/** ISO 8601, as Knative takes it, in milliseconds. */
const duration = v.pipe(
  v.string(),
  v.regex(/^PT(?:\d+(?:\.\d+)?[HMS])+$/, "must be an ISO 8601 duration such as PT0.2S"),
  v.transform((text) => {
    const unit = { H: 3_600_000, M: 60_000, S: 1_000 };
    return [...text.matchAll(/([\d.]+)([HMS])/g)].reduce(
      (sum, [, n, u]) => sum + Number(n) * unit[u as keyof typeof unit],
      0,
    );
  }),
);

const metadata = v.strictObject({
  name: v.string(),
  namespace: v.optional(v.string()),
  labels: v.optional(v.record(v.string(), v.string())),
  annotations: v.optional(v.record(v.string(), v.string())),
});

/** What this stand-in honours of a KafkaSource. Strict: what it would pass over must not look as if it worked. */
const KafkaSource = v.strictObject({
  apiVersion: v.literal("sources.knative.dev/v1"),
  kind: v.literal("KafkaSource"),
  metadata,
  spec: v.strictObject({
    bootstrapServers: v.pipe(v.array(v.string()), v.minLength(1)),
    topics: v.pipe(v.array(v.string()), v.minLength(1)),
    consumerGroup: v.string(),
    consumers: v.optional(v.literal(1)),
    initialOffset: v.literal("earliest"),
    ordering: v.literal("unordered"),
    delivery: v.strictObject({
      retry: v.pipe(v.number(), v.integer(), v.minValue(0)),
      backoffPolicy: v.picklist(["exponential", "linear"]),
      backoffDelay: duration,
      timeout: duration,
      deadLetterSink: sink,
    }),
    sink,
  }),
});

const PingSource = v.strictObject({
  apiVersion: v.literal("sources.knative.dev/v1"),
  kind: v.literal("PingSource"),
  metadata,
  spec: v.strictObject({
    schedule: v.string(),
    contentType: v.optional(v.string()),
    data: v.optional(v.string()),
    sink,
  }),
});

export type KafkaSource = v.InferOutput<typeof KafkaSource>;
export type PingSource = v.InferOutput<typeof PingSource>;

/**
 * Reads a source's YAML.
 * @throws {Error} naming the file and the field, also for a field that nobody here honours
 */
export function parseSource(file: string, text: string): KafkaSource | PingSource {
  const result = v.safeParse(v.variant("kind", [KafkaSource, PingSource]), parse(text));
  if (result.success) return result.output;
  const wrong = result.issues.map((issue) => `${v.getDotPath(issue) ?? "the document"}: ${issue.message}`);
  throw new Error(`${file} is not a source that can be run here. ${wrong.join("; ")}.`);
}

/** A CloudEvent in HTTP's binary mode, ready to be sent. */
export interface Message {
  /** Lower-case: ce-* and content-type. */
  readonly headers: Readonly<Record<string, string>>;
  /** Undefined for a tombstone. */
  readonly body: Buffer | undefined;
}

/** Where a function can be reached, waiting for it to start when it is down. */
export type Resolve = (functionName: string) => string;

/** One attempt's end: its status, or no answer at all. */
type Outcome = { readonly status: number; readonly text: string } | undefined;

const ERROR_DATA_BYTES_MAX = 1024;
const delivered = (outcome: Outcome) => outcome !== undefined && outcome.status < 300;
/** Knative's data plane: these and no answer are tried again; other statuses are final. */
const retryable = (outcome: Outcome) =>
  outcome === undefined || outcome.status >= 500 || [404, 408, 409, 429].includes(outcome.status);

async function send(url: string, { headers, body }: Message, timeoutMilliseconds: number): Promise<Outcome> {
  try {
    const answer = await fetch(url, {
      method: "POST",
      headers: { ...headers, prefer: "reply" },
      ...(body === undefined ? {} : { body }),
      redirect: "manual",
      signal: AbortSignal.timeout(timeoutMilliseconds),
    });
    return { status: answer.status, text: await answer.text() };
  } catch {
    return undefined;
  }
}

/** The first wait is twice the delay, as seen of the real data plane. */
function waitBefore(attempt: number, { backoffPolicy, backoffDelay }: KafkaSource["spec"]["delivery"]): number {
  return backoffPolicy === "exponential" ? backoffDelay * 2 ** attempt : backoffDelay * attempt;
}

async function sendWithRetries(
  url: string,
  message: Message,
  delivery: KafkaSource["spec"]["delivery"],
  stop: AbortSignal,
): Promise<Outcome> {
  for (let attempt = 1; ; attempt++) {
    const outcome = await send(url, message, delivery.timeout);
    if (delivered(outcome) || !retryable(outcome) || attempt > delivery.retry) return outcome;
    await delay(waitBefore(attempt, delivery), undefined, { signal: stop });
  }
}

/**
 * Delivers one event to a source's sink: retries with back-off, then the dead-letter sink.
 * @param stop ends the waiting; the promise then rejects, and the event counts as not delivered
 * @returns "lost" when the dead-letter sink failed as well: Knative then goes on without the event, and so does this
 */
export async function deliver(
  message: Message,
  { delivery, sink }: KafkaSource["spec"],
  resolve: Resolve,
  stop: AbortSignal,
): Promise<"delivered" | "dead-letter" | "lost"> {
  const outcome = await sendWithRetries(resolve(sink.ref.name), message, delivery, stop);
  if (delivered(outcome)) return "delivered";
  const errors: Record<string, string> = { "ce-knativeerrordest": `http://${sink.ref.name}.lotus.svc.cluster.local` };
  if (outcome !== undefined) {
    errors["ce-knativeerrorcode"] = String(outcome.status);
    errors["ce-knativeerrordata"] = Buffer.from(outcome.text).subarray(0, ERROR_DATA_BYTES_MAX).toString("base64");
  }
  const letter = { headers: { ...message.headers, ...errors }, body: message.body };
  const buried = await sendWithRetries(resolve(delivery.deadLetterSink.ref.name), letter, delivery, stop);
  return delivered(buried) ? "dead-letter" : "lost";
}
