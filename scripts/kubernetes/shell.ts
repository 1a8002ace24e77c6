/** Runs other programs, and says what goes on: progress for what takes long, a sentence for what goes wrong. */
import { spawn } from "node:child_process";

/** What the person at the keyboard has to know or to mend. Printed as it is, without a stack. */
export class Refusal extends Error {}

export interface Ran {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

interface RunOptions {
  /** Given to the program on its standard input: secrets never stand in a command line. */
  readonly input?: string;
  /** Let the user's shell read the command: for commands that the user has written. */
  readonly shell?: boolean;
  readonly timeoutMilliseconds?: number;
}

/** Runs a program to its end, whatever the end is. A program that is missing has the exit code 127. */
export function attempt(command: string, args: readonly string[], options: RunOptions = {}): Promise<Ran> {
  return new Promise((resolve) => {
    const child = spawn(command, args, {
      shell: options.shell ?? false,
      stdio: ["pipe", "pipe", "pipe"],
      ...(options.timeoutMilliseconds === undefined ? {} : { timeout: options.timeoutMilliseconds }),
    });
    let stdout = "";
    let stderr = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr += text;
    });
    child.once("error", (error: NodeJS.ErrnoException) =>
      resolve({ code: error.code === "ENOENT" ? 127 : 126, stdout, stderr: error.message }),
    );
    child.once("close", (code) => resolve({ code: code ?? 1, stdout, stderr }));
    // A program that ends without reading its input breaks the pipe; its exit code tells the rest.
    child.stdin.on("error", () => undefined);
    child.stdin.end(options.input ?? "");
  });
}

/**
 * Runs a program.
 * @returns what it printed
 * @throws {Refusal} with its last words, when it fails
 */
export async function run(command: string, args: readonly string[], options: RunOptions = {}): Promise<string> {
  const { code, stdout, stderr } = await attempt(command, args, options);
  if (code === 0) return stdout;
  const said = (stderr.trim() || stdout.trim()).split("\n").slice(-8).join("\n  ");
  throw new Refusal(`\`${[command, ...args].join(" ")}\` failed (exit code ${code}):\n  ${said}`);
}

/** What a program printed, as JSON. Throws Refusal when it fails. */
export async function runJson<T>(command: string, args: readonly string[]): Promise<T> {
  return JSON.parse(await run(command, args)) as T;
}

const TICK_MILLISECONDS = 5_000;

/** A step: says what, how it goes on every five seconds, and in the end how long it took. */
export async function step<T>(what: string, work: (report: (progress: string) => void) => Promise<T>): Promise<T> {
  const began = performance.now();
  const seconds = () => ((performance.now() - began) / 1000).toFixed(1);
  let progress = "";
  process.stdout.write(`${what} …\n`);
  const timer = setInterval(
    () => process.stdout.write(`  ${seconds()} s${progress && `: ${progress}`}\n`),
    TICK_MILLISECONDS,
  );
  try {
    const result = await work((text) => {
      progress = text;
    });
    process.stdout.write(`  done after ${seconds()} s${progress && `: ${progress}`}\n`);
    return result;
  } finally {
    clearInterval(timer);
  }
}

/** Works through a list, a few at a time, and stops at the first failure. */
export async function eachOf<T>(items: readonly T[], atOnce: number, work: (item: T) => Promise<void>): Promise<void> {
  const left = [...items];
  const worker = async () => {
    for (let item = left.shift(); item !== undefined; item = left.shift()) await work(item);
  };
  try {
    await Promise.all(Array.from({ length: atOnce }, worker));
  } finally {
    left.length = 0;
  }
}

/** The end of a script: a Refusal is printed as a sentence, anything else is a mistake of ours and keeps its stack. */
export function main(work: () => Promise<void>): void {
  work().catch((error: unknown) => {
    console.error(error instanceof Refusal ? `\n${error.message}` : error);
    process.exit(1);
  });
}
