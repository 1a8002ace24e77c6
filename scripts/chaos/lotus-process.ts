/** Runs Lotus in a process that faults can kill and halt, and acts on it. */
import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import type { BusState } from "../local/event-bus.ts";
import { hasEnded } from "../process/child.ts";
import { guardChild } from "../process/guard.ts";
import { ROOT, TYPESCRIPT } from "../project/paths.ts";

const PROGRAM = join(ROOT, "scripts", "chaos", "lotus-program.ts");

/** The options of startLotus that a message can contain. */
export interface StartOptions {
  readonly port: number;
  readonly folder: string;
  readonly databaseUrl: string;
  readonly pooler?: string;
  readonly kafka: boolean;
  readonly built: boolean;
  readonly migrated?: boolean;
  /** Options of Node for every function. */
  readonly functionOptions: readonly string[];
  /** Receives the lines of the functions and the news of Lotus, each with its time. */
  readonly logFile: string;
}

/** A message to the process. `replace` stops a function cleanly, so that its next request starts another process. */
export type Question = { readonly id: number } & Action;
type Action =
  | { readonly kind: "tick" | "functions" | "stop" }
  | { readonly kind: "bus"; readonly state: BusState }
  | { readonly kind: "replace"; readonly name: string };

/** The answer to a question. */
export interface Answer {
  readonly kind: "answer";
  readonly id: number;
  readonly functions?: readonly RunningFunction[];
  /** A sentence, when the action failed. */
  readonly failure?: string;
}

/** The first message of the process. */
export type Started =
  | {
      readonly kind: "started";
      readonly url: string;
      readonly insideUrl: string;
      readonly sources: readonly Source[];
    }
  | { readonly kind: "failed"; readonly sentence: string };

/** A function whose process listens. */
export interface RunningFunction {
  readonly name: string;
  readonly pid: number;
}

/** A KafkaSource of Lotus. */
export interface Source {
  readonly topics: readonly string[];
  readonly consumerGroup: string;
}

/** A running Lotus. While its process is killed, every action resolves without effect. */
export interface LotusProcess {
  readonly url: string;
  /** The address of the event bus, which ends in the secret of the run. It changes when the process starts again. */
  readonly insideUrl: string;
  readonly sources: readonly Source[];
  functions(): Promise<readonly RunningFunction[]>;
  /** Stops a function cleanly; its next request starts another process. */
  replace(name: string): Promise<void>;
  /** Changes how the event bus treats published events. A new process delivers them. */
  disturbBus(state: BusState): Promise<void>;
  /** Fires the PingSources now. */
  tick(): Promise<void>;
  /** Sends SIGKILL to the process. Its functions end with it. */
  kill(): void;
  /** Halts the process with SIGSTOP, and continues it. Its functions continue. */
  freeze(): void;
  thaw(): void;
  /** Starts the process again, at the same port, after it was killed. */
  restart(): Promise<void>;
  stop(): Promise<void>;
}

/**
 * Starts Lotus in its own process.
 * @param environment is added to the environment of this process
 * @throws {Error} the sentence of startLotus
 */
export async function startLotusProcess(
  options: StartOptions,
  environment: Readonly<Record<string, string>> = {},
): Promise<LotusProcess> {
  const waiting = new Map<number, (answer: Answer | undefined) => void>();
  let questions = 0;
  const start = async (changes: { readonly port?: number; readonly migrated?: boolean }) => {
    const child: ChildProcess = fork(PROGRAM, [JSON.stringify({ ...options, ...changes })], {
      cwd: ROOT,
      execArgv: ["--import", TYPESCRIPT],
      env: { ...process.env, ...environment },
      stdio: ["ignore", "ignore", "inherit", "ipc"],
      // Ctrl-C reaches chaos only, which heals the faults first.
      detached: true,
    });
    guardChild(child);
    child.once("exit", () => {
      for (const resolve of waiting.values()) resolve(undefined);
      waiting.clear();
    });
    child.on("error", () => undefined);
    const first = await Promise.race([
      once(child, "message").then(([message]) => message as Started),
      once(child, "exit").then((): Started => ({ kind: "failed", sentence: "The process of Lotus ended early." })),
    ]);
    if (first.kind === "failed") throw new Error(first.sentence);
    child.on("message", (answer: Answer) => {
      waiting.get(answer.id)?.(answer);
      waiting.delete(answer.id);
    });
    return { child, first };
  };
  let { child, first } = await start({});
  const port = Number(new URL(first.url).port);
  const ask = async (action: Action): Promise<Answer | undefined> => {
    if (hasEnded(child)) return undefined;
    const id = questions++;
    const answer = await new Promise<Answer | undefined>((resolve) => {
      waiting.set(id, resolve);
      // A process that was killed a moment ago cannot be written to; its exit answers the question.
      child.send({ id, ...action }, () => undefined);
    });
    if (answer?.failure !== undefined) throw new Error(answer.failure);
    return answer;
  };
  return {
    url: first.url,
    get insideUrl() {
      return first.insideUrl;
    },
    sources: first.sources,
    functions: async () => (await ask({ kind: "functions" }))?.functions ?? [],
    replace: async (name) => void (await ask({ kind: "replace", name })),
    disturbBus: async (state) => void (await ask({ kind: "bus", state })),
    tick: async () => void (await ask({ kind: "tick" })),
    kill: () => void child.kill("SIGKILL"),
    freeze: () => void child.kill("SIGSTOP"),
    thaw: () => void child.kill("SIGCONT"),
    async restart() {
      if (!hasEnded(child)) await once(child, "exit");
      // A gateway does not need the database, which another fault may have ended.
      ({ child, first } = await start({ port, migrated: true }));
    },
    async stop() {
      if (hasEnded(child)) return;
      const ended = once(child, "exit");
      await ask({ kind: "stop" });
      await ended;
    },
  };
}
