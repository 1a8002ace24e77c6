/** Text for a terminal: colour, control characters, tables. */
import { styleText } from "node:util";

/** A style of `util.styleText`. */
export type Style = Parameters<typeof styleText>[0];

const colours = process.stdout.isTTY === true && process.env.NO_COLOR === undefined;

/** Returns text in a style; on a pipe or with NO_COLOR, the text alone. */
export function paint(style: Style, text: string): string {
  return colours ? styleText(style, text) : text;
}

/** Returns text with its control characters escaped, so that a terminal shows them and does not obey them. */
export function printable(text: string): string {
  return text.replace(/\p{Cc}/gu, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** Returns several lines of text with their control characters escaped, line ends excepted. */
export function printableLines(text: string): string {
  return text.split("\n").map(printable).join("\n");
}

/** Returns a table. The first row is its head. */
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
