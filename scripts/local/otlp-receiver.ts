/** Receives traces and metrics of the functions as OTLP/JSON over HTTP, and keeps the last ones in memory. */
import { randomBytes } from "node:crypto";
import type { IncomingMessage, ServerResponse } from "node:http";
import { gunzipSync } from "node:zlib";
import { REQUEST_HEADER_BYTES_MAX } from "#kernel/limits";
import { createHttpServer } from "#kernel/listener";
import { type Listening, listen } from "./gateway.ts";

const TRACES_MAX = 1_000;
const SPANS_OF_TRACE_MAX = 1_000;
const METRIC_SERIES_MAX = 10_000;
const BODY_BYTES_MAX = 16 * 1024 * 1024;

export type AttributeValue = string | number | boolean;

/** A place in a trace. */
export interface SpanReference {
  readonly traceId: string;
  readonly spanId: string;
}

/** A finished span. Times are integer microseconds since 1970. */
export interface ReceivedSpan extends SpanReference {
  readonly parentSpanId: string | undefined;
  /** The function. */
  readonly service: string;
  /** The process of the function. */
  readonly instance: string;
  readonly name: string;
  readonly kind: "internal" | "server" | "client" | "producer" | "consumer";
  readonly start: number;
  readonly end: number;
  readonly attributes: Readonly<Record<string, AttributeValue>>;
  readonly links: readonly SpanReference[];
  readonly events: readonly { readonly name: string; readonly time: number }[];
  readonly failed: boolean;
}

/** The last value of one series of a metric. */
export interface ReceivedMetric {
  readonly name: string;
  readonly kind: "sum" | "gauge" | "histogram";
  readonly unit: string;
  readonly service: string;
  readonly instance: string;
  readonly attributes: Readonly<Record<string, AttributeValue>>;
  /** The sum of a histogram; the value otherwise. */
  readonly value: number;
  /** The number of values in a histogram. */
  readonly count: number | undefined;
}

export interface OtlpReceiver {
  /** The value of OTEL_EXPORTER_OTLP_ENDPOINT. Its path is a secret of the run. */
  readonly url: string;
  /** Returns the ids of the last traces, at most 1 000, the newest first. */
  traceIds(): string[];
  /** Returns the spans of a trace, sorted by start. */
  trace(id: string): ReceivedSpan[];
  /** Returns the last values of every series. */
  metrics(): ReceivedMetric[];
  /** Calls `listener` with each span from now on. Returns the function that ends it. */
  listen(listener: (span: ReceivedSpan) => void): () => void;
  stop(): Promise<void>;
}

interface OtlpValue {
  readonly stringValue?: string;
  readonly intValue?: string | number;
  readonly doubleValue?: number;
  readonly boolValue?: boolean;
}
interface OtlpAttributes {
  readonly attributes?: readonly { readonly key: string; readonly value: OtlpValue }[];
}
interface OtlpSpan extends OtlpAttributes {
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId?: string;
  readonly name: string;
  readonly kind: number;
  readonly startTimeUnixNano: string;
  readonly endTimeUnixNano: string;
  readonly links?: readonly SpanReference[];
  readonly events?: readonly { readonly name: string; readonly timeUnixNano: string }[];
  readonly status?: { readonly code?: number };
}
interface OtlpPoint extends OtlpAttributes {
  readonly asInt?: string | number;
  readonly asDouble?: number;
  readonly sum?: number;
  readonly count?: string | number;
}
interface OtlpMetric {
  readonly name: string;
  readonly unit?: string;
  readonly sum?: { readonly dataPoints: readonly OtlpPoint[] };
  readonly gauge?: { readonly dataPoints: readonly OtlpPoint[] };
  readonly histogram?: { readonly dataPoints: readonly OtlpPoint[] };
}
interface OtlpBody {
  readonly resourceSpans?: readonly {
    readonly resource?: OtlpAttributes;
    readonly scopeSpans: readonly { readonly spans: readonly OtlpSpan[] }[];
  }[];
  readonly resourceMetrics?: readonly {
    readonly resource?: OtlpAttributes;
    readonly scopeMetrics: readonly { readonly metrics: readonly OtlpMetric[] }[];
  }[];
}

const KINDS = ["internal", "internal", "server", "client", "producer", "consumer"] as const;
const ERROR = 2;

const microseconds = (nanoseconds: string) => Number(BigInt(nanoseconds) / 1_000n);

function attributesOf({ attributes = [] }: OtlpAttributes): Record<string, AttributeValue> {
  return Object.fromEntries(
    attributes.map(({ key, value: { stringValue, intValue, doubleValue, boolValue } }) => [
      key,
      stringValue ?? boolValue ?? doubleValue ?? Number(intValue),
    ]),
  );
}

const text = (value: AttributeValue | undefined) => String(value ?? "");

