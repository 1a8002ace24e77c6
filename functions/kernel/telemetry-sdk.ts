/**
 * Exports the records of telemetry.ts with the official OpenTelemetry packages, as OTLP over HTTP. The build makes the second bundle
 * telemetry.cjs of it. A function with an endpoint reads that file after its first answer.
 */
import { hostname } from "node:os";
import { type Attributes, DiagLogLevel, diag, SpanKind, SpanStatusCode, TraceFlags } from "@opentelemetry/api";
import { type ExportResult, ExportResultCode, millisToHrTime } from "@opentelemetry/core";
import { OTLPMetricExporter } from "@opentelemetry/exporter-metrics-otlp-http";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-http";
import {
  defaultResource,
  detectResources,
  envDetector,
  type Resource,
  resourceFromAttributes,
} from "@opentelemetry/resources";
import { MeterProvider, PeriodicExportingMetricReader, type PushMetricExporter } from "@opentelemetry/sdk-metrics";
import { BatchSpanProcessor, type ReadableSpan, type SpanExporter } from "@opentelemetry/sdk-trace";
import type { Exporter, ExporterOptions, Measurement, Metric, SpanRecord } from "./telemetry.ts";

/** Seconds, as the semantic conventions advise for durations. */
const SECONDS = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10];
const REASON_LENGTH_MAX = 300;
const CALLS = [1, 2, 4, 8, 16, 32, 64];

interface Description {
  readonly kind: "histogram" | "counter" | "gauge";
  readonly unit: string;
  readonly description: string;
  readonly boundaries?: number[];
}

const seconds = (description: string): Description => ({
  kind: "histogram",
  unit: "s",
  description,
  boundaries: SECONDS,
});
const gauge = (unit: string, description: string): Description => ({ kind: "gauge", unit, description });
const counter = (unit: string, description: string): Description => ({ kind: "counter", unit, description });

/** Every metric that a function exports. */
export const METRICS: Readonly<Record<Metric, Description>> = {
  "http.server.request.duration": seconds("Duration of HTTP requests to a function."),
  "db.client.operation.duration": seconds("Duration of statements, with the wait for a connection."),
  "messaging.process.duration": seconds("Duration of deliveries to a trigger."),
  "faas.init_duration": seconds("Time from the start of a process to its listening."),
  "faas.coldstarts": counter("{coldstart}", "Processes that have answered a first request."),
  "lotus.batch.calls": {
    kind: "histogram",
    unit: "{call}",
    description: "Calls that share one statement.",
    boundaries: CALLS,
  },
  "lotus.queue.calls": gauge("{call}", "Calls that wait for the next statement of a process."),
  "lotus.lane.calls": gauge("{call}", "Calls of a process that wait for a locked row."),
  "lotus.events.republished": counter("{event}", "Overdue events that the relay has published."),
  "lotus.outbox.rows": gauge("{row}", "Events that a subscriber has not settled yet."),
  "lotus.outbox.age": gauge("s", "Age of the oldest event in the outbox; 0 without events."),
  "lotus.dead_letters": gauge("{event}", "Dead letters that wait for a person."),
  "lotus.seal.age": gauge("s", "Age of the last seal of the ledger."),
  "lotus.trial_balance": gauge("{minor_unit}", "Sum of all balances. It is 0 unless the ledger is wrong."),
};

const KINDS = {
  internal: SpanKind.INTERNAL,
  server: SpanKind.SERVER,
  client: SpanKind.CLIENT,
  producer: SpanKind.PRODUCER,
  consumer: SpanKind.CONSUMER,
} as const;

/** Passes at most one warning in `warningMillisecondsMin` to the log, with the number of those between. */
class Warnings {
  readonly #options: Pick<ExporterOptions, "warn" | "warningMillisecondsMin">;
  #last = Number.NEGATIVE_INFINITY;
  #withheld = 0;

  constructor(options: Pick<ExporterOptions, "warn" | "warningMillisecondsMin">) {
    this.#options = options;
  }

