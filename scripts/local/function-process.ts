/** The process of one function. It starts at the first request and stops when it is idle, as Knative does. */
import { type ChildProcess, fork } from "node:child_process";
import { Agent } from "node:http";
import { createInterface } from "node:readline";
import { Refusal } from "../cli/errors.ts";
import { describeEnd, endChild, guardChild } from "../process/child.ts";

const START_MILLISECONDS_MAX = 20_000;
/** Longer than a function drains. Then Lotus kills the process. */
const STOP_MILLISECONDS_MAX = 30_000;
const LAST_LINES_MAX = 20;
/** Node prints the source line of an error, and a bundle is one line. */
const LINE_LENGTH_MAX = 1_000;

export interface FunctionProcessOptions {
  readonly name: string;
  /** The program in dist/. */
  readonly file: string;
  readonly environment: Readonly<Record<string, string>>;
  /** The secret of the run, which each request to the process shows. */
  readonly secret?: string;
  /** Options of Node, such as --inspect=9229. */
  readonly nodeOptions?: readonly string[];
  /** The time after which a process without requests stops. */
  readonly idleMilliseconds: number;
  /** A process that does not listen within this time is killed, and its requests are refused. */
  readonly startMillisecondsMax?: number;
  /** Receives every line that the function writes. */
  onLine(name: string, line: string): void;
  /** Receives the end of a process that Lotus did not end, with its last lines. */
  onCrash(name: string, how: string, lastLines: readonly string[]): void;
  onStart(name: string, milliseconds: number): void;
}

/** A process that listens. */
export interface Running {
  readonly port: number;
  readonly secret: string | undefined;
  readonly agent: Agent;
  readonly child: ChildProcess;
}

/** The state of a function, as `lotus ps` shows it. */
export interface FunctionStatus {
  /** `outdated`: the process runs code from before an edit that does not compile. `frozen`: SIGSTOP halts the process. */
  readonly state: "zero" | "starting" | "running" | "outdated" | "frozen";
  readonly pid?: number;
  readonly port?: number;
  readonly inFlight: number;
  readonly starts: number;
  readonly startMilliseconds?: number;
}

/** A process from its start to its end. */
interface Life {
  readonly child: ChildProcess;
  /** Rejects when the process ends before it listens. */
  readonly listening: Promise<Running>;
  running?: Running;
  /** Lotus ends it: it receives no more requests. */
  ending: boolean;
}

/** Keeps at most one process in service for a function. Processes that are being stopped may drain beside it. */
export class FunctionProcess {
  readonly #options: FunctionProcessOptions;
  #current: Life | undefined;
  #idle: NodeJS.Timeout | undefined;
  #inFlight = 0;
  #closed = false;
  #stale: (() => Promise<void>) | undefined;
  #outdated = false;
  #frozen: Life | undefined;
  #starts = 0;
  #startMilliseconds: number | undefined;
  readonly #ending = new Set<Promise<void>>();

  constructor(options: FunctionProcessOptions) {
    this.#options = options;
  }

  /** The listening process; undefined at zero. */
  get running(): Running | undefined {
    return this.#current?.running;
  }

  /** Whether the code on disk does not compile, so that the process runs older code. */
  get outdated(): boolean {
    return this.#outdated;
  }

  /** Marks the process as one of older code. */
  markOutdated(): void {
    this.#outdated = true;
  }

