/** Where this deployment's database and Kafka are: as the command line says, else as it was, else in the cluster. */

import { POOL_CONNECTIONS_MAX } from "#kernel/settings";
import { Refusal } from "../cli/errors.ts";
import { PODS_MAX_DEFAULT } from "../database/connections.ts";
import { type KafkaSecurity, MECHANISMS, securityOf } from "./kafka-security.ts";
import { HOST, type KubernetesObject, NAMESPACE } from "./kubectl.ts";
import type { DeployOptions } from "./options.ts";

export type Database =
  | { readonly kind: "cluster" }
  /** Speaks WebSocket itself. */
  | { readonly kind: "neon"; readonly adminUrl: string }
  /** Any other Postgres. */
  | {
      readonly kind: "outside";
      readonly adminUrl: string;
      /** False: a transaction pooler that does not keep prepared statements. */
      readonly prepare?: false;
    };

export type Kafka =
  | { readonly kind: "cluster"; readonly brokers: 1 | 3 }
  | { readonly kind: "outside"; readonly hosts: readonly string[]; readonly security: KafkaSecurity | undefined };

/** How far functions scale, because they share the connections of one Postgres. */
export interface Limits {
  /** Pods of one function. */
  readonly pods: number;
  /** Connections of one pod. */
  readonly pool: number;
}

export interface Backends {
  readonly database: Database;
  readonly kafka: Kafka;
  /** The beginning of every topic and consumer group. */
  readonly kafkaPrefix?: string;
  /** Where an environment differs from the defaults. */
  readonly limits?: Partial<Limits>;
  /** The URL of the pooler that functions use, as roleUrl reads it. */
  readonly pooler?: string;
  /** The origins whose pages may call the endpoints, separated by commas. */
  readonly cors?: string;
}

/** The limits of an environment. */
export function limitsOf({ limits }: Pick<Backends, "limits">): Limits {
  return { pods: limits?.pods ?? PODS_MAX_DEFAULT, pool: limits?.pool ?? POOL_CONNECTIONS_MAX };
}

/** What the ConfigMap `lotus` and the Secret `database-admin` of an earlier deployment hold. */
export interface Previous {
  readonly configuration: Readonly<Record<string, string>> | undefined;
  readonly adminUrl: string | undefined;
}

export const POSTGRES = `postgres.${NAMESPACE}.svc.cluster.local:5432`;
const KAFKA = `kafka.${NAMESPACE}.svc.cluster.local:9092`;

function databaseAt(adminUrl: string): Database {
  const { host, hostname } = new URL(adminUrl);
  if (host === POSTGRES) return { kind: "cluster" };
  if (hostname.endsWith(".neon.tech")) return { kind: "neon", adminUrl };
  if (hostname === "localhost" || hostname.startsWith("127.")) {
    throw new Refusal(
      `The database at ${host} cannot be reached from the cluster: give the address that pods know it by.`,
    );
  }
  return { kind: "outside", adminUrl };
}

/** "tls authority scram-sha-512", in any part, as an earlier deployment wrote it. */
function formerSecurity(written: string | undefined): KafkaSecurity | undefined {
  if (written === undefined) return undefined;
  const words = written.split(" ");
  const mechanism = MECHANISMS.find((name) => words.includes(name));
  return { tls: words.includes("tls"), authority: words.includes("authority"), mechanism };
}

function writtenSecurity({ tls, authority, mechanism }: KafkaSecurity): string {
  return [...(tls ? ["tls"] : []), ...(authority ? ["authority"] : []), ...(mechanism ? [mechanism] : [])].join(" ");
}

function kafkaOf(options: DeployOptions, previous: Readonly<Record<string, string>> | undefined): Kafka {
  if (options.kafka !== undefined) {
    return { kind: "outside", hosts: options.kafka, security: securityOf(options.kafkaCredentials) };
  }
  const before = previous?.kafka;
  if (options.brokers === undefined && before === "outside") {
    return {
      kind: "outside",
      hosts: (previous?.["kafka-brokers"] ?? "").split(","),
      security: formerSecurity(previous?.["kafka-security"]),
    };
  }
  const brokersBefore = before === "cluster-3" ? 3 : before === "cluster-1" ? 1 : undefined;
  const brokers = options.brokers ?? brokersBefore ?? 1;
  if (brokersBefore !== undefined && brokers !== brokersBefore) {
    throw new Refusal(
      `Kafka runs with ${brokersBefore} brokers here, and its voters cannot be changed while it runs. Begin with an empty one:\n` +
        `  kubectl -n ${NAMESPACE} delete kafkasource --all && kubectl -n ${NAMESPACE} delete statefulset kafka\n` +
        `  kubectl -n ${NAMESPACE} delete pvc -l app.kubernetes.io/name=kafka && kubectl -n ${NAMESPACE} delete configmap lotus\n` +
        "and deploy again. Events that are not settled are in the outbox, and will be published again.",
    );
  }
  return { kind: "cluster", brokers };
}

