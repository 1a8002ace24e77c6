/** The configuration of a started broker: server.properties, the same for a Java process and for a container. */
import { createHash } from "node:crypto";

/** The addresses of one broker. Clients do not use the ports for other brokers and for controllers. */
export interface Node {
  /** The host that other brokers reach it by. */
  readonly host: string;
  /** The address that it binds: 127.0.0.1, or, inside a container, 0.0.0.0. */
  readonly bind: string;
  readonly clientPort: number;
  readonly internalPort: number;
  readonly controllerPort: number;
  readonly securedPort: number;
}

/** A second listener beside the plain one, for clients that authenticate. */
export interface SecuredListener {
  readonly protocol: "SASL_PLAINTEXT" | "SASL_SSL" | "SSL";
  /** Further properties of the listener, such as `sasl.enabled.mechanisms`. */
  readonly properties: Readonly<Record<string, string>>;
  /** For the storage tool, such as `--add-scram`. */
  readonly formatArguments?: readonly string[];
}

/** Returns the broker's number in its cluster, from 1. */
export const nodeId = (index: number) => index + 1;

/** All brokers of a cluster must be formatted with one id; it is derived from the folder. Kafka's tools read a leading "-" as a flag. */
export function clusterIdOf(folder: string): string {
  return createHash("sha256").update(folder).digest().subarray(0, 16).toString("base64url").replace(/^-/, "A");
}

/**
 * The properties of one broker, which is a controller as well (KRaft, combined mode).
 * @param nodes all brokers of the cluster, this one included
 */
export function serverProperties(
  nodes: readonly Node[],
  index: number,
  dataFolder: string,
  secured: SecuredListener | undefined,
): Map<string, string> {
  const node = nodes[index] as Node;
  const replication = String(Math.min(nodes.length, 3));
  const inSync = String(nodes.length >= 3 ? 2 : 1);
  const listeners = [
    ["CLIENT", node.bind, "127.0.0.1", node.clientPort, "PLAINTEXT"],
    ["INTERNAL", node.bind, node.host, node.internalPort, "PLAINTEXT"],
    ...(secured === undefined ? [] : [["SECURED", node.bind, "127.0.0.1", node.securedPort, secured.protocol]]),
  ];
  return new Map([
    ["node.id", String(nodeId(index))],
    ["process.roles", "broker,controller"],
    [
      "controller.quorum.voters",
      nodes.map(({ host, controllerPort }, other) => `${nodeId(other)}@${host}:${controllerPort}`).join(","),
    ],
    [
      "listeners",
      [
        ...listeners.map(([name, bind, , port]) => `${name}://${bind}:${port}`),
        `CONTROLLER://${node.bind}:${node.controllerPort}`,
      ].join(","),
    ],
    ["advertised.listeners", listeners.map(([name, , host, port]) => `${name}://${host}:${port}`).join(",")],
    [
      "listener.security.protocol.map",
      [...listeners.map(([name, , , , protocol]) => `${name}:${protocol}`), "CONTROLLER:PLAINTEXT"].join(","),
    ],
    ["inter.broker.listener.name", "INTERNAL"],
    ["controller.listener.names", "CONTROLLER"],
    ["log.dirs", dataFolder],
    // A misspelt topic must fail, and topics have settings: `npm run topics` makes them.
    ["auto.create.topics.enable", "false"],
    ["min.insync.replicas", inSync],
    ["default.replication.factor", replication],
    ["offsets.topic.replication.factor", replication],
    ["transaction.state.log.replication.factor", replication],
    ["transaction.state.log.min.isr", inSync],
    // 50 of each by default, which a laptop's first consumer would wait for.
    ["offsets.topic.num.partitions", "3"],
    ["transaction.state.log.num.partitions", "3"],
    ["share.coordinator.state.topic.replication.factor", replication],
    ["share.coordinator.state.topic.min.isr", inSync],
    // By default the cluster notices a killed broker after 9 s, and until then refuses its number.
    ["broker.session.timeout.ms", "3000"],
    ["broker.heartbeat.interval.ms", "500"],
    // The first consumer of a group need not wait 3 s for a second one.
    ["group.initial.rebalance.delay.ms", "0"],
    ...Object.entries(secured?.properties ?? {}),
  ]);
}

/** As the text of a server.properties file. */
export function toPropertiesFile(properties: ReadonlyMap<string, string>): string {
  // A backslash begins an escape in this format.
  return [...properties].map(([name, value]) => `${name}=${value.replaceAll("\\", "\\\\")}\n`).join("");
}

/** As environment variables of the apache/kafka image: `.` becomes `_`, `_` becomes `__`, `-` becomes `___`. */
export function toEnvironment(properties: ReadonlyMap<string, string>): Record<string, string> {
  const written: Record<string, string> = { "-": "___", _: "__", ".": "_" };
  return Object.fromEntries(
    [...properties].map(([name, value]) => [
      `KAFKA_${name.replace(/[-_.]/g, (character) => written[character] ?? character).toUpperCase()}`,
      value,
    ]),
  );
}
