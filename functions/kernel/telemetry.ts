/**
 * Traces and metrics of the kernel. Spans pass their context explicitly. Spans and measurements become records, which telemetry.cjs
 * exports. Without an endpoint a span is only a pair of ids for the logs, and telemetry.cjs is never read.
 */
import { randomFillSync } from "node:crypto";
import {
  TELEMETRY_RECORDS_WAITING_MAX,
  TELEMETRY_SHUTDOWN_MILLISECONDS_MAX,
  TELEMETRY_WARNING_MILLISECONDS_MIN,
} from "./limits.ts";
import { failure, log } from "./log.ts";
import { settings } from "./settings.ts";

/** A place in a trace (W3C Trace Context §3.2): 32 hexadecimal digits for the trace, 16 for the span. */
export interface SpanContext {
  readonly traceId: string;
  readonly spanId: string;
  /** Whether the span is recorded. */
  readonly sampled: boolean;
}

const TRACE_ID_BYTES = 16;
const SPAN_ID_BYTES = 8;
/** A call of the generator for each span would cost ten times as much as one for many spans. */
const randomBytes = Buffer.alloc(128 * (TRACE_ID_BYTES + SPAN_ID_BYTES));
let randomUsed = randomBytes.length;

/** Returns random bytes, each of them once, as hexadecimal digits. */
function randomHex(bytes: number): string {
  if (randomUsed + bytes > randomBytes.length) {
    randomFillSync(randomBytes);
    randomUsed = 0;
  }
  randomUsed += bytes;
  return randomBytes.toString("hex", randomUsed - bytes, randomUsed);
}

/** Contains the attributes of a span or a measurement, by name. */
export type Attributes = Record<string, string | number | boolean>;
/** Names the kind of a span (OpenTelemetry specification, trace API, SpanKind). */
export type SpanKind = "internal" | "server" | "client" | "producer" | "consumer";

/** A finished span. Times are milliseconds since 1970. */
export interface SpanRecord extends SpanContext {
  readonly record: "span";
  readonly parentSpanId: string | undefined;
  readonly name: string;
  readonly kind: SpanKind;
  readonly start: number;
  readonly end: number;
  readonly attributes: Readonly<Attributes>;
  readonly links: readonly SpanContext[];
  readonly events: readonly { readonly name: string; readonly time: number }[];
  readonly failed: boolean;
}

/** The metrics; telemetry-sdk.ts has their kinds and units. */
export type Metric =
  | "http.server.request.duration"
  | "db.client.operation.duration"
  | "messaging.process.duration"
  | "faas.init_duration"
  | "faas.coldstarts"
  | "lotus.batch.calls"
  | "lotus.queue.calls"
  | "lotus.lane.calls"
  | "lotus.events.republished"
  | "lotus.outbox.rows"
  | "lotus.outbox.age"
  | "lotus.dead_letters"
  | "lotus.seal.age"
  | "lotus.trial_balance";

/** One value of a metric. */
export interface Measurement {
  readonly record: "measurement";
  readonly metric: Metric;
  readonly value: number;
  readonly attributes: Readonly<Attributes>;
}

/** The exporter in telemetry.cjs. */
export interface Exporter {
  /** Accepts a record. It returns at once and never throws. */
  accept(record: SpanRecord | Measurement): void;
  /** Sends the records that wait, for a limited time. */
  shutdown(): Promise<void>;
}

/** The exports of telemetry.cjs. */
export interface TelemetryModule {
  startExporter(options: ExporterOptions): Exporter;
}

/** Contains the settings of the exporters. */
export interface ExporterOptions {
  /** The function's name, which is `service.name` unless OTEL_SERVICE_NAME is set. */
  readonly service: string;
  readonly traces: boolean;
  readonly metrics: boolean;
  readonly shutdownMillisecondsMax: number;
  /** Time between two warnings. */
  readonly warningMillisecondsMin: number;
  warn(message: string, fields: { reason: string; count: number }): void;
}

const TRACEPARENT = /^[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})/;
const ZEROS = /^0+$/;
/** The place of the flags in a `traceparent`. */
const FLAGS_AT = 53;

