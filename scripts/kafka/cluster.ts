/** Gets and runs Apache Kafka: the one that is there already, else in docker, else from Maven's jars. */
import { mkdir } from "node:fs/promises";
import { join, resolve } from "node:path";
import { freePorts, isFree } from "../process/ports.ts";
import { BrokerProcess } from "./broker-process.ts";
import { DockerRuntime, dockerAnswers } from "./docker.ts";
import { JavaRuntime, javaAnswers } from "./java.ts";
import { nodeId, type SecuredListener } from "./properties.ts";
import type { KafkaPlan, Runtime } from "./runtime.ts";

const PROGRESS_MILLISECONDS = 2_000;

export interface KafkaOptions {
  readonly brokers: 1 | 3;
  /** Where the brokers keep logs and process numbers and, in Java, their data from run to run; in docker they begin empty. */
  readonly folder: string;
  /** Begin without what earlier runs have left there. */
  readonly fresh?: boolean;
  /** The first broker's port, the others' follow; without it, any that are free. */
  readonly port?: number;
  /** A second listener, for clients that must prove who they are. */
  readonly secured?: SecuredListener;
  /** Hears of everything that takes more than two seconds, and of a broker that ends by itself. */
  readonly onProgress?: (line: string) => void;
}

/** Running brokers. On brokers that KAFKA_BROKERS names, only `stop` works, and has no effect. */
export interface Kafka {
  /** host:port of each broker. */
  readonly bootstrap: readonly string[];
  /** host:port of each broker's secured listener; empty without one. */
  readonly secured: readonly string[];
  /** Ends all brokers, in order. */
  stop(): Promise<void>;
  /** SIGKILL for one broker, counted from 0. */
  kill(index: number): void;
  /** Begins a broker that was killed again. Resolves when it serves. */
  restart(index: number): Promise<void>;
  /** Kills all brokers, removes their data, and begins them anew on the same ports. */
  erase(): Promise<void>;
}

/** How Kafka can be had here. */
export type Source = "given" | "docker" | "java";

/** The message for a machine without Kafka. */
export const NO_KAFKA =
  "Kafka needs one of three things: KAFKA_BROKERS set to a Kafka that runs (host:port), or a docker that runs, or Java 17 (or newer) and Maven.";

/** How Kafka can be had on this machine; undefined when it cannot. */
export async function findKafka(given: string | undefined = process.env.KAFKA_BROKERS): Promise<Source | undefined> {
  if (given !== undefined && given !== "") return "given";
  if (await dockerAnswers()) return "docker";
  if (await javaAnswers()) return "java";
  return undefined;
}

function givenKafka(brokers: string): Kafka {
  const refuse = () => {
    throw new Error(
      "The brokers of KAFKA_BROKERS were not started here, so they are not killed or erased here either.",
    );
  };
  return {
    bootstrap: brokers.split(",").map((broker) => broker.trim()),
    secured: [],
    stop: async () => undefined,
    kill: refuse,
    restart: async () => refuse(),
    erase: async () => refuse(),
  };
}

async function clientPorts(brokers: number, first: number | undefined): Promise<number[]> {
  if (first === undefined) return freePorts(brokers);
  const ports = Array.from({ length: brokers }, (_, index) => first + index);
  for (const port of ports) {
    if (!(await isFree(port)))
      throw new Error(`Port ${port} is taken. End what listens there, or choose another port.`);
  }
  return ports;
}

class Cluster implements Kafka {
  readonly bootstrap: readonly string[];
  readonly secured: readonly string[];
  readonly #runtime: Runtime;
  readonly #plan: KafkaPlan;
  readonly #processes: (BrokerProcess | undefined)[] = [];
  /** Signals on their way to a broker that was killed, until it is begun again. */
  readonly #killing: (Promise<void> | undefined)[] = [];

