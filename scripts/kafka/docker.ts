/** Apache Kafka in containers of the official image. */
import { createHash } from "node:crypto";
import { ask } from "../process/run.ts";
import { KAFKA_VERSION } from "./java.ts";
import { clusterIdOf, type Node, nodeId, type SecuredListener, serverProperties, toEnvironment } from "./properties.ts";
import type { KafkaPlan, Runtime } from "./runtime.ts";

const IMAGE = `apache/kafka:${KAFKA_VERSION}`;
const DATA = "/var/lib/kafka/data";
const DOCKER_ANSWERS_MILLISECONDS_MAX = 3_000;
const PULL_MILLISECONDS_MAX = 600_000;
const STOP_SECONDS_MAX = 10;
/** Ports in the cluster's network, which no other program uses. */
const INTERNAL_PORT = 19092;
const CONTROLLER_PORT = 19093;

/** Whether docker's engine answers: a machine may have only the client. */
export async function dockerAnswers(): Promise<boolean> {
  return (await ask(["docker", "info"], DOCKER_ANSWERS_MILLISECONDS_MAX)).ok;
}

async function docker(...command: readonly string[]): Promise<void> {
  const { ok, text } = await ask(["docker", ...command], PULL_MILLISECONDS_MAX);
  if (!ok) throw new Error(`docker ${command[0]} failed: ${text.trim()}`);
}

/** One cluster of containers. They keep their data while they are restarted, and lose it when the cluster is stopped. */
export class DockerRuntime implements Runtime {
  readonly nodes: readonly Node[];
  readonly #name: string;
  readonly #clusterId: string;
  readonly #secured: SecuredListener | undefined;

  private constructor({ folder, secured }: KafkaPlan, clientPorts: readonly number[], securedPorts: readonly number[]) {
    this.#name = `lotus-kafka-${createHash("sha256").update(folder).digest("hex").slice(0, 8)}`;
    this.#clusterId = clusterIdOf(folder);
    this.#secured = secured;
    this.nodes = clientPorts.map((clientPort, index) => ({
      host: this.#container(index),
      bind: "0.0.0.0",
      clientPort,
      internalPort: INTERNAL_PORT,
      controllerPort: CONTROLLER_PORT,
      securedPort: securedPorts[index] ?? 0,
    }));
  }

  static async of(
    plan: KafkaPlan,
    clientPorts: readonly number[],
    securedPorts: readonly number[],
  ): Promise<DockerRuntime> {
    if (plan.secured?.formatArguments !== undefined) {
      throw new Error("The image formats its storage itself: a listener with formatArguments needs Java and Maven.");
    }
    const runtime = new DockerRuntime(plan, clientPorts, securedPorts);
    if (!(await ask(["docker", "image", "inspect", IMAGE])).ok) {
      plan.onProgress(`Fetching the image ${IMAGE} (once) …`);
      await docker("pull", "--quiet", IMAGE);
    }
    if (!(await ask(["docker", "network", "inspect", runtime.#name])).ok)
      await docker("network", "create", runtime.#name);
    // Containers of an earlier run have other ports.
    await Promise.all(runtime.nodes.map((_, index) => runtime.erase(index)));
    return runtime;
  }

  #container = (index: number) => `${this.#name}-${nodeId(index)}`;

  async prepare(index: number): Promise<string[]> {
    const name = this.#container(index);
    if (!(await ask(["docker", "container", "inspect", name])).ok) {
      const { clientPort, securedPort } = this.nodes[index] as Node;
      const properties = serverProperties(this.nodes, index, DATA, this.#secured);
      const environment = { CLUSTER_ID: this.#clusterId, ...toEnvironment(properties) };
      const published = this.#secured === undefined ? [clientPort] : [clientPort, securedPort];
      await docker(
        "create",
        ...["--name", name, "--network", this.#name],
        ...published.flatMap((port) => ["--publish", `127.0.0.1:${port}:${port}`]),
        ...Object.entries(environment).flatMap(([key, value]) => ["--env", `${key}=${value}`]),
        IMAGE,
      );
    }
    return ["docker", "start", "--attach", name];
  }

  async signal(index: number, signal: "SIGTERM" | "SIGKILL"): Promise<void> {
    const name = this.#container(index);
    // The container has ended meanwhile, as requested.
    await ask(
      signal === "SIGKILL" ? ["docker", "kill", name] : ["docker", "stop", "--time", String(STOP_SECONDS_MAX), name],
      (STOP_SECONDS_MAX + 5) * 1000,
    );
  }

  async erase(index: number): Promise<void> {
    await ask(["docker", "rm", "--force", "--volumes", this.#container(index)], (STOP_SECONDS_MAX + 5) * 1000);
  }

  async stopped(): Promise<void> {
    await Promise.all(this.nodes.map((_, index) => this.erase(index)));
    await ask(["docker", "network", "rm", this.#name]);
  }
}
