/** The database and the Kafka of a deployment: from the command line, the previous deployment, or the environment's file. */
import { POOL_CONNECTIONS_MAX } from "#kernel/limits";
import { Refusal } from "../cli/errors.ts";
import { PODS_MAX_DEFAULT } from "../database/connections.ts";
import { type Environment, LAPTOP, withAuthority } from "./environment.ts";
import { type KafkaSecurity, readSecurity, securityOf, writeSecurity } from "./kafka-security.ts";
import type { KubernetesObject } from "./kubectl.ts";
import type { DeployOptions } from "./options.ts";

export type Database =
  | { readonly kind: "cluster" }
  | {
      /** Neon accepts WebSockets. */
      readonly kind: "neon" | "outside";
      /** The owner's URL without the password. */
      readonly url: string;
      /** False: a transaction pooler that does not keep prepared statements. */
      readonly prepare?: false;
    };

export type Kafka =
  | { readonly kind: "cluster"; readonly brokers: 1 | 3 }
  | { readonly kind: "outside"; readonly hosts: readonly string[]; readonly security: KafkaSecurity | undefined };

/** Upper limits of every function, because all functions share the connections of one Postgres. */
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
  /** Limits that differ from the defaults. */
  readonly limits?: Partial<Limits>;
  /** The URL of the pooler that functions use, as roleUrl reads it. */
  readonly pooler?: string;
  /** The origins whose pages may call the endpoints, separated by commas. */
  readonly cors?: string;
}

/** Returns the limits of a deployment. */
export function limitsOf({ limits }: Pick<Backends, "limits">): Limits {
  return { pods: limits?.pods ?? PODS_MAX_DEFAULT, pool: limits?.pool ?? POOL_CONNECTIONS_MAX };
}

/** The ConfigMap `lotus` and the Secret `database-admin` of an earlier deployment. */
export interface Previous {
  readonly configuration: Readonly<Record<string, string>> | undefined;
  readonly adminUrl: string | undefined;
}

/** The place of an environment's own Postgres and Kafka. */
type Place = Pick<Environment, "namespace" | "clusterDomain">;

/** Returns host and port of the Postgres in the cluster. */
export function clusterPostgres({ namespace: within, clusterDomain }: Place): string {
  return `postgres.${within}.svc.${clusterDomain}:5432`;
}

/** Returns a database URL without its password. */
export function withoutPassword(url: string): string {
  const shown = new URL(url);
  shown.password = "";
  return shown.href;
}

function databaseAt(url: string, environment: Place): Database {
  const { host, hostname } = new URL(url);
  if (host === clusterPostgres(environment)) return { kind: "cluster" };
  if (hostname.endsWith(".neon.tech")) return { kind: "neon", url: withoutPassword(url) };
  if (hostname === "localhost" || hostname.startsWith("127.")) {
    throw new Refusal(`Pods cannot reach the database at ${host}. Give the address that pods use.`);
  }
  return { kind: "outside", url: withoutPassword(url) };
}

function kafkaOf(
  options: DeployOptions,
  previous: Readonly<Record<string, string>> | undefined,
  environment: Environment,
): Kafka {
  if (options.kafka !== undefined) {
    return { kind: "outside", hosts: options.kafka, security: securityOf(options.kafkaCredentials) };
  }
  const before = previous?.kafka;
  const remembers = environment.name === LAPTOP && previous !== undefined;
  if (options.brokers === undefined && remembers && before === "outside") {
    return {
      kind: "outside",
      hosts: (previous?.["kafka-brokers"] ?? "").split(","),
      security: readSecurity(previous?.["kafka-security"]),
    };
  }
  const { kafka } = environment;
  if (options.brokers === undefined && !remembers && kafka.mode === "outside") return kafkaInFile(environment);
  const brokersBefore = before === "cluster-3" ? 3 : before === "cluster-1" ? 1 : undefined;
  const inFile = kafka.mode === "cluster" ? kafka.brokers : undefined;
  const brokers = options.brokers ?? (remembers ? brokersBefore : inFile) ?? inFile ?? 1;
  if (brokersBefore !== undefined && brokers !== brokersBefore) {
    const where = `kubectl -n ${environment.namespace} delete`;
    throw new Refusal(
      `The Kafka of this namespace has ${brokersBefore} ${brokersBefore === 1 ? "broker" : "brokers"}, and its voters cannot change while it runs. Start with an empty Kafka:\n` +
        `  ${where} kafkasource --all && ${where} statefulset kafka\n` +
        `  ${where} pvc -l app.kubernetes.io/name=kafka && ${where} configmap lotus\n` +
        "Then deploy again. The outbox contains the events that are not settled, and the relay publishes them again.",
    );
  }
  return { kind: "cluster", brokers };
}

