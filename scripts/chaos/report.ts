/** The report of a run: one screen of text, and one HTML page without external parts. */
import type { Violation } from "./checker.ts";

/** The figures of one second of the run. */
export interface Sample {
  /** Seconds since the start of the run. */
  readonly second: number;
  readonly operations: number;
  readonly p50Milliseconds: number;
  readonly p99Milliseconds: number;
  /** Rows in the outbox. -1: the database could not be asked. */
  readonly outbox: number;
}

/** One injected fault. */
export interface Injection {
  readonly name: string;
  /** Seconds since the start of the run. */
  readonly from: number;
  readonly to: number;
  /** Milliseconds from the heal to the first acknowledged movement of money. */
  readonly recoveryMilliseconds: number | undefined;
}

export interface Report {
  readonly seed: number;
  readonly minutes: number;
  readonly clients: number;
  readonly kafka: boolean;
  readonly operations: number;
  readonly refused: number;
  readonly unknown: number;
  readonly settledMilliseconds: number;
  readonly injections: readonly Injection[];
  readonly skipped: Readonly<Record<string, string>>;
  readonly samples: readonly Sample[];
  readonly checked: Readonly<Record<string, number>>;
  /** Each with the operations of its user around it. */
  readonly violations: readonly (Violation & { readonly operations: readonly string[] })[];
}

/** Returns the quantile of the numbers for a share from 0 to 1; NaN for an empty list. */
export function quantile(numbers: readonly number[], share: number): number {
  const sorted = [...numbers].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? Number.NaN;
}

/** Rows for a table: each kind of fault with its number and its recovery times. */
export function faultRows({ injections, skipped }: Report): string[][] {
  const names = [...new Set(injections.map(({ name }) => name))].sort();
  const milliseconds = (value: number) => (Number.isNaN(value) ? "–" : `${Math.round(value)} ms`);
  return [
    ["fault", "injected", "recovery p50", "recovery max"],
    ...names.map((name) => {
      const own = injections.filter((injection) => injection.name === name);
      const recoveries = own.flatMap(({ recoveryMilliseconds: time }) => (time === undefined ? [] : [time]));
      return [name, String(own.length), milliseconds(quantile(recoveries, 0.5)), milliseconds(quantile(recoveries, 1))];
    }),
    ...Object.entries(skipped).map(([name, reason]) => [name, "skipped", reason, ""]),
  ];
}

const escaped = (text: string) => text.replace(/[&<>"]/g, (character) => `&#${character.charCodeAt(0)};`);

const WIDTH = 1000;
const CHART_HEIGHT = 120;

/** One line chart as SVG. */
function chart(
  title: string,
  unit: string,
  samples: readonly Sample[],
  readValue: (sample: Sample) => number,
  seconds: number,
): string {
  const values = samples.map(readValue);
  const top = Math.max(1, ...values);
  const points = samples.map((sample, index) => {
    const x = (sample.second / seconds) * WIDTH;
    const y = CHART_HEIGHT - (Math.max(0, values[index] ?? 0) / top) * CHART_HEIGHT;
    return `${x.toFixed(1)},${y.toFixed(1)}`;
  });
  return `<figure><figcaption>${escaped(title)}: at most ${top.toFixed(0)} ${escaped(unit)}</figcaption>
<svg viewBox="0 0 ${WIDTH} ${CHART_HEIGHT}" role="img" aria-label="${escaped(title)}"><polyline points="${points.join(" ")}"/></svg></figure>`;
}

function faultBars(injections: readonly Injection[], seconds: number): string {
  const names = [...new Set(injections.map(({ name }) => name))].sort();
  const row = 16;
  const bars = injections.map(({ name, from, to }) => {
    const x = (from / seconds) * WIDTH;
    const width = Math.max(2, ((to - from) / seconds) * WIDTH);
    return `<rect x="${x.toFixed(1)}" y="${names.indexOf(name) * row + 3}" width="${width.toFixed(1)}" height="${row - 6}"><title>${escaped(`${name}, ${from.toFixed(1)}–${to.toFixed(1)} s`)}</title></rect>`;
  });
  const labels = names.map((name, index) => `<text x="4" y="${index * row + 12}">${escaped(name)}</text>`);
  return `<figure><figcaption>Faults over time</figcaption>
<svg viewBox="0 0 ${WIDTH} ${names.length * row}" role="img" aria-label="Faults over time">${bars.join("")}${labels.join("")}</svg></figure>`;
}

const htmlTable = (rows: readonly (readonly string[])[]) =>
  `<table>${rows
    .map((cells, index) => {
      const tag = index === 0 ? "th" : "td";
      return `<tr>${cells.map((cell) => `<${tag}>${escaped(cell)}</${tag}>`).join("")}</tr>`;
    })
    .join("\n")}</table>`;

/** Returns the HTML page. */
export function htmlReport(report: Report): string {
  const { samples, injections, violations, seed, operations, refused, unknown, settledMilliseconds } = report;
  const seconds = Math.max(1, ...samples.map(({ second }) => second));
  const verdict =
    violations.length === 0
      ? "Every invariant holds: no money and no event is lost."
      : `${violations.length} violations. Repeat the run with <code>npm run chaos -- --seed ${seed}</code>.`;
  return `<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Lotus chaos run, seed ${seed}</title>
<style>
:root { color-scheme: light dark; font-family: system-ui, sans-serif; }
body { max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
svg { width: 100%; border: 1px solid #8886; }
polyline { fill: none; stroke: #2a7; stroke-width: 1.5; }
rect { fill: #c44; } text { font-size: 10px; fill: CanvasText; stroke: Canvas; stroke-width: 3; paint-order: stroke; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #8884; }
</style>
<h1>Chaos run, seed ${seed}</h1>
<p><strong>${verdict}</strong></p>
<p>${operations} operations (${refused} refused, ${unknown} with an unknown outcome), ${injections.length} faults, ${report.clients} clients, ${report.minutes} minutes, ${report.kafka ? "real Kafka" : "local event bus"}. The outbox drained in ${(settledMilliseconds / 1000).toFixed(1)} s.</p>
${chart("Operations per second", "operations", samples, ({ operations: number }) => number, seconds)}
${chart("Latency p99", "ms", samples, ({ p99Milliseconds }) => p99Milliseconds, seconds)}
${chart("Outbox depth", "rows", samples, ({ outbox }) => outbox, seconds)}
${faultBars(injections, seconds)}
<h2>Recovery</h2>${htmlTable(faultRows(report))}
<h2>Checked</h2>${htmlTable([["what", "number"], ...Object.entries(report.checked).map(([what, number]) => [what, String(number)])])}
${violations.length === 0 ? "" : "<h2>Violations</h2>"}
${violations.map(({ invariant, sentence, operations: around }) => `<h3>${escaped(`${invariant}: ${sentence}`)}</h3><pre>${escaped(around.join("\n"))}</pre>`).join("\n")}
</html>
`;
}
