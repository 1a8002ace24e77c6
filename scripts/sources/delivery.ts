/** How an event reaches a function: as Knative's KafkaSource and PingSource deliver it. */
import { Agent as HttpAgent, request as httpRequest } from "node:http";
import { Agent as HttpsAgent, request as httpsRequest } from "node:https";
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

/** The fields of a KafkaSource that the local source supports. It refuses every other field. */
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
 * @throws {Error} naming the file and the field, also for a field that the local source does not support
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

/** Returns the address of a function, which it starts when it is not running. */
export type Resolve = (functionName: string) => string;

/** The end of one attempt: the answer, or undefined when no answer came. */
type Outcome = { readonly status: number; readonly text: string } | undefined;

/** The result of a delivery. `reason` is a sentence, present unless the event was delivered. */
export type Delivered =
  | { readonly kind: "delivered" }
  | {
      /** "lost": the dead-letter sink failed as well. Knative then commits the offset, and so does the local source. */
      readonly kind: "dead-letter" | "lost";
      readonly reason: string;
    };

const ERROR_DATA_BYTES_MAX = 1024;
/** Attributes of a dead letter whose headers were refused as too large (431): bytes of one value, and of all together. */
const CUT_ATTRIBUTE_BYTES_MAX = 2 * 1024;
const CUT_HEADER_BYTES_MAX = 8 * 1024;
const HEADERS_TOO_LARGE = 431;

const isDelivered = (outcome: Outcome) => outcome !== undefined && outcome.status < 300;
/** Knative's data plane retries these statuses and a missing answer; other statuses are final. */
const retryable = (outcome: Outcome) =>
  outcome === undefined || outcome.status >= 500 || [404, 408, 409, 429].includes(outcome.status);

const said = (outcome: Outcome) =>
  outcome === undefined ? "did not answer" : `answered ${outcome.status} ${outcome.text.trim().slice(0, 200)}`.trim();

/** Below the five seconds after which a Node server closes an idle connection. */
const CONNECTION_IDLE_MILLISECONDS_MAX = 4_000;
const kept = { keepAlive: true, timeout: CONNECTION_IDLE_MILLISECONDS_MAX };
const http = { request: httpRequest, agent: new HttpAgent(kept) };
const https = { request: httpsRequest, agent: new HttpsAgent(kept) };

/**
 * Makes one attempt. `fetch` would cost twice as much CPU.
 * @returns undefined when no complete answer came within the timeout
 */
function send(url: string, { headers, body }: Message, timeoutMilliseconds: number): Promise<Outcome> {
  const { request, agent } = url.startsWith("https:") ? https : http;
  return new Promise<Outcome>((resolve, reject) => {
    const all = { ...headers, prefer: "reply", "content-length": body?.length ?? 0 };
    const sending = request(url, { method: "POST", agent, headers: all }, (answer) => {
      let text = "";
      answer.setEncoding("utf8").on("data", (chunk: string) => {
        text += chunk;
      });
      answer.once("end", () => end({ status: answer.statusCode ?? 0, text })).once("close", () => end(undefined));
    });
    const late = setTimeout(
      () => sending.destroy(new Error("the function did not answer in time")),
      timeoutMilliseconds,
    );
    const end = (outcome: Outcome) => {
      clearTimeout(late);
      resolve(outcome);
    };
    sending.once("close", () => clearTimeout(late)).once("error", reject);
    sending.end(body);
  }).catch(() => undefined);
}

/** Returns the wait in milliseconds. The real data plane begins with twice the delay. */
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
    if (isDelivered(outcome) || !retryable(outcome) || attempt > delivery.retry) return outcome;
    await delay(waitBefore(attempt, delivery), undefined, { signal: stop });
  }
}

/** Shortens attributes until a server with Node's default header limit (16 KiB) accepts them. The first attributes stay longest. */
function cutHeaders(headers: Readonly<Record<string, string>>): Record<string, string> {
  let left = CUT_HEADER_BYTES_MAX;
  const kept: [string, string][] = [];
  for (const [name, text] of Object.entries(headers)) {
    const value = text.slice(0, CUT_ATTRIBUTE_BYTES_MAX);
    left -= name.length + value.length;
    if (left >= 0) kept.push([name, value]);
  }
  return Object.fromEntries(kept);
}

const REQUIRED_HEADERS = ["ce-specversion", "ce-id", "ce-source", "ce-type", "content-type"];

/**
 * Delivers an event to the dead-letter sink of a source, with retries.
 * @param errors the `knativeerror…` attributes
 * @param why the end of a sentence that begins with the name of the function
 */
async function toDeadLetterSink(
  message: Message,
  errors: Readonly<Record<string, string>>,
  why: string,
  { delivery, sink }: KafkaSource["spec"],
  resolve: Resolve,
  stop: AbortSignal,
): Promise<Delivered> {
  const url = resolve(delivery.deadLetterSink.ref.name);
  const { body } = message;
  let outcome = await sendWithRetries(url, { headers: { ...message.headers, ...errors }, body }, delivery, stop);
  if (outcome?.status === HEADERS_TOO_LARGE) {
    const required = REQUIRED_HEADERS.flatMap((name) =>
      message.headers[name] === undefined ? [] : [[name, message.headers[name]] as const],
    );
    const headers = cutHeaders({ ...errors, ...Object.fromEntries(required), ...message.headers });
    outcome = await sendWithRetries(url, { headers, body }, delivery, stop);
  }
  const first = `${sink.ref.name} ${why}`;
  if (isDelivered(outcome)) return { kind: "dead-letter", reason: first };
  return { kind: "lost", reason: `${first}; ${delivery.deadLetterSink.ref.name} ${said(outcome)}` };
}

const destinationOf = ({ sink }: KafkaSource["spec"]) => ({
  "ce-knativeerrordest": `http://${sink.ref.name}.lotus.svc.cluster.local`,
});

/**
 * Delivers one event to a source's sink: retries with back-off, then the dead-letter sink.
 * @param stop ends the waiting; the promise then rejects, and the event counts as not delivered
 */
export async function deliver(
  message: Message,
  spec: KafkaSource["spec"],
  resolve: Resolve,
  stop: AbortSignal,
): Promise<Delivered> {
  const outcome = await sendWithRetries(resolve(spec.sink.ref.name), message, spec.delivery, stop);
  if (isDelivered(outcome)) return { kind: "delivered" };
  const errors: Record<string, string> = destinationOf(spec);
  if (outcome !== undefined) {
    errors["ce-knativeerrorcode"] = String(outcome.status);
    errors["ce-knativeerrordata"] = Buffer.from(outcome.text).subarray(0, ERROR_DATA_BYTES_MAX).toString("base64");
  }
  return toDeadLetterSink(message, errors, said(outcome), spec, resolve, stop);
}

/** Delivers a record that cannot become an event to the dead-letter sink of its source, with the reason. */
export function deliverUnreadable(
  message: Message,
  reason: string,
  spec: KafkaSource["spec"],
  resolve: Resolve,
  stop: AbortSignal,
): Promise<Delivered> {
  const errors = {
    ...destinationOf(spec),
    "ce-knativeerrorcode": "400",
    "ce-knativeerrordata": Buffer.from(reason).subarray(0, ERROR_DATA_BYTES_MAX).toString("base64"),
  };
  return toDeadLetterSink(message, errors, `was not called: ${reason}`, spec, resolve, stop);
}
