/** The functions' JSON log lines in words. */
import { paint, printable, printableLines, type Style } from "../cli/text.ts";

interface Line {
  time?: string;
  level?: string;
  message?: string;
  [field: string]: unknown;
}

function parse(line: string): Line | undefined {
  if (!line.startsWith("{")) return undefined;
  try {
    return JSON.parse(line) as Line;
  } catch {
    return undefined;
  }
}

/** Fields that the line shows elsewhere, or that a person does not read. */
const HIDDEN = new Set([
  "time",
  "level",
  "function",
  "message",
  "stack",
  "method",
  "path",
  "status",
  "milliseconds",
  "trace_id",
  "span_id",
]);

const NAME_WIDTH = 22;

/** Returns the local time of a moment, such as 14:03:59.120. */
function clock(moment: Date): string {
  const two = (value: number) => String(value).padStart(2, "0");
  const milliseconds = String(moment.getMilliseconds()).padStart(3, "0");
  return `${two(moment.getHours())}:${two(moment.getMinutes())}:${two(moment.getSeconds())}.${milliseconds}`;
}

/** Returns one line of a function for people, with the local time. A line without JSON is not changed. */
export function pretty(name: string, text: string): string {
  const who = paint("cyan", name.padEnd(NAME_WIDTH));
  const line = parse(text);
  if (line === undefined) return `${clock(new Date())} ${who} ${printableLines(text)}`;
  const { time, level, message, method, path, status, milliseconds, trace_id: trace, stack } = line;
  const style: Style = level === "error" ? "red" : level === "warning" ? "yellow" : "reset";
  const what = printable(method === undefined ? String(message) : `${status} ${method} ${path}`);
  const rest = Object.entries(line).filter(([field]) => !HIDDEN.has(field));
  const facts = rest.map(([field, value]) => printable(`${field}=${value}`)).join(" ");
  const took = milliseconds === undefined ? "" : `${milliseconds} ms`;
  const tail = [took, facts, trace === undefined ? "" : `trace=${String(trace).slice(0, 8)}`]
    .filter(Boolean)
    .join("  ");
  const behind = typeof stack === "string" ? `\n${printableLines(stack)}` : "";
  const at = clock(time === undefined ? new Date() : new Date(time));
  return `${at} ${who} ${paint(style, what)}  ${paint("dim", tail)}${paint("dim", behind)}`;
}
