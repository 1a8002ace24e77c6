/** Runs Apache Kafka: uses existing brokers, else starts docker, else Java with jars of Maven. */
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
  /** The folder of the brokers' logs and process numbers and, in Java, their data. In docker they begin empty. */
  readonly folder: string;
  /** Erase the data of earlier runs first. */
  readonly fresh?: boolean;
  /** The port of the first broker; the others use the next ports. The default is free ports. */
  readonly port?: number;
  /** A second listener, for clients that authenticate. */
  readonly secured?: SecuredListener;
  /** Is called for every step that takes more than two seconds, and for a broker that ends by itself. */
  readonly onProgress?: (line: string) => void;
}

/** Running brokers. On brokers that KAFKA_BROKERS names, only `stop` works, and has no effect. */
export interface Kafka {
  /** Whether Lotus started the brokers. It kills, restarts and erases no others. */
  readonly owned: boolean;
  /** Whether every broker has a process. Lotus does not watch brokers that it did not start. */
  readonly running: boolean;
  /** host:port of each broker. */
  readonly bootstrap: readonly string[];
  /** host:port of each broker's secured listener; empty without one. */
  readonly secured: readonly string[];
  /** Stops all brokers cleanly. */
  stop(): Promise<void>;
  /** SIGKILL for one broker, counted from 0. */
  kill(index: number): void;
  /** Starts a killed broker again. Resolves when it serves. */
  restart(index: number): Promise<void>;
  /** Kills all brokers, removes their data, and starts them on the same ports. */
  erase(): Promise<void>;
}

/** The ways to run Kafka on this machine. */
export type Source = "given" | "docker" | "java";

/** The message for a machine without Kafka. */
export const NO_KAFKA =
  "Kafka needs one of three things: KAFKA_BROKERS with running brokers (host:port), a running docker, or Java 17 (or newer) with Maven.";

/** Returns the way to run Kafka on this machine; undefined without one. */
export async function findKafka(given: string | undefined = process.env.KAFKA_BROKERS): Promise<Source | undefined> {
  if (given !== undefined && given !== "") return "given";
  if (await dockerAnswers()) return "docker";
  if (await javaAnswers()) return "java";
  return undefined;
}

function givenKafka(brokers: string): Kafka {
  const refuse = () => {
    throw new Error("Lotus did not start the brokers of KAFKA_BROKERS, so it does not kill or erase them.");
  };
  return {
    owned: false,
    running: true,
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
      throw new Error(`Port ${port} is taken. Stop the program that uses it, or choose another port.`);
  }
  return ports;
}

class Cluster implements Kafka {
  readonly owned = true;
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

  get running(): boolean {
    return this.#processes.every((process) => process?.running);
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
 * @throws {Error} with the cause and the remedy
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