  warn(reason: string): void {
    if (performance.now() - this.#last < this.#options.warningMillisecondsMin) {
      this.#withheld++;
      return;
    }
    this.#last = performance.now();
    this.#options.warn("telemetry is not exported", {
      reason: reason.slice(0, REASON_LENGTH_MAX),
      count: this.#withheld,
    });
    this.#withheld = 0;
  }
}

/** Reports the failure of an export and hides it from the SDK, whose batch processor exports in parallel after a failure. */
function hidingFailures<Export extends (data: never, done: (result: ExportResult) => void) => void>(
  send: Export,
  warnings: Warnings,
): Export {
  const hiding = (data: never, done: (result: ExportResult) => void) =>
    send(data, ({ code, error }) => {
      if (code !== ExportResultCode.SUCCESS) warnings.warn(error?.message ?? "The collector refused the data.");
      done({ code: ExportResultCode.SUCCESS });
    });
  return hiding as Export;
}

function wrapSpanExporter(exporter: SpanExporter, warnings: Warnings): SpanExporter {
  return {
    export: hidingFailures((spans: ReadableSpan[], done) => exporter.export(spans, done), warnings),
    shutdown: () => exporter.shutdown(),
    forceFlush: () => exporter.forceFlush?.() ?? Promise.resolve(),
  };
}

function wrapMetricExporter(exporter: OTLPMetricExporter, warnings: Warnings): PushMetricExporter {
  return {
    export: hidingFailures((metrics, done) => exporter.export(metrics, done), warnings),
    forceFlush: () => exporter.forceFlush(),
    shutdown: () => exporter.shutdown(),
    selectAggregation: (type) => exporter.selectAggregation(type),
    selectAggregationTemporality: (type) => exporter.selectAggregationTemporality(type),
  };
}

/** Reads a number of a variable of the specification. Any value except a positive number counts as unset, as the specification asks. */
function numberOf(name: string, byDefault: number): number {
  const value = Number(process.env[name]);
  return Number.isFinite(value) && value > 0 ? value : byDefault;
}

const SCOPE = { name: "lotus" };
/** The default of OTEL_SPAN_LINK_COUNT_LIMIT. */
const LINKS_MAX = 128;

/** Makes the span that the processor of the SDK accepts. The tracer of the SDK makes the same span with more work. */
function toReadableSpan(record: SpanRecord, resource: Resource): ReadableSpan {
  const { traceId, spanId, parentSpanId, start, end, links, events } = record;
  const context = { traceId, spanId, traceFlags: TraceFlags.SAMPLED };
  return {
    name: record.name,
    kind: KINDS[record.kind],
    spanContext: () => context,
    ...(parentSpanId !== undefined && {
      parentSpanContext: { traceId, spanId: parentSpanId, traceFlags: TraceFlags.SAMPLED, isRemote: true },
    }),
    startTime: millisToHrTime(start),
    endTime: millisToHrTime(end),
    duration: millisToHrTime(end - start),
    ended: true,
    status: { code: record.failed ? SpanStatusCode.ERROR : SpanStatusCode.UNSET },
    attributes: record.attributes,
    links: links.slice(0, LINKS_MAX).map((link) => ({
      context: {
        traceId: link.traceId,
        spanId: link.spanId,
        traceFlags: link.sampled ? TraceFlags.SAMPLED : TraceFlags.NONE,
      },
    })),
    events: events.map(({ name, time }) => ({ name, time: millisToHrTime(time) })),
    resource,
    instrumentationScope: SCOPE,
    droppedAttributesCount: 0,
    droppedEventsCount: 0,
    droppedLinksCount: Math.max(0, links.length - LINKS_MAX),
  };
}

function resourceOf(service: string) {
  const { K_REVISION: revision, K_SERVICE: name } = process.env;
  // Two processes with one service.instance.id would overwrite each other's counters.
  const instance = `${hostname()}/${process.pid}/${Math.round(performance.timeOrigin)}`;
  const own = resourceFromAttributes({
    "service.name": service,
    "service.namespace": "lotus",
    "service.instance.id": instance,
    ...(revision && { "service.version": revision }),
    "faas.name": name ?? service,
    "faas.instance": instance,
  });
  return defaultResource()
    .merge(own)
    .merge(detectResources({ detectors: [envDetector] }));
}