function kafkaInFile({ kafka }: Environment): Kafka {
  if (kafka.mode === "cluster") return { kind: "cluster", brokers: kafka.brokers };
  const { hosts, tls, authority, clientCertificate, mechanism } = kafka;
  const secured = tls || mechanism !== undefined;
  return { kind: "outside", hosts, security: secured ? { tls, authority, clientCertificate, mechanism } : undefined };
}

/** A number of an earlier deployment, unless it was the default: the default may change. */
const numberIn = (text: string | undefined, otherwise: number) =>
  text === undefined || Number(text) === otherwise ? undefined : Number(text);

/** @throws {Refusal} for the prefix differs from the former one: a KafkaSource cannot change its consumer group */
function prefixOf(
  options: DeployOptions,
  previous: Readonly<Record<string, string>> | undefined,
  environment: Environment,
): string {
  const before = previous?.["kafka-prefix"] ?? "";
  const wanted = options.kafkaPrefix ?? (environment.name === LAPTOP && previous ? before : environment.kafka.prefix);
  if (previous !== undefined && wanted !== before) {
    const where = `kubectl -n ${environment.namespace} delete`;
    throw new Refusal(
      `The topics here begin with "${before}", and a KafkaSource cannot change its consumer group. Delete the sources:\n` +
        `  ${where} kafkasource --all && ${where} configmap lotus\n` +
        "Then deploy again. The outbox contains the events that are not settled, and the relay publishes them again.",
    );
  }
  return wanted;
}

/** Returns the backends that an environment's file names. */
export function backendsOf(environment: Environment): Backends {
  const { database, kafka, cors } = environment;
  const urlOf = (url: string) => (database.mode !== "cluster" && database.authority ? withAuthority(url) : url);
  const pooler = database.mode === "cluster" || database.pooler === undefined ? undefined : urlOf(database.pooler);
  return {
    database:
      database.mode === "cluster"
        ? { kind: "cluster" }
        : { kind: database.mode, url: urlOf(database.url), ...(!database.prepare && { prepare: false }) },
    kafka: kafkaInFile(environment),
    ...(kafka.prefix !== "" && { kafkaPrefix: kafka.prefix }),
    ...(pooler !== undefined && { pooler }),
    ...(cors.length > 0 && { cors: cors.join(",") }),
  };
}

/** Returns the server and the name of a database. Two URLs with the same address lead to the same data. */
function addressOf(url: string): string {
  const { hostname, port, pathname, username } = new URL(url);
  return `${hostname}:${port || 5432}${pathname === "" || pathname === "/" ? `/${username}` : pathname}`;
}

/**
 * Refuses another database or another Kafka than the installation has.
 * @throws {Refusal} with both addresses
 */