  /** Returns the state for `lotus ps`. */
  status(): FunctionStatus {
    const running = this.#current?.running;
    const state = this.#current === undefined ? "zero" : running === undefined ? "starting" : "running";
    const pid = this.#current?.child.pid;
    return {
      state:
        this.#current !== undefined && this.#frozen === this.#current ? "frozen" : this.#outdated ? "outdated" : state,
      ...(pid !== undefined && { pid }),
      ...(running !== undefined && { port: running.port }),
      inFlight: this.#inFlight,
      starts: this.#starts,
      ...(this.#startMilliseconds !== undefined && { startMilliseconds: this.#startMilliseconds }),
    };
  }

  /** Sends SIGKILL to the process. False: the function is at zero. */
  kill(): boolean {
    return this.#current?.child.kill("SIGKILL") ?? false;
  }

  /** Halts the process with SIGSTOP. False: no process runs. */
  freeze(): boolean {
    this.#frozen = this.#current;
    return this.#current?.child.kill("SIGSTOP") ?? false;
  }

  /** Continues a halted process. False: no process is halted. */
  thaw(): boolean {
    const frozen = this.#frozen;
    this.#frozen = undefined;
    return frozen?.child.kill("SIGCONT") ?? false;
  }

  /**
   * Counts a request as begun and returns the process that receives it. Starts a function without a process. Call `release` at the end.
   * @throws {Refusal} when the process does not listen; the request has then ended
   */
  async acquire(): Promise<Running> {
    this.#inFlight++;
    clearTimeout(this.#idle);
    try {
      for (;;) {
        if (this.#closed) throw new Refusal(`${this.#options.name} does not start: Lotus is stopping.`);
        while (this.#stale !== undefined) await this.#renew(this.#stale);
        this.#current ??= this.#start();
        const life = this.#current;
        const running = await life.listening.catch((error: unknown) => {
          if (!life.ending) throw error;
        });
        // A process that was replaced while it started has a successor: wait for that one.
        if (running !== undefined && !life.ending) return running;
      }
    } catch (error) {
      this.release();
      throw error;
    }
  }

  /** Runs `build` before the next request and replaces the process. After a failed build the old process continues, outdated. */
  replaceAfter(build: () => Promise<void>): void {
    this.#stale = build;
  }

  async #renew(build: () => Promise<void>): Promise<void> {
    const built = await build().then(
      () => true,
      () => false,
    );
    if (this.#stale !== build) return;
    this.#stale = undefined;
    this.#outdated = !built;
    if (built) void this.stop();
  }

  /** Counts a request as ended. */
  release(): void {
    this.#inFlight--;
    if (this.#inFlight > 0) return;
    this.#idle = setTimeout(() => void this.stop(), this.#options.idleMilliseconds).unref();
  }

  /** Forgets a process that does not answer, before its exit event arrives. */
  discard(running: Running): void {
    if (this.#current?.running === running) this.#current = undefined;
  }

  /** Ends the process and starts no other. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.stop();
  }

  /** Takes the process out of service and ends it: SIGTERM, requests in progress finish, SIGKILL after a while. */
  async stop(): Promise<void> {
    clearTimeout(this.#idle);
    const stopping = this.#current;
    this.#current = undefined;
    if (stopping !== undefined) this.#end(stopping);
    await Promise.all(this.#ending);
  }

  #end(life: Life): void {
    const { child } = life;
    life.ending = true;
    const ended = endChild(child, "SIGTERM", STOP_MILLISECONDS_MAX).then(() => life.running?.agent.destroy());
    this.#ending.add(ended);
    void ended.finally(() => this.#ending.delete(ended));
  }

  #start(): Life {
    const { name, file, environment, nodeOptions = [], secret, onLine, onCrash, onStart } = this.#options;
    const { startMillisecondsMax = START_MILLISECONDS_MAX } = this.#options;
    const began = performance.now();
    const last: string[] = [];
    const child = fork(file, [], {
      env: { ...environment, HOST: "127.0.0.1", PORT: "0" },
      execArgv: [...nodeOptions],
      stdio: ["ignore", "pipe", "pipe", "ipc"],
      // Another process group: Ctrl-C reaches the gateway only, which lets the functions finish.
      detached: true,
    });
    guardChild(child);
    this.#starts++;
    for (const stream of [child.stdout, child.stderr]) {
      if (stream === null) continue;
      createInterface({ input: stream }).on("line", (whole) => {
        const line = whole.startsWith("{") ? whole : whole.slice(0, LINE_LENGTH_MAX);
        if (last.push(line) > LAST_LINES_MAX) last.shift();
        onLine(name, line);
      });
    }
    const listening = new Promise<Running>((resolve, reject) => {
      let tooLate = false;
      const late = setTimeout(() => {
        tooLate = true;
        child.kill("SIGKILL");
      }, startMillisecondsMax);
      const over = (how: string) => {
        clearTimeout(late);
        if (this.#current === life) this.#current = undefined;
        if (!life.ending) onCrash(name, how, last);
        const sentence = tooLate
          ? `did not listen within ${startMillisecondsMax / 1000} s`
          : `ended ${how} before it listened`;
        // A client reads this sentence. The last lines of the process, with stacks and paths, are for the terminal.
        reject(new Refusal(`${name} ${sentence}.`));
      };
      child.once("error", (error) => over(`with ${error.message}`));
      child.once("message", (message) => {
        clearTimeout(late);
        life.running = {
          port: (message as { port: number }).port,
          secret,
          agent: new Agent({ keepAlive: true }),
          child,
        };
        this.#startMilliseconds = performance.now() - began;
        onStart(name, this.#startMilliseconds);
        resolve(life.running);
      });
      child.once("close", (code, signal) => over(describeEnd(code, signal)));
    });
    // A process that is stopped while it starts may have no request that waits for it.
    listening.catch(() => undefined);
    const life: Life = { child, listening, ending: false };
    return life;
  }
}
