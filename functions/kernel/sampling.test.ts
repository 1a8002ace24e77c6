import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { Measurement, SpanRecord } from "./telemetry.ts";

const TRACES = 2_000;

describe("a request that is not sampled", () => {
  let telemetry: typeof import("./telemetry.ts");
  const accepted: (SpanRecord | Measurement)[] = [];

  /** Starts telemetry with a sampler, and an exporter that keeps the records. */
  async function prepare(sampler: string, ratio: string): Promise<void> {
    vi.stubEnv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
    vi.stubEnv("OTEL_TRACES_SAMPLER", sampler);
    vi.stubEnv("OTEL_TRACES_SAMPLER_ARG", ratio);
    telemetry.prepareTelemetry("order-pay", () => ({
      startExporter: () => ({ accept: (record) => void accepted.push(record), shutdown: async () => undefined }),
    }));
    telemetry.loadTelemetry();
    await new Promise(setImmediate);
  }
  beforeEach(async () => {
    vi.resetModules();
    telemetry = await import("./telemetry.ts");
    accepted.length = 0;
  });
  afterEach(() => vi.unstubAllEnvs());

  it("has one span for all of its steps, which exports nothing and names its trace", async () => {
    await prepare("always_off", "1");
    const request = telemetry.beginSpan("POST /order/pay", "server", undefined);
    const child = request.child("create", "producer");
    expect(child).toBe(request);
    const statement = new telemetry.Statement("order.place", "select billing.place()", [request, child]);
    expect(statement.span).toBeUndefined();
    const traceparent = telemetry.writeTraceparent(child);
    expect(traceparent).toMatch(/^00-[0-9a-f]{32}-[0-9a-f]{16}-00$/);
    expect(telemetry.beginSend("notification-requested", [traceparent, undefined, "no traceparent"])).toBeUndefined();
    request.set({ a: 1 }).link(request).event("an event", 1).end("failed");
    expect(accepted.filter(({ record }) => record === "span")).toEqual([]);
  });

  it("is nine in ten with a ratio of 0.1, and the other has a span for each step", async () => {
    await prepare("parentbased_traceidratio", "0.1");
    const requests = Array.from({ length: TRACES }, () => telemetry.beginSpan("GET /", "server", undefined));
    const sampled = requests.filter((span) => span.sampled);
    // Six standard deviations around a tenth.
    expect(Math.abs(sampled.length - TRACES / 10)).toBeLessThan(6 * Math.sqrt(TRACES * 0.09));
    const [request, other] = sampled;
    if (request === undefined || other === undefined) throw new Error("No request was sampled.");
    const send = telemetry.beginSend("topic", requests.map(telemetry.writeTraceparent));
    send?.end();
    request.child("create", "producer").set({ a: 1, b: undefined }).link(other).end("failed", 5);
    const [sent, created] = accepted as SpanRecord[];
    expect(sent?.links.map(({ traceId }) => traceId)).toEqual(sampled.map(({ traceId }) => traceId));
    expect(created).toMatchObject({
      traceId: request.traceId,
      parentSpanId: request.spanId,
      attributes: { a: 1, "error.type": "failed" },
      links: [{ traceId: other.traceId }],
      events: [],
      end: performance.timeOrigin + 5,
      failed: true,
    });
  });
});
