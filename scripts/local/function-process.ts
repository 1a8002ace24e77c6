/** One function's own process: started at its first request, stopped when idle, as Knative would. */
import { type ChildProcess, fork } from "node:child_process";
import { Agent } from "node:http";
import { createInterface } from "node:readline";

const START_MILLISECONDS_MAX = 20_000;
/** Beyond draining's own limits there is something wrong. */
const STOP_MILLISECONDS_MAX = 30_000;
const LAST_LINES_MAX = 20;

export interface FunctionProcessOptions {
  readonly name: string;
  /** The bundle. */
  readonly file: string;
  readonly environment: Readonly<Record<string, string>>;
  /** The secret of the run, which each request to the process shows. */
  readonly secret?: string;
  /** How long a process lives without requests. */
  readonly idleMilliseconds: number;
  /** A process that does not listen by then is killed, and its requests are refused. */
  readonly startMillisecondsMax?: number;
  /** Hears every line that the function writes. */
  onLine(name: string, line: string): void;
  /** Hears that the process ended without being asked to, and what it said last. */
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

/** A process from its start to its end. */
interface Life {
  readonly child: ChildProcess;
  /** Rejects, with a sentence, when it ends before that. */
  readonly listening: Promise<Running>;
  running?: Running;
  /** It has been told to end: nobody goes there any more. */
  ending: boolean;
}

/** Keeps at most one process in service for a function; those that are being stopped may still be draining beside it. */
export class FunctionProcess {
  readonly #options: FunctionProcessOptions;
  #current: Life | undefined;
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
    return this.#current?.running;
  }

  /**
   * Marks a request as begun and gives the process to send it to, started when there is none. Call `release` when it is over.
   * @throws {Error} when the process does not come up: a sentence with its last words; the request is over then
   */
  async acquire(): Promise<Running> {
    this.#inFlight++;
    clearTimeout(this.#idle);
    try {
      for (;;) {
        if (this.#closed) throw new Error(`${this.#options.name} starts no more: Lotus is stopping.`);
        while (this.#stale !== undefined) await this.#renew(this.#stale);
        this.#current ??= this.#start();
        const life = this.#current;
        const running = await life.listening.catch((error: unknown) => {
          if (!life.ending) throw error;
        });
        // One that was replaced while it started is not waited for: its successor is.
        if (running !== undefined && !life.ending) return running;
      }
    } catch (error) {
      this.release();
      throw error;
    }
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
    if (this.#current?.running === running) this.#current = undefined;
  }

  /** Ends the process, and starts none again. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.stop();
  }

  /** Takes the process out of service and ends it: SIGTERM, what is in flight finishes, SIGKILL after a while. */
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
    const ended = new Promise<void>((resolve) => {
      if (child.exitCode !== null || child.signalCode !== null) return resolve();
      const late = setTimeout(() => child.kill("SIGKILL"), STOP_MILLISECONDS_MAX);
      child.once("exit", () => {
        clearTimeout(late);
        resolve();
      });
      child.kill("SIGTERM");
    }).then(() => life.running?.agent.destroy());
    this.#ending.add(ended);
    void ended.finally(() => this.#ending.delete(ended));
  }

  #start(): Life {
    const { name, file, environment, secret, onLine, onCrash, onStart } = this.#options;
    const { startMillisecondsMax = START_MILLISECONDS_MAX } = this.#options;
    const began = performance.now();
    const last: string[] = [];
    const child = fork(file, [], {
      env: { ...environment, HOST: "127.0.0.1", PORT: "0" },
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
        reject(new Error(`${name} ${sentence}. ${last.slice(-3).join(" ")}`.trim()));
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
        onStart(name, performance.now() - began);
        resolve(life.running);
      });
      child.once("close", (code, signal) => over(signal === null ? `with exit code ${code}` : `by ${signal}`));
    });
    // Whoever waits for it hears of its failure; when it is stopped while starting, nobody may.
    listening.catch(() => undefined);
    const life: Life = { child, listening, ending: false };
    return life;
  }
}
