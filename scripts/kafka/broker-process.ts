/** Starts, watches and stops the process of one broker. The broker ends with this process. */
import { type ChildProcess, spawn } from "node:child_process";
import { createWriteStream, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import { Refusal } from "../cli/errors.ts";
import { guardChild, hasEnded, isAlive } from "../process/child.ts";
import { runText } from "../process/run.ts";
import { waitFor } from "../process/wait.ts";

const START_MILLISECONDS_MAX = 90_000;
/** The first stop also writes the class archive, which takes seconds on a busy machine. */
const STOP_MILLISECONDS_MAX = 20_000;
const KILL_MILLISECONDS_MAX = 5_000;
const POLL_MILLISECONDS = 20;

const READY = "Kafka Server started";

/** Returns the command line of a process, or an empty text. Process numbers are used again, so the text identifies it. */
async function commandLineOf(pid: number): Promise<string> {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ");
  } catch {
    return (await runText(["ps", "-p", String(pid), "-o", "command="])) ?? "";
  }
}

async function waitUntilGone(pid: number): Promise<void> {
  const limits = { millisecondsMax: KILL_MILLISECONDS_MAX, stepMilliseconds: POLL_MILLISECONDS };
  if ((await waitFor(() => !isAlive(pid), limits)) === undefined)
    throw new Refusal(`The process ${pid} does not end, not even by SIGKILL.`);
}

/**
 * Ends the broker of a killed run.
 * @param mark a part of its command line
 * @throws {Error} when the run that started it still runs
 */
export async function endLeftover(pidFile: string, mark: string): Promise<void> {
  let text: string;
  try {
    text = readFileSync(pidFile, "utf8");
  } catch {
    return;
  }
  const [pid = 0, parent = 0] = text.split(" ").map(Number);
  if (pid > 0 && isAlive(pid) && (await commandLineOf(pid)).includes(mark)) {
    if (isAlive(parent)) {
      throw new Refusal(`This Kafka runs already: process ${parent} started it. Stop that process first.`);
    }
    process.kill(pid, "SIGKILL");
    await waitUntilGone(pid);
  }
  rmSync(pidFile, { force: true });
}

/** A started process of a broker. */
export class BrokerProcess {
  readonly #child: ChildProcess;
  readonly #pidFile: string;
  readonly #exited: Promise<void>;
  readonly #serving: Promise<void>;
  #lastLine = "it printed nothing";
  #expected = false;

  /**
   * @param command the program and its arguments
   * @param logFile receives the output of the broker
   * @param onEnd receives its last line when it ends without a request to end
   */
  constructor(command: readonly string[], logFile: string, pidFile: string, onEnd: (lastLine: string) => void) {
    this.#pidFile = pidFile;
    const [program = "", ...rest] = command;
    // A separate session: Ctrl-C in the terminal reaches only Lotus, which stops the broker.
    const child = spawn(program, rest, {
      stdio: ["ignore", "pipe", "pipe"],
      detached: process.platform !== "win32",
      windowsHide: true,
    });
    guardChild(child);
    this.#child = child;
    const log = createWriteStream(logFile, { flags: "a" });
    log.on("error", (error) => onEnd(`its log cannot be written: ${error.message}`));
    this.#serving = new Promise((resolve) => {
      const read = (line: string) => {
        log.write(`${line}\n`);
        if (line.trim() !== "") this.#lastLine = line.trim();
        if (line.includes(READY)) resolve();
      };
      createInterface({ input: child.stdout as Readable }).on("line", read);
      createInterface({ input: child.stderr as Readable }).on("line", read);
    });
    if (child.pid !== undefined) writeFileSync(this.#pidFile, `${child.pid} ${process.pid}`);
    this.#exited = new Promise((resolve) => {
      child.once("exit", () => resolve());
      child.once("error", (error) => {
        this.#lastLine = error.message;
        resolve();
      });
    });
    void this.#exited.then(() => {
      log.end();
      if (!this.#expected) onEnd(this.#lastLine);
    });
  }

  /**
   * Resolves when the broker serves.
   * @throws {Error} with its last line when it ends before, or takes longer than START_MILLISECONDS_MAX
   */
  async ready(): Promise<void> {
    const late = new AbortController();
    const first = await Promise.race([
      this.#serving.then(() => "serving" as const),
      this.#exited.then(() => "it ended before it served"),
      delay(START_MILLISECONDS_MAX, `it did not serve within ${START_MILLISECONDS_MAX / 1000} s`, late),
    ]);
    late.abort();
    if (first === "serving") return;
    this.kill();
    throw new Error(`${first}; its last line: ${this.#lastLine}`);
  }

  get running(): boolean {
    return !hasEnded(this.#child);
  }

  #signal(signal: "SIGTERM" | "SIGKILL"): void {
    this.#expected = true;
    this.#child.kill(signal);
  }

  /** SIGKILL, at once. */
  kill(): void {
    this.#signal("SIGKILL");
  }

  /** Waits until the process has ended. */
  async gone(): Promise<void> {
    await this.#exited;
    rmSync(this.#pidFile, { force: true });
  }

  /** Sends SIGTERM, and SIGKILL after a time. Resolves when the process has ended. */
  async stop(): Promise<void> {
    this.#signal("SIGTERM");
    const late = new AbortController();
    const first = await Promise.race([this.#exited, delay(STOP_MILLISECONDS_MAX, "late" as const, late)]);
    late.abort();
    if (first === "late") this.kill();
    await this.gone();
  }
}
