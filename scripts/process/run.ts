/** Runs other programs to their end. */
import { spawn } from "node:child_process";
import { Refusal } from "../cli/errors.ts";

const ANSWER_MILLISECONDS_MAX = 10_000;
const LAST_LINES_MAX = 8;
/** Exit codes of a shell for a program that it did not find and for one that it could not run. */
const NOT_FOUND = 127;
const NOT_RUNNABLE = 126;

/** How a program ended, and what it printed. */
export interface Ended {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  /** The standard input of the program. It may contain secrets; a command line must not. */
  readonly input?: string;
  /** Lets the user's shell read the command: for commands that the user wrote. */
  readonly shell?: boolean;
  /** Added to the environment of the program. */
  readonly env?: Readonly<Record<string, string>>;
  /** Ends the program by SIGKILL when it aborts. */
  readonly signal?: AbortSignal;
  /** Ends the program by SIGTERM after this time. */
  readonly timeoutMilliseconds?: number;
}

/** Runs a program and resolves however it ends. A missing program has the exit code 127. */
export function attempt(command: string, args: readonly string[], options: RunOptions = {}): Promise<Ended> {
  return new Promise((resolve) => {
    const child = spawn(command, args, {
      shell: options.shell ?? false,
      stdio: ["pipe", "pipe", "pipe"],
      windowsHide: true,
      killSignal: options.signal === undefined ? "SIGTERM" : "SIGKILL",
      ...(options.env && { env: { ...process.env, ...options.env } }),
      ...(options.signal && { signal: options.signal }),
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
      resolve({ code: error.code === "ENOENT" ? NOT_FOUND : NOT_RUNNABLE, stdout, stderr: error.message }),
    );
    child.once("close", (code) => resolve({ code: code ?? 1, stdout, stderr }));
    // A program that ends before it reads its input breaks the pipe. Its exit code shows the cause.
    child.stdin.on("error", () => undefined);
    child.stdin.end(options.input ?? "");
  });
}

/**
 * Runs a program and returns its standard output.
 * @throws {Refusal} with its last lines, when it fails
 */
export async function run(command: string, args: readonly string[], options: RunOptions = {}): Promise<string> {
  const { code, stdout, stderr } = await attempt(command, args, options);
  if (code === 0) return stdout;
  const said = (stderr.trim() || stdout.trim()).split("\n").slice(-LAST_LINES_MAX).join("\n  ");
  throw new Refusal(`\`${[command, ...args].join(" ")}\` failed (exit code ${code}):\n  ${said}`);
}

/** Runs a program and parses its standard output as JSON. @throws {Refusal} when it fails */
export async function runJson<T>(command: string, args: readonly string[]): Promise<T> {
  return JSON.parse(await run(command, args)) as T;
}

/** The output of a program within a limit of time, and whether the program succeeded. */
export interface Answer {
  readonly ok: boolean;
  /** Standard output, then standard error. */
  readonly text: string;
}

/** Asks a program within a limit of time. One that is missing, fails or takes too long is not ok. */
export async function ask(command: readonly string[], millisecondsMax = ANSWER_MILLISECONDS_MAX): Promise<Answer> {
  const [program = "", ...rest] = command;
  const { code, stdout, stderr } = await attempt(program, rest, { timeoutMilliseconds: millisecondsMax });
  return { ok: code === 0, text: `${stdout}${stderr}` };
}

/** Returns the output of a program; undefined when it is missing, failed or took too long. */
export async function runText(command: readonly string[], millisecondsMax?: number): Promise<string | undefined> {
  const { ok, text } = await ask(command, millisecondsMax);
  return ok ? text : undefined;
}