/** Reads a `traceparent` (W3C Trace Context §3.2). Returns undefined for a missing or invalid one. */
export function readTraceparent(text: unknown): SpanContext | undefined {
  const [, traceId = "", spanId = "", flags = ""] = TRACEPARENT.exec(typeof text === "string" ? text : "") ?? [];
  if (traceId === "" || ZEROS.test(traceId) || ZEROS.test(spanId)) return undefined;
  return { traceId, spanId, sampled: (Number.parseInt(flags, 16) & 1) === 1 };
}

/** Returns whether the flags of a `traceparent` ask for recording. It reads two characters only: most events are not sampled. */
function mayBeSampled(text: unknown): boolean {
  return typeof text === "string" && (Number.parseInt(text.slice(FLAGS_AT, FLAGS_AT + 2), 16) & 1) === 1;
}

/** Returns the `traceparent` of a span. */
export function writeTraceparent({ traceId, spanId, sampled }: SpanContext): string {
  return `00-${traceId}-${spanId}-${sampled ? "01" : "00"}`;
}

type Decide = (traceId: string, parent: SpanContext | undefined) => boolean;

interface State {
  readonly service: string;
  readonly load: () => TelemetryModule;
  /** Undefined: spans are not recorded. */
  readonly decide: Decide | undefined;
  readonly measures: boolean;
  /** Records from before telemetry.cjs is loaded. */
  waiting: (SpanRecord | Measurement)[];
  exporter: Exporter | undefined;
  loaded: boolean;
}

let state: State | undefined;

/** Decides by the last 56 bits of the trace id, which are random (W3C Trace Context Level 2 §3.2.2.4). */
function byRatio(ratio: number): Decide {
  const limit = ratio * 2 ** 56;
  return (traceId) => Number.parseInt(traceId.slice(-14), 16) < limit;
}

function sampler(name: string, ratio: number): Decide {
  const [root] = name.replace("parentbased_", "").split(" ");
  const decide = root === "traceidratio" ? byRatio(ratio) : () => root === "always_on";
  if (!name.startsWith("parentbased_")) return decide;
  return (traceId, parent) => (parent === undefined ? decide(traceId, undefined) : parent.sampled);
}

/**
 * Reads the OTEL_ variables. Without an endpoint, or with OTEL_SDK_DISABLED, telemetry stays off.
 * @param service the function's name
 * @param load reads telemetry.cjs; it is called once, after the first answer
 */
export function prepareTelemetry(service: string, load: () => TelemetryModule): void {
  const {
    OTEL_SDK_DISABLED: disabled,
    OTEL_EXPORTER_OTLP_ENDPOINT: endpoint,
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: tracesEndpoint = endpoint,
    OTEL_EXPORTER_OTLP_METRICS_ENDPOINT: metricsEndpoint = endpoint,
    OTEL_TRACES_EXPORTER: traces,
    OTEL_METRICS_EXPORTER: metrics,
    OTEL_TRACES_SAMPLER: name,
    OTEL_TRACES_SAMPLER_ARG: ratio,
  } = settings();
  const records = tracesEndpoint !== undefined && traces === "otlp";
  const measures = metricsEndpoint !== undefined && metrics === "otlp";
  if (disabled || !(records || measures)) return;
  const decide = records ? sampler(name, ratio) : undefined;
  state = { service, load, decide, measures, waiting: [], exporter: undefined, loaded: false };
}

/** Loads telemetry.cjs once, and hands it the records that wait. Call it after an answer. */
export function loadTelemetry(): void {
  if (state === undefined || state.loaded) return;
  const loading = state;
  loading.loaded = true;
  setImmediate(() => {
    try {
      loading.exporter = loading.load().startExporter({
        service: loading.service,
        traces: loading.decide !== undefined,
        metrics: loading.measures,
        shutdownMillisecondsMax: TELEMETRY_SHUTDOWN_MILLISECONDS_MAX,
        warningMillisecondsMin: TELEMETRY_WARNING_MILLISECONDS_MIN,
        warn: (message, fields) => log("warning", message, fields),
      });
      for (const record of loading.waiting) loading.exporter.accept(record);
    } catch (error) {
      state = undefined;
      log("warning", "telemetry does not load; the function continues without it", failure(error));
    }
    loading.waiting = [];
  });
}

