/** One broker's process: begun, watched until it serves, ended; never left behind. */
import { type ChildProcess, spawn } from "node:child_process";
import { createWriteStream, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import { runText } from "../process/run.ts";

const START_MILLISECONDS_MAX = 90_000;
/** The first stop also writes the class archive, which takes seconds on a busy machine. */
const STOP_MILLISECONDS_MAX = 20_000;
const KILL_MILLISECONDS_MAX = 5_000;
const POLL_MILLISECONDS = 20;

const READY = "Kafka Server started";

/**
 * Stands between us and the broker: when our end of its standard input closes, however we died, it kills the broker.
 * The session of its own keeps a Ctrl-C in the terminal from reaching the broker before we have decided how to stop it.
 */
const GUARD = `
exec 4<&0
"$@" 3>&- 4<&- </dev/null &
broker=$!
echo "$broker" >&3
exec 3>&-
{ read -r _ <&4; kill -9 "$broker"; } >/dev/null 2>&1 &
guard=$!
exec 4<&-
wait "$broker"
status=$?
kill -9 "$guard"
exit "$status"
`;

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

/** A process's command line, empty when there is none to be seen: process numbers are used again. */
async function commandLineOf(pid: number): Promise<string> {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ");
  } catch {
    return (await runText(["ps", "-p", String(pid), "-o", "command="])) ?? "";
  }
}

async function waitUntilGone(pid: number): Promise<void> {
  const until = performance.now() + KILL_MILLISECONDS_MAX;
  while (alive(pid)) {
    if (performance.now() > until) throw new Error(`The process ${pid} does not end, not even by SIGKILL.`);
    await delay(POLL_MILLISECONDS);
  }
}

/**
 * Ends the broker that a run which was itself killed left behind.
 * @param mark what its command line contains
 * @throws {Error} when the run that began it is still there
 */
export async function endLeftover(pidFile: string, mark: string): Promise<void> {
  let text: string;
  try {
    text = readFileSync(pidFile, "utf8");
  } catch {
    return;
  }
  const [pid = 0, parent = 0] = text.split(" ").map(Number);
  if (pid > 0 && alive(pid) && (await commandLineOf(pid)).includes(mark)) {
    if (alive(parent)) {
      throw new Error(`This Kafka is running already: the process ${parent} began it. End that one first.`);
    }
    process.kill(pid, "SIGKILL");
    await waitUntilGone(pid);
  }
  rmSync(pidFile, { force: true });
}

/** A broker's process that has been begun. */
export class BrokerProcess {
  readonly #child: ChildProcess;
  readonly #pidFile: string;
  readonly #exited: Promise<void>;
  readonly #serving: Promise<void>;
  /** The broker's process number has come. */
  readonly #known: Promise<void>;
  #pid: number | undefined;
  #lastLine = "it printed nothing";
  #expected = false;

  /**
   * @param command the program and its arguments
   * @param logFile gets what the broker prints
   * @param onEnd hears its last line when it ends without having been told to
   */
  constructor(command: readonly string[], logFile: string, pidFile: string, onEnd: (lastLine: string) => void) {
    this.#pidFile = pidFile;
    const guarded = process.platform !== "win32";
    const [program = "", ...rest] = guarded ? ["sh", "-c", GUARD, "sh", ...command] : command;
    const child = spawn(program, rest, {
      stdio: ["pipe", "pipe", "pipe", "pipe"],
      detached: guarded,
      windowsHide: true,
    });
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
    this.#known = new Promise((resolve) => {
      const remember = (pid: number) => {
        this.#pid = pid;
        writeFileSync(this.#pidFile, `${pid} ${process.pid}`);
        resolve();
      };
      if (guarded) createInterface({ input: child.stdio[3] as Readable }).on("line", (pid) => remember(Number(pid)));
      else if (child.pid !== undefined) remember(child.pid);
    });
    // Writing to a process that is gone is no error worth ending for.
    child.stdin?.on("error", () => undefined);
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
      Promise.all([this.#serving, this.#known]).then(() => "serving" as const),
      this.#exited.then(() => "it ended before it served"),
      delay(START_MILLISECONDS_MAX, `it did not serve within ${START_MILLISECONDS_MAX / 1000} s`, late),
    ]);
    late.abort();
    if (first === "serving") return;
    this.kill();
    throw new Error(`${first}; its last line: ${this.#lastLine}`);
  }

  get running(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null && this.#child.pid !== undefined;
  }

  #signal(signal: "SIGTERM" | "SIGKILL"): void {
    this.#expected = true;
    if (!this.running) return;
    try {
      if (this.#pid === undefined) this.#child.kill(signal);
      else process.kill(this.#pid, signal);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
    }
  }

  /** SIGKILL, at once. */
  kill(): void {
    this.#signal("SIGKILL");
  }

  /** Waits until the process is gone. */
  async gone(): Promise<void> {
    await this.#exited;
    rmSync(this.#pidFile, { force: true });
  }

  /** SIGTERM, and SIGKILL when that is not enough. Resolves when it is gone. */
  async stop(): Promise<void> {
    this.#signal("SIGTERM");
    const late = new AbortController();
    const first = await Promise.race([this.#exited, delay(STOP_MILLISECONDS_MAX, "late" as const, late)]);
    late.abort();
    if (first === "late") this.kill();
    await this.gone();
  }
}