function spansOf({ resourceSpans = [] }: OtlpBody): ReceivedSpan[] {
  return resourceSpans.flatMap(({ resource = {}, scopeSpans }) => {
    const about = attributesOf(resource);
    return scopeSpans.flatMap(({ spans }) =>
      spans.map((span) => ({
        traceId: span.traceId,
        spanId: span.spanId,
        parentSpanId: span.parentSpanId || undefined,
        service: text(about["service.name"]),
        instance: text(about["service.instance.id"]),
        name: span.name,
        kind: KINDS[span.kind] ?? "internal",
        start: microseconds(span.startTimeUnixNano),
        end: microseconds(span.endTimeUnixNano),
        attributes: attributesOf(span),
        links: (span.links ?? []).map(({ traceId, spanId }) => ({ traceId, spanId })),
        events: (span.events ?? []).map(({ name, timeUnixNano }) => ({ name, time: microseconds(timeUnixNano) })),
        failed: span.status?.code === ERROR,
      })),
    );
  });
}

function metricsOf({ resourceMetrics = [] }: OtlpBody): ReceivedMetric[] {
  return resourceMetrics.flatMap(({ resource = {}, scopeMetrics }) => {
    const about = attributesOf(resource);
    const metrics = scopeMetrics.flatMap((scope) => scope.metrics);
    return metrics.flatMap((metric) =>
      (["sum", "gauge", "histogram"] as const).flatMap((kind) =>
        (metric[kind]?.dataPoints ?? []).map((point) => ({
          name: metric.name,
          kind,
          unit: metric.unit ?? "",
          service: text(about["service.name"]),
          instance: text(about["service.instance.id"]),
          attributes: attributesOf(point),
          value: point.asDouble ?? point.sum ?? Number(point.asInt ?? 0),
          count: point.count === undefined ? undefined : Number(point.count),
        })),
      ),
    );
  });
}

/** Reads a body up to the limit. Undefined: it is longer. */
async function read(request: IncomingMessage): Promise<Buffer | undefined> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of request) {
    bytes += chunk.length;
    if (bytes > BODY_BYTES_MAX) return undefined;
    chunks.push(chunk);
  }
  const body = Buffer.concat(chunks);
  return request.headers["content-encoding"] === "gzip" ? gunzipSync(body, { maxOutputLength: BODY_BYTES_MAX }) : body;
}

/** Adds to a map that keeps its last `most` keys. */
function keepLast<Value>(map: Map<string, Value>, key: string, value: Value, most: number): void {
  map.set(key, value);
  if (map.size <= most) return;
  const [oldest] = map.keys();
  if (oldest !== undefined) map.delete(oldest);
}

/** Starts a receiver on a free port of this machine. */
export async function startOtlpReceiver(): Promise<OtlpReceiver> {
  const secret = randomBytes(24).toString("base64url");
  const traces = new Map<string, ReceivedSpan[]>();
  const series = new Map<string, ReceivedMetric>();
  const listeners = new Set<(span: ReceivedSpan) => void>();

  const accept = (body: OtlpBody): void => {
    for (const span of spansOf(body)) {
      const spans = traces.get(span.traceId);
      if (spans === undefined) keepLast(traces, span.traceId, [span], TRACES_MAX);
      else if (spans.length < SPANS_OF_TRACE_MAX) spans.push(span);
      for (const listener of listeners) listener(span);
    }
    for (const metric of metricsOf(body)) {
      const key = JSON.stringify([metric.name, metric.instance, Object.entries(metric.attributes).sort()]);
      keepLast(series, key, metric, METRIC_SERIES_MAX);
    }
  };

  const serve = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const isKnown = request.url === `/${secret}/v1/traces` || request.url === `/${secret}/v1/metrics`;
    if (!isKnown || request.method !== "POST") return void response.writeHead(404).end();
    const body = await read(request);
    if (body === undefined) return void response.writeHead(413, { connection: "close" }).end();
    accept(JSON.parse(body.toString("utf8")) as OtlpBody);
    response.writeHead(200, { "content-type": "application/json" }).end("{}");
  };
  const server = createHttpServer(REQUEST_HEADER_BYTES_MAX, (request, response) => {
    serve(request, response).catch(() => response.writeHead(400).end());
  });
  const listening: Listening = await listen(server, 0, "127.0.0.1");
  return {
    url: `http://127.0.0.1:${listening.port}/${secret}`,
    traceIds: () => [...traces.keys()].reverse(),
    trace: (id) => (traces.get(id) ?? []).toSorted((a, b) => a.start - b.start),
    metrics: () => [...series.values()],
    listen(listener) {
      listeners.add(listener);
      return () => void listeners.delete(listener);
    },
    async stop() {
      server.closeAllConnections();
      await listening.stop();
    },
  };
}