/** Sends the records that wait. The exporter limits the time. */
export async function closeTelemetry(): Promise<void> {
  await state?.exporter?.shutdown();
}

function emit(record: SpanRecord | Measurement): void {
  if (state === undefined) return;
  if (state.exporter !== undefined) state.exporter.accept(record);
  else if (state.waiting.length < TELEMETRY_RECORDS_WAITING_MAX) state.waiting.push(record);
}

/** Records a value of a metric. */
export function measure(metric: Metric, value: number, attributes: Attributes = {}): void {
  if (state?.measures) emit({ record: "measurement", metric, value, attributes });
}

/** A span. One that is not sampled has ids and records nothing. */
export class Span implements SpanContext {
  readonly traceId: string;
  readonly spanId: string;
  readonly sampled: boolean;
  readonly #parentSpanId: string | undefined;
  readonly #kind: SpanKind;
  #name: string;
  #start: number;
  /** Made for spans that are recorded only. */
  #attributes: Attributes | undefined;
  #links: SpanContext[] | undefined;
  #events: { name: string; time: number }[] | undefined;
  #ended = false;

  constructor(context: SpanContext, parentSpanId: string | undefined, name: string, kind: SpanKind, start?: number) {
    this.traceId = context.traceId;
    this.spanId = context.spanId;
    this.sampled = context.sampled;
    this.#parentSpanId = parentSpanId;
    this.#name = name;
    this.#kind = kind;
    this.#start = start ?? (context.sampled ? performance.now() : 0);
  }

  /**
   * Begins a span below this one. A span that is not sampled returns itself.
   * @param start a time of `performance.now()`; by default the present
   */
  child(name: string, kind: SpanKind, start?: number): Span {
    if (!this.sampled) return this;
    const context = { traceId: this.traceId, spanId: randomHex(SPAN_ID_BYTES), sampled: true };
    return new Span(context, this.spanId, name, kind, start);
  }

  rename(name: string): this {
    this.#name = name;
    return this;
  }

  set(attributes: Readonly<Record<string, string | number | boolean | undefined>>): this {
    if (!this.sampled) return this;
    this.#attributes ??= {};
    for (const name in attributes) {
      const value = attributes[name];
      if (value !== undefined) this.#attributes[name] = value;
    }
    return this;
  }

  link(...contexts: readonly (SpanContext | undefined)[]): this {
    if (!this.sampled) return this;
    this.#links ??= [];
    for (const context of contexts) if (context !== undefined) this.#links.push(context);
    return this;
  }

  /** @param time a time of `performance.now()` */
  event(name: string, time: number): this {
    if (!this.sampled) return this;
    this.#events ??= [];
    this.#events.push({ name, time: performance.timeOrigin + time });
    return this;
  }

  /**
   * Ends the span. A second call changes nothing.
   * @param errorType a word for the failure, such as a problem code; never a message, which could quote data
   * @param end a time of `performance.now()`; by default the present
   */
  end(errorType?: string, end?: number): void {
    if (!this.sampled || this.#ended) return;
    this.#ended = true;
    if (errorType !== undefined) this.set({ "error.type": errorType });
    emit({
      record: "span",
      traceId: this.traceId,
      spanId: this.spanId,
      sampled: true,
      parentSpanId: this.#parentSpanId,
      name: this.#name,
      kind: this.#kind,
      start: performance.timeOrigin + this.#start,
      end: performance.timeOrigin + (end ?? performance.now()),
      attributes: this.#attributes ?? {},
      links: this.#links ?? [],
      events: this.#events ?? [],
      failed: errorType !== undefined,
    });
  }
}

/**
 * Begins a span in the trace of `parent`, or in a new trace. The decision to record it is made here.
 * @param start a time of `performance.now()`; by default the present
 */
export function beginSpan(name: string, kind: SpanKind, parent: SpanContext | undefined, start?: number): Span {
  const random = randomHex(TRACE_ID_BYTES + SPAN_ID_BYTES);
  const traceId = parent?.traceId ?? random.slice(0, 32);
  const spanId = random.slice(32);
  const sampled = state?.decide?.(traceId, parent) ?? false;
  return new Span({ traceId, spanId, sampled }, parent?.spanId, name, kind, start);
}

let listeningAt: number | undefined;
let isFirst = true;

/** Marks the time at which the process listens. */
export function markListening(): void {
  listeningAt = performance.now();
}

/** Records the cold start below the first span of a process, from the start of the process to its listening. */
export function recordColdStart(first: Span): void {
  if (!isFirst) return void first.set({ "faas.coldstart": false });
  const isColdStart = isFirst && listeningAt !== undefined;
  isFirst = false;
  first.set({ "faas.coldstart": isColdStart });
  if (!isColdStart || listeningAt === undefined) return;
  measure("faas.coldstarts", 1);
  measure("faas.init_duration", listeningAt / 1000);
  if (!first.sampled) return;
  first
    .child("cold start", "internal", 0)
    .event("Node is ready", performance.nodeTiming.bootstrapComplete)
    .event("the server listens", listeningAt)
    .end(undefined, listeningAt);
}

/** A statement in flight: a span below the first sampled call, with links to the others, and its duration. */
export class Statement {
  readonly span: Span | undefined;
  readonly #name: string;
  readonly #began = performance.now();