function startTraces(service: string, warnings: Warnings) {
  const processor = new BatchSpanProcessor({
    exporter: wrapSpanExporter(new OTLPTraceExporter(), warnings),
    scheduledDelayMillis: numberOf("OTEL_BSP_SCHEDULE_DELAY", 5_000),
    maxQueueSize: numberOf("OTEL_BSP_MAX_QUEUE_SIZE", 2_048),
    maxExportBatchSize: numberOf("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512),
    exportTimeoutMillis: numberOf("OTEL_BSP_EXPORT_TIMEOUT", 30_000),
  });
  const resource = resourceOf(service);
  return {
    accept: (record: SpanRecord) => processor.onEnd(toReadableSpan(record, resource)),
    shutdown: () => processor.shutdown(),
  };
}

function startMetrics(service: string, warnings: Warnings) {
  const reader = new PeriodicExportingMetricReader({
    exporter: wrapMetricExporter(new OTLPMetricExporter(), warnings),
    exportIntervalMillis: numberOf("OTEL_METRIC_EXPORT_INTERVAL", 60_000),
    exportTimeoutMillis: Math.min(
      numberOf("OTEL_METRIC_EXPORT_TIMEOUT", 30_000),
      numberOf("OTEL_METRIC_EXPORT_INTERVAL", 60_000),
    ),
  });
  const provider = new MeterProvider({ resource: resourceOf(service), readers: [reader] });
  const meter = provider.getMeter("lotus");
  const instruments = new Map<Metric, (value: number, attributes: Attributes) => void>();
  const instrumentOf = (metric: Metric) => {
    const known = instruments.get(metric);
    if (known !== undefined) return known;
    const { kind, unit, description, boundaries } = METRICS[metric];
    const options = { unit, description, ...(boundaries && { advice: { explicitBucketBoundaries: boundaries } }) };
    const made = {
      histogram() {
        const histogram = meter.createHistogram(metric, options);
        return (value: number, attributes: Attributes) => histogram.record(value, attributes);
      },
      counter() {
        const counter = meter.createCounter(metric, options);
        return (value: number, attributes: Attributes) => counter.add(value, attributes);
      },
      gauge() {
        const gauge = meter.createGauge(metric, options);
        return (value: number, attributes: Attributes) => gauge.record(value, attributes);
      },
    }[kind]();
    instruments.set(metric, made);
    return made;
  };
  const accept = ({ metric, value, attributes }: Measurement) => instrumentOf(metric)(value, attributes);
  return { accept, shutdown: () => provider.shutdown() };
}

/** Resolves when the work has ended, or after a while. */
async function within(milliseconds: number, work: Promise<unknown>): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, milliseconds);
  });
  await Promise.race([work.catch(() => undefined), late]).finally(() => clearTimeout(timer));
}

/** Starts the exporters. */
export function startExporter(options: ExporterOptions): Exporter {
  const { service } = options;
  const warnings = new Warnings(options);
  const report = (message: string, ...details: unknown[]) => warnings.warn([message, ...details.map(String)].join(" "));
  const silent = () => undefined;
  diag.setLogger(
    { error: report, warn: report, info: silent, debug: silent, verbose: silent },
    { logLevel: DiagLogLevel.WARN, suppressOverrideMessage: true },
  );
  const traces = options.traces ? startTraces(service, warnings) : undefined;
  const metrics = options.metrics ? startMetrics(service, warnings) : undefined;
  return {
    accept(record) {
      if (record.record === "span") traces?.accept(record);
      else metrics?.accept(record);
    },
    shutdown: () => within(options.shutdownMillisecondsMax, Promise.all([traces?.shutdown(), metrics?.shutdown()])),
  };
}
