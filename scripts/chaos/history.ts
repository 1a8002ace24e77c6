/**
 * The history of a run: JSON lines in the shape of Jepsen's operations (https://github.com/jepsen-io/jepsen, `jepsen.history`).
 * A line is written before its call is made, so a crash of the load loses no call.
 */
import { closeSync, openSync, readFileSync, writeSync } from "node:fs";

/** `invoke` begins an operation. `ok`: it happened. `fail`: Lotus refused it. `info`: its outcome is unknown. */
export type EntryType = "invoke" | "ok" | "fail" | "info";

/** One line: an operation of a client, or a fault (process `nemesis`). */
export interface Entry {
  readonly index: number;
  /** Nanoseconds since the start of the run. */
  readonly time: number;
  readonly process: number | "nemesis";
  readonly type: EntryType;
  /** The operation, such as `deposit`, or the name of a fault. */
  readonly f: string;
  readonly value: Readonly<Record<string, unknown>>;
}

export class History {
  readonly #file: number;
  readonly #began = process.hrtime.bigint();
  #entries = 0;

  /** @param path the file, which is replaced */
  constructor(path: string) {
    this.#file = openSync(path, "w", 0o600);
  }

  /** Returns the time of the run in nanoseconds. */
  now(): number {
    return Number(process.hrtime.bigint() - this.#began);
  }

  /** Returns the number of entries. */
  get length(): number {
    return this.#entries;
  }

  /** Writes one entry to the file before it returns. */
  write(process: Entry["process"], type: EntryType, f: string, value: Entry["value"]): void {
    writeSync(this.#file, `${JSON.stringify({ index: this.#entries++, time: this.now(), process, type, f, value })}\n`);
  }

  close(): void {
    closeSync(this.#file);
  }
}

/** Reads a history. The last line of a run that was killed may be incomplete: it is left out. */
export function readHistory(path: string): Entry[] {
  const lines = readFileSync(path, "utf8").split("\n");
  const last = lines.pop();
  const entries = lines.filter((line) => line !== "").map((line) => JSON.parse(line) as Entry);
  if (last?.endsWith("}")) entries.push(JSON.parse(last) as Entry);
  return entries;
}