  /**
   * @param calls the spans of the calls that share the statement
   * @param count how many calls share it; fewer of them may have spans
   */
  constructor(name: string, text: string, calls: readonly Span[], count: number = calls.length) {
    this.#name = name;
    if (state?.decide === undefined) return;
    const [first, ...others] = calls.filter(({ sampled }) => sampled);
    this.span = first
      ?.child(name, "client")
      .set({
        "db.system.name": "postgresql",
        "db.query.summary": name,
        "db.stored_procedure.name": /(?:from|select) ("?[a-z_]+"?\.[a-z_]+)\(/.exec(text)?.[1],
        "lotus.batch.calls": count,
      })
      .link(...others);
  }

  /** @param errorType the SQLSTATE or the problem code of a failure */
  end(errorType?: string): void {
    const failed: Attributes = errorType === undefined ? {} : { "error.type": errorType };
    const seconds = (performance.now() - this.#began) / 1000;
    measure("db.client.operation.duration", seconds, {
      "db.system.name": "postgresql",
      "db.query.summary": this.#name,
      ...failed,
    });
    this.span?.set({ "db.response.status_code": errorType }).end(errorType);
  }
}

/** Whether any telemetry is recorded. */
export function isRecording(): boolean {
  return state !== undefined;
}

/**
 * Begins the span of a publication, below the first sampled event, with links to every event.
 * @param traceparents the contexts that the outbox rows contain
 * @param relay the span of the relay's run, which publishes the events again
 */
export function beginSend(topic: string, traceparents: readonly unknown[], relay?: Span): Span | undefined {
  if (state?.decide === undefined) return undefined;
  const contexts = traceparents.filter(mayBeSampled).map(readTraceparent);
  const first = contexts.find((context) => context !== undefined);
  if (first === undefined) return undefined;
  const span = beginSpan(`send ${topic}`, "client", first)
    .set({
      "messaging.system": "kafka",
      "messaging.operation.name": "send",
      "messaging.operation.type": "send",
      "messaging.destination.name": topic,
      "messaging.batch.message_count": traceparents.length,
      "lotus.republished": relay === undefined ? undefined : true,
    })
    .link(...contexts);
  return relay?.sampled ? span.link(relay) : span;
}

/**
 * Begins a span in the trace of each event that a reader settles, as if a trigger processed it. Each links to the reader's request.
 * @returns the spans, and the function that ends them
 */
export function beginSettling(
  topic: string,
  events: readonly { readonly key: string; readonly traceparent: string | undefined }[],
  reader: Span,
): { readonly spans: readonly Span[]; end(errorType?: string): void } {
  const traced = state?.decide === undefined ? [] : events;
  const spans = traced.map(({ key, traceparent }) =>
    beginSpan(`process ${topic}`, "consumer", readTraceparent(traceparent))
      .set({
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": topic,
        "messaging.message.id": key,
        "lotus.outcome": "settled by reader",
      })
      .link(reader.sampled ? reader : undefined),
  );
  return {
    spans,
    end(errorType) {
      for (const span of spans) span.end(errorType);
    },
  };
}
