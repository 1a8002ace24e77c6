/** Joins the spans that the functions export with the steps that the gateway and the event bus see, as one tree for each trace. */
import type { OtlpReceiver, ReceivedSpan } from "../local/otlp-receiver.ts";
import type { Span, TraceStep, TraceSummary } from "./protocol.ts";

const GATEWAY_STEPS_MAX = 2_000;
const SUMMARIES_MAX = 200;

/** A delivery of an event of the trace. */
export interface TracedDelivery {
  readonly event: string;
  readonly span: Span;
}

interface Node {
  readonly step: Omit<TraceStep, "depth">;
  readonly children: Node[];
}

const stepOf = (span: ReceivedSpan): Omit<TraceStep, "depth"> => ({
  name: span.name,
  who: span.service,
  kind: span.kind,
  at: span.start,
  microseconds: span.end - span.start,
  failed: span.failed,
  attributes: span.attributes,
  links: [...new Set(span.links.map(({ traceId }) => traceId).filter((id) => id !== span.traceId))],
});

const contains = ({ at, microseconds }: Span, moment: number) => at <= moment && moment <= at + microseconds;

/** Returns the steps in the order of a tree: each parent before its children, children by their start. */
function flatten(nodes: readonly Node[], depth = 0): TraceStep[] {
  return [...nodes]
    .sort((a, b) => a.step.at - b.step.at)
    .flatMap(({ step, children }) => [{ ...step, depth }, ...flatten(children, depth + 1)]);
}

/** Returns the tree of a trace: gateway, endpoint, statement, publication, delivery, trigger, effect. */
export function treeOf(
  spans: readonly ReceivedSpan[],
  gateway: Span | undefined,
  deliveries: readonly TracedDelivery[],
): TraceStep[] {
  const nodes = new Map(spans.map((span) => [span.spanId, { step: stepOf(span), children: [] as Node[] }]));
  const outer = (span: Span, kind: "gateway" | "event bus"): Node => ({
    step: { ...span, kind, attributes: {}, links: [] },
    children: [],
  });
  const top = gateway && outer(gateway, "gateway");
  const roots: Node[] = top ? [top] : [];
  const delivered = deliveries.map(({ event, span }) => {
    const creation = spans.find(
      ({ kind, attributes }) => kind === "producer" && attributes["messaging.message.id"] === event,
    );
    const node = outer(span, "event bus");
    const parent = nodes.get(creation?.spanId ?? "") ?? top;
    (parent?.children ?? roots).push(node);
    return { span, node };
  });
  for (const span of spans) {
    const node = nodes.get(span.spanId);
    if (node === undefined) continue;
    const delivery =
      span.kind === "consumer"
        ? delivered.find((each) => each.span.who === span.service && contains(each.span, span.start))
        : undefined;
    const isRequest = span.kind === "server" && span.service === gateway?.who;
    const parent = delivery?.node ?? nodes.get(span.parentSpanId ?? "") ?? (isRequest ? top : undefined);
    (parent?.children ?? roots).push(node);
  }
  return flatten(roots);
}

/** Keeps the gateway's steps beside the spans of the receiver. */
export class Traces {
  readonly #receiver: OtlpReceiver | undefined;
  readonly #gateway = new Map<string, Span>();
  readonly #unlisten: (() => void) | undefined;
  /** Counts the spans that have arrived, so that a page reads its trace again when there are more. */
  received = 0;

  /** @param receiver undefined: the spans of this run do not arrive here */
  constructor(receiver: OtlpReceiver | undefined) {
    this.#receiver = receiver;
    this.#unlisten = receiver?.listen(() => {
      this.received++;
    });
  }

  /** Records a request that the gateway has answered. */
  answered(trace: string, span: Span): void {
    if (this.#receiver === undefined) return;
    this.#gateway.set(trace, span);
    if (this.#gateway.size > GATEWAY_STEPS_MAX) this.#gateway.delete(this.#gateway.keys().next().value ?? "");
  }

  /** Returns the steps of a trace. The list is empty while no span of the trace has arrived. */
  steps(trace: string, deliveries: readonly TracedDelivery[]): TraceStep[] {
    const spans = this.#receiver?.trace(trace) ?? [];
    return spans.length === 0 ? [] : treeOf(spans, this.#gateway.get(trace), deliveries);
  }

  /** Returns the last traces, the newest first. */
  newest(): TraceSummary[] {
    const receiver = this.#receiver;
    if (receiver === undefined) return [];
    return receiver
      .traceIds()
      .slice(0, SUMMARIES_MAX)
      .flatMap((id) => {
        const spans = receiver.trace(id);
        const known = new Set(spans.map(({ spanId }) => spanId));
        const root = spans.find(({ parentSpanId }) => !known.has(parentSpanId ?? "")) ?? spans[0];
        if (root === undefined) return [];
        return {
          id,
          name: root.name,
          who: root.service,
          at: root.start,
          microseconds: root.end - root.start,
          wholeMicroseconds: Math.max(...spans.map(({ end }) => end)) - Math.min(...spans.map(({ start }) => start)),
          spans: spans.length,
          failed: spans.some(({ failed }) => failed),
        };
      });
  }

  stop(): void {
    this.#unlisten?.();
  }
}
