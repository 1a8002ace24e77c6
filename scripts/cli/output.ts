/** What a person sees of a local run: tables, and the functions' JSON lines in words. */
import { styleText } from "node:util";

type Style = Parameters<typeof styleText>[0];

const colours = process.stdout.isTTY && process.env.NO_COLOR === undefined;
const paint = (style: Style, text: string) => (colours ? styleText(style, text) : text);

/** Text of others, as a terminal shows it and does not obey it: control characters by their numbers. */
export function printable(text: string): string {
  return text.replace(/\p{Cc}/gu, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

const printableLines = (text: string) => text.split("\n").map(printable).join("\n");

/** A table: the first row is its head. */
export function table(given: readonly (readonly string[])[]): string {
  const rows = given.map((row) => row.map(printable));
  const widths = rows[0]?.map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0))) ?? [];
  return rows
    .map((row, index) => {
      const line = `  ${row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join("  ")}`.trimEnd();
      return index === 0 ? paint("bold", line) : line;
    })
    .join("\n");
}

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
  "trace",
]);

/** One line of a function, for people. What is no JSON is shown as it is. */
export function pretty(name: string, text: string): string {
  const who = paint("cyan", name.padEnd(22));
  const line = parse(text);
  if (line === undefined) return `${new Date().toISOString().slice(11, 23)} ${who} ${printableLines(text)}`;
  const { time = "", level, message, method, path, status, milliseconds, trace, stack } = line;
  const style: Style = level === "error" ? "red" : level === "warning" ? "yellow" : "reset";
  const what = printable(method === undefined ? String(message) : `${status} ${method} ${path}`);
  const rest = Object.entries(line).filter(([field]) => !HIDDEN.has(field));
  const facts = rest.map(([field, value]) => printable(`${field}=${value}`)).join(" ");
  const took = milliseconds === undefined ? "" : `${milliseconds} ms`;
  const tail = [took, facts, trace === undefined ? "" : `trace=${String(trace).slice(0, 8)}`]
    .filter(Boolean)
    .join("  ");
  const behind = typeof stack === "string" ? `\n${printableLines(stack)}` : "";
  return `${time.slice(11, 23)} ${who} ${paint(style, what)}  ${paint("dim", tail)}${paint("dim", behind)}`;
}

/** What a step has begun to say, and will end on the same line if nobody speaks meanwhile. */
let unended = false;

/** A line of Lotus itself. */
export function print(text: string): void {
  if (unended) process.stdout.write("\n");
  unended = false;
  console.log(text);
}

/** A step that may take a while: says what at once, and when done, behind it, how long it took. */
export async function step<T>(what: string, work: () => Promise<T>): Promise<T> {
  const began = performance.now();
  process.stdout.write(`  ${what} …`);
  unended = true;
  try {
    const result = await work();
    const took = paint("dim", `${((performance.now() - began) / 1000).toFixed(1)} s`);
    process.stdout.write(unended ? ` ${took}\n` : `  ${what}: ${took}\n`);
    unended = false;
    return result;
  } catch (error) {
    if (unended) process.stdout.write("\n");
    unended = false;
    throw error;
  }
}