  constructor(runtime: Runtime, plan: KafkaPlan) {
    this.#runtime = runtime;
    this.#plan = plan;
    this.bootstrap = runtime.nodes.map(({ clientPort }) => `127.0.0.1:${clientPort}`);
    this.secured = plan.secured === undefined ? [] : runtime.nodes.map(({ securedPort }) => `127.0.0.1:${securedPort}`);
  }

  async start(): Promise<void> {
    const { brokers, onProgress } = this.#plan;
    const what = brokers === 1 ? "Kafka" : `${brokers} Kafka brokers`;
    const timer = setInterval(() => onProgress(`Waiting for ${what} …`), PROGRESS_MILLISECONDS);
    try {
      const commands = await Promise.all(this.#runtime.nodes.map((_, index) => this.#runtime.prepare(index)));
      await Promise.all(commands.map((command, index) => this.#begin(index, command)));
    } catch (error) {
      await this.stop();
      throw error;
    } finally {
      clearInterval(timer);
    }
  }

  async #begin(index: number, command: readonly string[]): Promise<void> {
    const { folder, onProgress } = this.#plan;
    const name = `broker-${nodeId(index)}`;
    const logFile = join(folder, `${name}.log`);
    let serves = false;
    const begun = new BrokerProcess(command, logFile, join(folder, `${name}.pid`), (lastLine) => {
      if (serves) onProgress(`Kafka's ${name} has ended by itself. Its last line: ${lastLine} (${logFile})`);
    });
    this.#processes[index] = begun;
    await begun.ready().catch((error: unknown) => {
      throw new Error(`Kafka's ${name} did not start: ${(error as Error).message} (${logFile})`);
    });
    serves = true;
  }

  kill(index: number): void {
    this.#processes[index]?.kill();
    this.#killing[index] ??= this.#runtime.signal?.(index, "SIGKILL") ?? Promise.resolve();
  }

  async #killed(index: number): Promise<void> {
    this.kill(index);
    await this.#killing[index];
    await this.#processes[index]?.gone();
    this.#killing[index] = undefined;
  }

  async restart(index: number): Promise<void> {
    await this.#killed(index);
    await this.#begin(index, await this.#runtime.prepare(index));
  }

  async erase(): Promise<void> {
    await Promise.all(this.#runtime.nodes.map((_, index) => this.#killed(index)));
    await Promise.all(this.#runtime.nodes.map((_, index) => this.#runtime.erase(index)));
    await this.start();
  }

  async stop(): Promise<void> {
    const timer = setTimeout(() => this.#plan.onProgress("Waiting for Kafka to stop …"), PROGRESS_MILLISECONDS);
    await Promise.all(
      this.#processes.map(async (process, index) => {
        if (process?.running) await this.#runtime.signal?.(index, "SIGTERM");
        await process?.stop();
      }),
    );
    await this.#runtime.stopped();
    clearTimeout(timer);
  }
}

/**
 * Starts Kafka: uses KAFKA_BROKERS, else docker, else Java and Maven. Started brokers listen on 127.0.0.1 only and end with
 * this process.
 * @throws {Error} with a sentence that says what to do
 */
export async function startKafka(options: KafkaOptions): Promise<Kafka> {
  const source = await findKafka();
  if (source === "given") return givenKafka(process.env.KAFKA_BROKERS ?? "");
  if (source === undefined) throw new Error(NO_KAFKA);
  const plan: KafkaPlan = {
    brokers: options.brokers,
    folder: resolve(options.folder),
    secured: options.secured,
    onProgress: options.onProgress ?? (() => undefined),
  };
  await mkdir(plan.folder, { recursive: true });
  const ports = await clientPorts(plan.brokers, options.port);
  const runtime =
    source === "docker"
      ? await DockerRuntime.of(plan, ports, await freePorts(plan.brokers, ports))
      : await JavaRuntime.of(plan, ports);
  const cluster = new Cluster(runtime, plan);
  if (options.fresh) await Promise.all(runtime.nodes.map((_, index) => runtime.erase(index)));
  await cluster.start();
  return cluster;
}
