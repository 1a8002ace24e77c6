/** Apache Kafka as a Java process, from Maven Central's jars: for machines without docker. */
import { randomUUID } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, rename, rm, writeFile } from "node:fs/promises";
import { delimiter, join } from "node:path";
import { pathToFileURL } from "node:url";
import { freePorts } from "../process/ports.ts";
import { ask } from "../process/run.ts";
import { ROOT } from "../project/paths.ts";
import { endLeftover } from "./broker-process.ts";
import {
  clusterIdOf,
  type Node,
  nodeId,
  type SecuredListener,
  serverProperties,
  toPropertiesFile,
} from "./properties.ts";
import type { KafkaPlan, Runtime } from "./runtime.ts";

export const KAFKA_VERSION = "4.4.0";
const SCALA_VERSION = "2.13";
const LOG4J_VERSION = "2.25.2";
const JAVA_VERSION_MIN = 17;
const RESOLVE_MILLISECONDS_MAX = 300_000;
const FORMAT_MILLISECONDS_MAX = 60_000;

/** Shared by all clusters of this checkout; their data is elsewhere. */
const SOFTWARE = join(ROOT, ".lotus", "kafka", "software");
const JARS = join(SOFTWARE, `kafka-${KAFKA_VERSION}`);

const POM = `<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>lotus</groupId>
  <artifactId>kafka</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_${SCALA_VERSION}</artifactId>
      <version>${KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId>
      <artifactId>log4j-slf4j-impl</artifactId>
      <version>${LOG4J_VERSION}</version>
    </dependency>
  </dependencies>
</project>
`;

/** Warnings, and the line that reports that the broker serves. */
const LOGGING = `appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %p %c{1}: %m%n
rootLogger.level = WARN
rootLogger.appenderRef.out.ref = out
logger.server.name = kafka.server.KafkaRaftServer
logger.server.level = INFO
`;

const java = process.env.JAVA_HOME === undefined ? "java" : join(process.env.JAVA_HOME, "bin", "java");

/** Returns the version of Java, such as "17.0.15". Undefined: Java is missing or too old. */
async function javaVersion(): Promise<string | undefined> {
  const { ok, text } = await ask([java, "-version"]);
  const version = /version "([^"]+)"/.exec(text)?.[1];
  return ok && version !== undefined && Number.parseInt(version, 10) >= JAVA_VERSION_MIN ? version : undefined;
}

/** Whether Java can run Kafka here. Maven is needed only to download the jars. */
export async function javaAnswers(): Promise<boolean> {
  if ((await javaVersion()) === undefined) return false;
  return existsSync(JARS) || (await ask(["mvn", "--version"])).ok;
}

/** Downloads the jars once. Two runs may do it at the same time, because the folder is renamed when it is complete. */
async function install(onProgress: (line: string) => void): Promise<void> {
  if (existsSync(JARS)) return;
  onProgress(`Fetching Apache Kafka ${KAFKA_VERSION} with Maven (once, 43 MB) …`);
  await mkdir(SOFTWARE, { recursive: true });
  const folder = await mkdtemp(join(SOFTWARE, "fetching-"));
  await writeFile(join(folder, "pom.xml"), POM);
  await writeFile(join(folder, "log4j2.properties"), LOGGING);
  const command = ["mvn", "-q", "-B", "-f", join(folder, "pom.xml"), "dependency:copy-dependencies"];
  const options = ["-DincludeScope=runtime", `-DoutputDirectory=${join(folder, "jars")}`];
  const { ok, text } = await ask([...command, ...options], RESOLVE_MILLISECONDS_MAX);
  if (!ok) {
    await rm(folder, { recursive: true });
    const reason = text.split("\n").find((line) => line.includes("[ERROR]")) ?? text.trim();
    throw new Error(`Maven could not fetch Apache Kafka ${KAFKA_VERSION}: ${reason}`);
  }
  await rename(folder, JARS).catch(async (error: unknown) => {
    await rm(folder, { recursive: true });
    if (!existsSync(JARS)) throw error;
  });
}

