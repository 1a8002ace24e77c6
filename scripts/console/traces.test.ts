import { describe, expect, it } from "vitest";
import type { ReceivedSpan } from "../local/otlp-receiver.ts";
import { type TracedDelivery, treeOf } from "./traces.ts";

const TRACE = "0af7651916cd43dd8448eb211c80319c";

/** Makes a span of the trace. Times in microseconds. */
function span(spanId: string, parentSpanId: string | undefined, over: Partial<ReceivedSpan>): ReceivedSpan {
  return {
    traceId: TRACE,
    spanId,
    parentSpanId,
    service: "order-pay",
    instance: "",
    name: spanId,
    kind: "internal",
    start: 0,
    end: 10,
    attributes: {},
    links: [],
    events: [],
    failed: false,
    ...over,
  };
}
const gateway = { name: "gateway", who: "order-pay", at: 0, microseconds: 100, failed: false };
const request = span("request", undefined, { kind: "server", start: 10, end: 90 });
const creation = span("create", "request", {
  kind: "producer",
  start: 20,
  attributes: { "messaging.message.id": "event-1" },
});
const delivery = (at: number, failed = false): TracedDelivery => ({
  event: "event-1",
  span: { name: "deliver", who: "notification-store", at, microseconds: 50, failed },
});
const processing = (spanId: string, start: number) =>
  span(spanId, "create", { kind: "consumer", service: "notification-store", start, end: start + 30 });
const lines = (...given: Parameters<typeof treeOf>) =>
  treeOf(...given).map(({ name, depth }) => `${"  ".repeat(depth)}${name}`);

describe("the tree of a trace", () => {
  it("has the request below the gateway, and each processing below its delivery", () => {
    const spans = [processing("second", 310), creation, request, processing("first", 210)];
    expect(lines(spans, gateway, [delivery(200), delivery(300)])).toEqual([
      "gateway",
      "  request",
      "    create",
      "      deliver",
      "        first",
      "      deliver",
      "        second",
    ]);
  });

  it("has a delivery without a span, as of a function that was killed", () => {
    expect(lines([request, creation], gateway, [delivery(200, true)])).toEqual([
      "gateway",
      "  request",
      "    create",
      "      deliver",
    ]);
  });

  it("has spans whose parent has not arrived, and spans without gateway", () => {
    expect(lines([processing("process", 30)], undefined, [])).toEqual(["process"]);
    expect(lines([request, processing("process", 130)], gateway, [])).toEqual(["gateway", "  request", "process"]);
  });

  it("names the other traces that a span links to, each once", () => {
    const other = { traceId: "1".repeat(32), spanId: "2".repeat(16) };
    const links = [other, other, { traceId: TRACE, spanId: "3".repeat(16) }];
    expect(treeOf([span("batch", undefined, { links })], undefined, [])[0]?.links).toEqual([other.traceId]);
  });
});
