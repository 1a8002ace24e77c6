/** Reads the traces that a Lotus of a test has exported. */
import type { OtlpReceiver, ReceivedSpan } from "../local/otlp-receiver.ts";
import { eventually, type TestLotus } from "./lotus.ts";

const SPANS_MILLISECONDS_MAX = 20_000;

/** Returns the receiver of a Lotus that was started with `otel: true`. */
export function receiverOf(lotus: Pick<TestLotus, "telemetry">): OtlpReceiver {
  if (lotus.telemetry === undefined) throw new Error("This Lotus was started without `otel: true`.");
  return lotus.telemetry;
}

/** Returns the ids of the traces that have a span of this name. */
export function tracesWith(lotus: Pick<TestLotus, "telemetry">, name: string): string[] {
  const receiver = receiverOf(lotus);
  return receiver.traceIds().filter((id) => receiver.trace(id).some((span) => span.name === name));
}

/** Resolves to the spans of a trace, as soon as they satisfy a condition. */
export function spansOnce(
  lotus: Pick<TestLotus, "telemetry">,
  what: string,
  id: () => string | undefined,
  isComplete: (spans: readonly ReceivedSpan[]) => boolean,
): Promise<ReceivedSpan[]> {
  let seen: readonly ReceivedSpan[] = [];
  const look = () => {
    const trace = id();
    const spans = trace === undefined ? [] : receiverOf(lotus).trace(trace);
    seen = spans;
    return isComplete(spans) && spans;
  };
  return eventually(what, look, SPANS_MILLISECONDS_MAX).catch((error: Error) => {
    throw new Error(`${error.message} There is:\n${treeOf(seen).join("\n")}`);
  });
}

/** Returns the tree of a trace: a line for each span, indented below its parent, in the order of the starts. */
export function treeOf(spans: readonly ReceivedSpan[]): string[] {
  const known = new Set(spans.map(({ spanId }) => spanId));
  const below = (parent: string | undefined, depth: number): string[] =>
    spans
      .filter(({ parentSpanId }) => (parent === undefined ? !known.has(parentSpanId ?? "") : parentSpanId === parent))
      .flatMap(({ spanId, service, kind, name }) => [
        `${"  ".repeat(depth)}${name} (${kind}, ${service})`,
        ...below(spanId, depth + 1),
      ]);
  return below(undefined, 0);
}

/** Returns the only span of this name. @throws {Error} when there is another number of them */
export function spanNamed(spans: readonly ReceivedSpan[], name: string): ReceivedSpan {
  const [span, ...others] = spans.filter((candidate) => candidate.name === name);
  if (span === undefined || others.length > 0)
    throw new Error(`${others.length + (span ? 1 : 0)} spans are called ${name}:\n${treeOf(spans).join("\n")}`);
  return span;
}
