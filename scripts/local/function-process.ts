/** One function's own process: started at its first request, stopped when idle, as Knative would. */
import { type ChildProcess, fork } from "node:child_process";
import { Agent } from "node:http";
import { createInterface } from "node:readline";

/** A function that does not listen by then is stopped, and its requests are refused. */
const START_MILLISECONDS_MAX = 20_000;
/** Beyond draining's own limits there is something wrong. */
const STOP_MILLISECONDS_MAX = 30_000;
const LAST_LINES_MAX = 20;

export interface FunctionProcessOptions {
  readonly name: string;
  /** The bundle. */
  readonly file: string;
  readonly environment: Readonly<Record<string, string>>;
  /** How long a process lives without requests. */
  readonly idleMilliseconds: number;
  /** Hears every line that the function writes. */
  onLine(name: string, line: string): void;
  /** Hears that the process ended without being asked to, and what it said last. */
  onCrash(name: string, how: string, lastLines: readonly string[]): void;
  onStart(name: string, milliseconds: number): void;
}

/** A process that listens. */
export interface Running {
  readonly port: number;
  readonly agent: Agent;
  readonly child: ChildProcess;
}

/** Keeps at most one listening process for a function; one that is being stopped may still be draining beside it. */
export class FunctionProcess {
  readonly #options: FunctionProcessOptions;
  #starting: Promise<Running> | undefined;
  #running: Running | undefined;
  #idle: NodeJS.Timeout | undefined;
  #inFlight = 0;
  #closed = false;
  #stale: (() => Promise<void>) | undefined;
  readonly #ending = new Set<Promise<void>>();

  constructor(options: FunctionProcessOptions) {
    this.#options = options;
  }

  /** The listening process; undefined when there is none. */
  get running(): Running | undefined {
    return this.#running;
  }

  /**
   * Marks a request as begun and gives the process to send it to, started when there is none. Call `release` when it is over.
   * @throws {Error} when the process does not come up: a sentence with its last words
   */
  async acquire(): Promise<Running> {
    if (this.#closed) throw new Error(`${this.#options.name} starts no more: Lotus is stopping.`);
    this.#inFlight++;
    clearTimeout(this.#idle);
    while (this.#stale !== undefined) await this.#renew(this.#stale);
    if (this.#running !== undefined) return this.#running;
    this.#starting ??= this.#start().finally(() => {
      this.#starting = undefined;
    });
    return this.#starting;
  }

  /** Replaces the process before its next request, by the code that `build` makes. A failed build leaves things as they are. */
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
    if (built) void this.stop();
  }

  /** Marks a request as over. */
  release(): void {
    this.#inFlight--;
    if (this.#inFlight > 0) return;
    this.#idle = setTimeout(() => void this.stop(), this.#options.idleMilliseconds).unref();
  }

  /** Forgets a process that does not answer any more, before its end has been heard of. */
  discard(running: Running): void {
    if (this.#running === running) this.#running = undefined;
  }

  /** Ends the process, and starts none again. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.stop();
  }

  /** Takes the process out of service and ends it: SIGTERM, what is in flight finishes, SIGKILL after a while. */
  async stop(): Promise<void> {
    clearTimeout(this.#idle);
    const stopping = this.#running ?? (await this.#starting?.catch(() => undefined));
    this.#running = undefined;
    if (stopping !== undefined) this.#end(stopping);
    await Promise.all(this.#ending);
  }

  #end({ child, agent }: Running): void {
    const ended = new Promise<void>((resolve) => {
      if (child.exitCode !== null || child.signalCode !== null) return resolve();
      const late = setTimeout(() => child.kill("SIGKILL"), STOP_MILLISECONDS_MAX);
      child.once("exit", () => {
        clearTimeout(late);
        resolve();
      });
      child.kill("SIGTERM");
    }).then(() => agent.destroy());
    this.#ending.add(ended);
    void ended.finally(() => this.#ending.delete(ended));
  }

  #start(): Promise<Running> {
    const { name, file, environment, onLine, onCrash, onStart } = this.#options;
    const began = performance.now();
    const last: string[] = [];
    const child = fork(file, [], {
      env: { ...environment, PORT: "0" },
      execArgv: [],
      stdio: ["ignore", "pipe", "pipe", "ipc"],
      // A group of its own: Ctrl-C is for the gateway, which lets the functions finish.
      detached: true,
    });
    for (const stream of [child.stdout, child.stderr]) {
      if (stream === null) continue;
      createInterface({ input: stream }).on("line", (line) => {
        if (last.push(line) > LAST_LINES_MAX) last.shift();
        onLine(name, line);
      });
    }
    return new Promise((resolve, reject) => {
      const late = setTimeout(() => child.kill("SIGKILL"), START_MILLISECONDS_MAX);
      child.once("error", reject);
      child.once("message", (message) => {
        clearTimeout(late);
        const running = { port: (message as { port: number }).port, agent: new Agent({ keepAlive: true }), child };
        this.#running = running;
        onStart(name, performance.now() - began);
        resolve(running);
      });
      child.once("close", (code, signal) => {
        clearTimeout(late);
        const asked = this.#running?.child !== child && child.exitCode === 0;
        if (this.#running?.child === child) this.#running = undefined;
        const how = signal === null ? `with exit code ${code}` : `by ${signal}`;
        if (!asked) onCrash(name, how, last);
        reject(new Error(`${name} ended ${how} before it listened. ${last.slice(-3).join(" ")}`.trim()));
      });
    });
  }
}