/** One cluster of Java processes on this machine. */
export class JavaRuntime implements Runtime {
  readonly nodes: readonly Node[];
  readonly #folder: string;
  readonly #secured: SecuredListener | undefined;
  readonly #archive: string;
  readonly #newArchive: string;

  private constructor({ folder, secured }: KafkaPlan, nodes: readonly Node[], version: string) {
    this.nodes = nodes;
    this.#folder = folder;
    this.#secured = secured;
    this.#archive = join(SOFTWARE, `classes-${KAFKA_VERSION}-${version}.jsa`);
    this.#newArchive = join(SOFTWARE, `${randomUUID()}.jsa`);
  }

  static async of(plan: KafkaPlan, clientPorts: readonly number[]): Promise<JavaRuntime> {
    const version = await javaVersion();
    if (version === undefined) throw new Error(`Apache Kafka 4 needs Java ${JAVA_VERSION_MIN} or newer.`);
    await install(plan.onProgress);
    const ports = await freePorts(3 * plan.brokers, clientPorts);
    const nodes = clientPorts.map((clientPort, index) => {
      const [internalPort = 0, controllerPort = 0, securedPort = 0] = ports.slice(3 * index);
      return { host: "127.0.0.1", bind: "127.0.0.1", clientPort, internalPort, controllerPort, securedPort };
    });
    return new JavaRuntime(plan, nodes, version);
  }

  #dataFolder = (index: number) => join(this.#folder, `data-${nodeId(index)}`);
  #propertiesFile = (index: number) => join(this.#folder, `broker-${nodeId(index)}.properties`);

  #command(...last: readonly string[]): string[] {
    return [
      java,
      // The broker runs for minutes, so a fast start matters more than peak speed.
      "-XX:TieredStopAtLevel=1",
      "-XX:+UseSerialGC",
      "-Xms64m",
      "-Xmx256m",
      "-Xlog:disable",
      `-Dlog4j2.configurationFile=${pathToFileURL(join(JARS, "log4j2.properties")).href}`,
      ...(existsSync(this.#archive) ? [`-XX:SharedArchiveFile=${this.#archive}`] : []),
      "-cp",
      [join(JARS, "jars", "*")].join(delimiter),
      ...last,
    ];
  }

  async prepare(index: number): Promise<string[]> {
    await endLeftover(join(this.#folder, `broker-${nodeId(index)}.pid`), this.#propertiesFile(index));
    const properties = serverProperties(this.nodes, index, this.#dataFolder(index), this.#secured);
    const file = this.#propertiesFile(index);
    await writeFile(file, toPropertiesFile(properties));
    if (!existsSync(join(this.#dataFolder(index), "meta.properties"))) {
      const format = ["kafka.tools.StorageTool", "format", "-t", clusterIdOf(this.#folder), "-c", file];
      const command = this.#command(...format, ...(this.#secured?.formatArguments ?? []));
      const { ok, text } = await ask(command, FORMAT_MILLISECONDS_MAX);
      if (!ok) throw new Error(`Kafka's storage could not be made in ${this.#dataFolder(index)}: ${text.trim()}`);
    }
    const command = this.#command("kafka.Kafka", file);
    // One broker of the first run records the classes that it loads; later starts take half the time.
    if (index === 0 && !existsSync(this.#archive)) command.splice(1, 0, `-XX:ArchiveClassesAtExit=${this.#newArchive}`);
    return command;
  }

  async erase(index: number): Promise<void> {
    await rm(this.#dataFolder(index), { recursive: true, force: true });
  }

  /** Renames the class archive when it is complete. */
  async stopped(): Promise<void> {
    if (existsSync(this.#newArchive)) await rename(this.#newArchive, this.#archive);
  }
}