/** A number of an earlier deployment, unless it was the default: the default may change. */
const numberIn = (text: string | undefined, otherwise: number) =>
  text === undefined || Number(text) === otherwise ? undefined : Number(text);

/** @throws {Refusal} for another prefix than before: a KafkaSource cannot change its consumer group */
function prefixOf(options: DeployOptions, previous: Readonly<Record<string, string>> | undefined): string {
  const before = previous?.["kafka-prefix"] ?? "";
  if (previous === undefined) return options.kafkaPrefix ?? "";
  if (options.kafkaPrefix !== undefined && options.kafkaPrefix !== before) {
    throw new Refusal(
      `The topics here begin with "${before}", and a KafkaSource cannot change its consumer group. Delete the sources:\n` +
        `  kubectl -n ${NAMESPACE} delete kafkasource --all && kubectl -n ${NAMESPACE} delete configmap lotus\n` +
        "and deploy again. Events that are not settled are in the outbox, and the relay publishes them again.",
    );
  }
  return before;
}

/**
 * Decides.
 * @throws {Refusal} when what is asked for cannot follow what is there
 */
export function choose(options: DeployOptions, previous: Previous): Backends {
  const adminUrl = options.database ?? previous.adminUrl;
  const prefix = prefixOf(options, previous.configuration);
  const database: Database = adminUrl === undefined ? { kind: "cluster" } : databaseAt(adminUrl);
  const remembered = options.database === undefined && previous.configuration?.["database-prepare"] === "false";
  const cors = options.cors ?? previous.configuration?.["cors-origins"];
  const unprepared = options.noPrepare || remembered;
  const former = previous.configuration ?? {};
  const pods = options.pods ?? numberIn(former["max-pods"], PODS_MAX_DEFAULT);
  const pool = options.pool ?? numberIn(former["database-pool"], POOL_CONNECTIONS_MAX);
  const pooler = options.pooler ?? (options.database === undefined ? former["database-pooler"] : undefined);
  return {
    ...((pods ?? pool) !== undefined && {
      limits: { ...(pods !== undefined && { pods }), ...(pool !== undefined && { pool }) },
    }),
    ...(pooler !== undefined && { pooler }),
    database: database.kind === "outside" && unprepared ? { ...database, prepare: false } : database,
    kafka: kafkaOf(options, previous.configuration),
    ...(cors && { cors }),
    ...(prefix !== "" && { kafkaPrefix: prefix }),
  };
}

/** Kafka's addresses, as a client is told them. */
export function brokersOf({ kafka }: Backends): readonly string[] {
  return kafka.kind === "cluster" ? [KAFKA] : kafka.hosts;
}

/** The ConfigMap that the functions read, and the next deployment. */
export function configuration(backends: Backends): KubernetesObject {
  const { database, kafka, pooler } = backends;
  const { pods, pool } = limitsOf(backends);
  return {
    apiVersion: "v1",
    kind: "ConfigMap",
    metadata: { name: "lotus", namespace: NAMESPACE, labels: { "app.kubernetes.io/part-of": "lotus" } },
    data: {
      host: HOST,
      database: database.kind,
      kafka: kafka.kind === "cluster" ? `cluster-${kafka.brokers}` : "outside",
      "kafka-brokers": brokersOf(backends).join(","),
      "max-pods": String(pods),
      "database-pool": String(pool),
      ...(pooler !== undefined && { "database-pooler": pooler }),
      "kafka-prefix": backends.kafkaPrefix ?? "",
      "database-prepare": String(database.kind !== "outside" || database.prepare !== false),
      ...(backends.cors && { "cors-origins": backends.cors }),
      ...(kafka.kind === "outside" && kafka.security && { "kafka-security": writtenSecurity(kafka.security) }),
    },
  };
}
