/** Other programs' answers, within a limit of time. */
import { execFile } from "node:child_process";

const ANSWER_MILLISECONDS_MAX = 10_000;
const OUTPUT_BYTES_MAX = 4 * 1024 * 1024;

/** How a program ended, and what it printed. */
export interface Ended {
  readonly ok: boolean;
  /** Standard output, then standard error. */
  readonly text: string;
}

/** Runs a program to its end. One that is missing, fails or takes too long is not ok; it never throws. */
export function run(command: readonly string[], millisecondsMax = ANSWER_MILLISECONDS_MAX): Promise<Ended> {
  const [program = "", ...rest] = command;
  return new Promise((resolve) => {
    const options = { timeout: millisecondsMax, maxBuffer: OUTPUT_BYTES_MAX, windowsHide: true };
    execFile(program, rest, options, (error, stdout, stderr) => {
      resolve({ ok: error === null, text: `${stdout}${stderr}${error === null ? "" : `\n${error.message}`}` });
    });
  });
}

/** What a program printed; undefined when it is missing, failed or took too long. */
export async function runText(command: readonly string[], millisecondsMax?: number): Promise<string | undefined> {
  const { ok, text } = await run(command, millisecondsMax);
  return ok ? text : undefined;
}
