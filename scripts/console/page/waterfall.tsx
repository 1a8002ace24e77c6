/** The waterfall of an event: each step with its milliseconds and share, and the longest step or gap. */
import type { Span } from "../protocol.ts";
import { clock, duration } from "./format.ts";

interface Row {
  readonly kind: string;
  readonly label: string;
  readonly who: string;
  readonly at: number;
  readonly microseconds: number;
  readonly failed: boolean;
  readonly note: string;
}

const WAITS: Readonly<Record<string, string>> = {
  publish: "waited for the publication",
  deliver: "waited for the delivery",
  effect: "waited for the function",
  request: "waited for the request",
};

/** Returns the steps with the gaps between them. */
function rowsOf(spans: readonly Span[]): Row[] {
  const rows: Row[] = [];
  let end = spans[0]?.at ?? 0;
  for (const { name, who, at, microseconds, failed, note = "" } of spans) {
    if (at > end) {
      const label = WAITS[name] ?? "waited";
      rows.push({ kind: "gap", label, who: "", at: end, microseconds: at - end, failed: false, note: "" });
    }
    rows.push({ kind: name.replace(" ", "-"), label: name, who, at, microseconds, failed, note });
    end = Math.max(end, at + microseconds);
  }
  return rows;
}

/** Returns the row that took longest without another step inside it. */
function longestOf(rows: readonly Row[]): Row | undefined {
  const inner = rows.filter(
    (row) =>
      row.microseconds > 0 &&
      !rows.some(
        (other) =>
          other !== row &&
          other.microseconds > row.microseconds / 2 &&
          other.at >= row.at &&
          other.at + other.microseconds <= row.at + row.microseconds,
      ),
  );
  return inner.sort((a, b) => b.microseconds - a.microseconds)[0];
}

interface Timed {
  readonly at: number;
  readonly microseconds: number;
}

/** The time from the first begin to the last end, in microseconds. */
interface Extent {
  readonly start: number;
  readonly end: number;
  /** At least 1. */
  readonly whole: number;
}

/** Returns the extent of steps. */
export function extentOf(steps: readonly Timed[]): Extent {
  const start = Math.min(...steps.map(({ at }) => at));
  const end = Math.max(...steps.map(({ at, microseconds }) => at + microseconds));
  return { start, end, whole: Math.max(1, end - start) };
}

const BAR_WIDTH_MAX = 996;
const BAR_WIDTH_MIN = 4;

/** The cell of a step with its place in time. */
export function Lane({
  kind,
  step,
  extent,
}: {
  kind: string;
  step: Timed & { readonly failed: boolean };
  extent: Extent;
}) {
  const widthOf = (microseconds: number) => (microseconds / extent.whole) * BAR_WIDTH_MAX;
  return (
    <td class="lane">
      <svg viewBox="0 0 1000 16" preserveAspectRatio="none" aria-hidden="true">
        <rect
          class={`bar ${step.failed ? "failed" : kind}`}
          x={widthOf(step.at - extent.start)}
          width={Math.max(BAR_WIDTH_MIN, widthOf(step.microseconds))}
          y="2"
          height="12"
        />
      </svg>
    </td>
  );
}

/** Draws the steps of an event. */
export function Waterfall({ spans }: { spans: readonly Span[] }) {
  const rows = rowsOf(spans);
  const extent = extentOf(spans);
  const { start, end, whole } = extent;
  const longest = longestOf(rows);
  const share = (microseconds: number) => `${Math.round((microseconds / whole) * 100)} %`;
  return (
    <table class="waterfall">
      <caption>
        {duration(whole)} from {clock(start)} to {clock(end)}
      </caption>
      <thead>
        <tr>
          <th scope="col">Step</th>
          <th scope="col" class="lane">
            Time
          </th>
          <th scope="col">Duration</th>
          <th scope="col">Share</th>
        </tr>
      </thead>
      <tbody>
        {rows.map((row, index) => (
          <tr key={index} class={row === longest ? "longest" : undefined}>
            <th scope="row">
              <span class={row.kind === "gap" ? "gap" : "step"}>{row.label}</span>
              {row.who !== "" && <small>{row.who}</small>}
              {row.note !== "" && <small class={row.failed ? "bad" : undefined}>{row.note}</small>}
            </th>
            <Lane kind={row.kind} step={row} extent={extent} />
            <td>
              {row.microseconds === 0 ? `at ${duration(row.at - start)}` : duration(row.microseconds)}
              {row === longest && <strong> longest</strong>}
              {row.failed && <strong class="bad"> failed</strong>}
            </td>
            <td>{row.microseconds === 0 ? "" : share(row.microseconds)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