function refuseMove({ database, kafka }: Backends, previous: Previous, environment: Environment): void {
  const { adminUrl, configuration: former } = previous;
  if (former === undefined) return;
  const own = clusterPostgres(environment);
  const here = database.kind === "cluster" ? `${own}/lotus` : addressOf(database.url);
  const before = adminUrl === undefined ? undefined : addressOf(adminUrl);
  if (before !== undefined && before !== here)
    throw new Refusal(
      `This installation keeps its ledger in ${before}. The deployment names ${here}, which does not contain it. ` +
        "docs/operations.md describes the move. After the data is copied, add --move.",
    );
  const hostsBefore = former.kafka === "outside" ? (former["kafka-brokers"] ?? "").split(",") : [];
  const hosts = kafka.kind === "outside" ? kafka.hosts : [];
  const isSame = hosts.length === 0 ? hostsBefore.length === 0 : hosts.some((host) => hostsBefore.includes(host));
  if (former.kafka !== undefined && !isSame)
    throw new Refusal(
      `This installation uses the Kafka ${hostsBefore.join(",") || "in its namespace"}. The deployment names ${hosts.join(",") || "one in the namespace"}. ` +
        "docs/operations.md describes the move. When the sources are stopped: --move.",
    );
}

/**
 * Decides. The command line comes first. On the laptop the previous deployment comes next, and elsewhere the environment's file.
 * @throws {Refusal} when the decision contradicts the installation that exists
 */
export function choose(options: DeployOptions, previous: Previous, environment: Environment): Backends {
  const file = backendsOf(environment);
  const remembers = environment.name === LAPTOP && previous.configuration !== undefined;
  const former = remembers ? (previous.configuration ?? {}) : {};
  const url = options.database ?? (remembers || environment.name === LAPTOP ? previous.adminUrl : undefined);
  const chosen: Database = url === undefined ? file.database : databaseAt(url, environment);
  const prepared = options.database === undefined && former["database-prepare"] === "false";
  const unprepared = options.noPrepare || prepared;
  const cors = options.cors ?? former["cors-origins"] ?? file.cors;
  const pods = options.pods ?? numberIn(former["max-pods"], PODS_MAX_DEFAULT);
  const pool = options.pool ?? numberIn(former["database-pool"], POOL_CONNECTIONS_MAX);
  const pooler =
    options.pooler ?? (options.database === undefined ? (former["database-pooler"] ?? file.pooler) : undefined);
  const prefix = prefixOf(options, previous.configuration, environment);
  const backends: Backends = {
    ...((pods ?? pool) !== undefined && {
      limits: { ...(pods !== undefined && { pods }), ...(pool !== undefined && { pool }) },
    }),
    ...(pooler !== undefined && { pooler }),
    database: chosen.kind === "outside" && unprepared ? { ...chosen, prepare: false } : chosen,
    kafka: kafkaOf(options, previous.configuration, environment),
    ...(cors && { cors }),
    ...(prefix !== "" && { kafkaPrefix: prefix }),
  };
  if (!options.move) refuseMove(backends, previous, environment);
  return backends;
}

/** Returns the bootstrap addresses of Kafka. */
export function brokersOf({ kafka }: Backends, { namespace: within, clusterDomain }: Place): readonly string[] {
  return kafka.kind === "cluster" ? [`kafka.${within}.svc.${clusterDomain}:9092`] : kafka.hosts;
}

/** Returns the ConfigMap that the functions and the next deployment read. */
export function configuration(backends: Backends, environment: Pick<Environment, "host"> & Place): KubernetesObject {
  const { database, kafka, pooler } = backends;
  const { pods, pool } = limitsOf(backends);
  return {
    apiVersion: "v1",
    kind: "ConfigMap",
    metadata: { name: "lotus", namespace: environment.namespace },
    data: {
      host: environment.host,
      database: database.kind,
      kafka: kafka.kind === "cluster" ? `cluster-${kafka.brokers}` : "outside",
      "kafka-brokers": brokersOf(backends, environment).join(","),
      "max-pods": String(pods),
      "database-pool": String(pool),
      ...(pooler !== undefined && { "database-pooler": pooler }),
      "kafka-prefix": backends.kafkaPrefix ?? "",
      "database-prepare": String(database.kind !== "outside" || database.prepare !== false),
      ...(backends.cors && { "cors-origins": backends.cors }),
      ...(kafka.kind === "outside" && kafka.security && { "kafka-security": writeSecurity(kafka.security) }),
    },
  };
}
