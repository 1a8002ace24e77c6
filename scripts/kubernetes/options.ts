/** The options of `lotus deploy`. */
import { readFileSync } from "node:fs";
import * as v from "valibot";
import { readDatabaseAddress } from "#kernel/database-url";
import { POOL_CONNECTIONS_MAX } from "#kernel/limits";
import { KafkaPrefix } from "#kernel/settings";
import type { Option } from "../cli/command.ts";
import { UsageError } from "../cli/errors.ts";
import { brokers, cors, readOrigins } from "../cli/options.ts";
import { PODS_MAX_DEFAULT } from "../database/connections.ts";
import { LAPTOP, withAuthority } from "./environment.ts";
import { type KafkaCredentials, MECHANISMS } from "./kafka-security.ts";

export const BASE_DEFAULT = "gcr.io/distroless/nodejs24-debian12:nonroot";
export const BUILDERS = ["docker", "minikube", "buildah"] as const;
export type Builder = (typeof BUILDERS)[number];

export interface DeployOptions {
  /** These functions only; empty: everything. */
  readonly functions: readonly string[];
  /** The owner's URL without the password. */
  readonly database: string | undefined;
  readonly databasePassword: string | undefined;
  /** The database is behind a pooler that does not keep prepared statements. */
  readonly noPrepare: boolean;
  /** PEM text of the authority that signed the database's certificate: of --database-authority, or of sslrootcert. */
  readonly databaseAuthority: string | undefined;
  /** The URL of the pooler that functions use, as roleUrl reads it. */
  readonly pooler: string | undefined;
  /** Pods of one function at most. */
  readonly pods: number | undefined;
  /** Connections of one pod at most. */
  readonly pool: number | undefined;
  /** The origins whose pages may call the endpoints, separated by commas; an empty text removes them. */
  readonly cors: string | undefined;
  readonly kafka: readonly string[] | undefined;
  readonly kafkaCredentials: KafkaCredentials;
  /** The beginning of every topic and consumer group. */
  readonly kafkaPrefix: string | undefined;
  readonly brokers: 1 | 3 | undefined;
  readonly registry: string | undefined;
  readonly loadCommand: string | undefined;
  readonly builder: Builder | undefined;
  readonly base: string;
  /** The architectures of the image. Undefined: the architectures of the nodes. */
  readonly architectures: readonly string[] | undefined;
  /** The URL of the source, for a label of the image. */
  readonly source: string;
  /** On, off, or unchanged. */
  readonly metrics: boolean | undefined;
  /** The environment: the name of a file in knative/environments. */
  readonly environment: string;
  /** Accepts another database or Kafka than the installation has. */
  readonly move: boolean;
  /** Answers the question about the cluster. */
  readonly yes: boolean;
  /** Writes knative/rendered/<environment> and changes no cluster. */
  readonly render: boolean;
  /** With render: writes no file and fails when one is stale. Otherwise: checks the cluster and changes nothing. */
  readonly check: boolean;
  /** Makes the Secrets only, for a cluster that Argo CD or Flux deploys to. */
  readonly secretsOnly: boolean;
  readonly dryRun: boolean;
}

/** The options of the command line. */
export const DEPLOY_OPTIONS = {
  environment: {
    type: "string",
    value: "NAME",
    about: "the environment, a file of knative/environments",
    default: LAPTOP,
  },
  render: { type: "string", value: "NAME", about: "write this environment into knative/rendered; change no cluster" },
  check: { type: "boolean", about: "check the cluster, or with --render the rendered files; change nothing" },
  "secrets-only": { type: "boolean", about: "make the missing secrets only, for Argo CD or Flux" },
  move: { type: "boolean", about: "accept another database or Kafka than the installation has" },
  yes: { type: "boolean", about: "do not ask whether this is the right cluster" },
  database: {
    type: "string",
    value: "URL",
    about:
      "Neon or any Postgres instead of one in the cluster: postgres://owner@host:port/name. DATABASE_ADMIN_PASSWORD contains the password",
  },
  "database-authority": {
    type: "string",
    value: "FILE",
    about:
      "the PEM file of the authority that signed the database's certificate, for an environment with database.authority",
  },
  cors: { ...cors, about: `${cors.about}; an empty text removes them` },
  brokers: { ...brokers, about: "these Kafka brokers, host:port,…, instead of one in the cluster" },
  pooler: {
    type: "string",
    value: "URL",
    about: "functions reach the database through this pooler, such as postgres://pooler.example:6432",
  },
  pods: { type: "string", value: "NUMBER", about: `pods of one function at most (default ${PODS_MAX_DEFAULT})` },
  pool: {
    type: "string",
    value: "NUMBER",
    about: `database connections of one pod at most (default ${POOL_CONNECTIONS_MAX})`,
  },
  "no-prepare": {
    type: "boolean",
    about: "use no prepared statements: for a transaction pooler that does not keep them",
  },
  "kafka-tls": { type: "boolean", about: "use TLS for the brokers" },
  "kafka-authority": {
    type: "string",
    value: "FILE",
    about: "the PEM file of the authority that signed their certificates",
  },
  "kafka-certificate": { type: "string", value: "FILE", about: "the PEM file of the client's certificate" },
  "kafka-key": { type: "string", value: "FILE", about: "the PEM file of the client's key" },
  "kafka-user": { type: "string", value: "NAME", about: "the user; the variable KAFKA_PASSWORD contains the password" },
  "kafka-mechanism": { type: "string", value: "NAME", about: "plain, scram-sha-256 or scram-sha-512 (default)" },
  "kafka-prefix": {
    type: "string",
    value: "TEXT",
    about: "the beginning of every topic and consumer group, for installations that share a Kafka",
  },
  replicas: { type: "string", value: "1|3", about: "Kafka brokers in the cluster (default 1)" },
  registry: { type: "string", value: "HOST/PATH", about: "push the images there (default: minikube image load)" },
  "load-command": {
    type: "string",
    value: "CMD",
    about: "bring an image into the cluster with this command; {image} stands for its name",
  },
  builder: { type: "string", value: "NAME", about: "docker, minikube or buildah (default: the first that works)" },
  base: { type: "string", value: "IMAGE", about: "base of the images", default: BASE_DEFAULT },
  platform: {
    type: "string",
    value: "LIST",
    about: "architectures of the image: amd64,arm64 (the default is that of the nodes)",
  },
  source: { type: "string", value: "URL", about: "address of the source code, for a label of the image" },
  metrics: { type: "boolean", about: "apply a PodMonitor for Prometheus" },
  "no-metrics": { type: "boolean", about: "remove the PodMonitor" },
  "dry-run": { type: "boolean", about: "print what a first deployment would apply and change nothing" },
} as const satisfies Readonly<Record<string, Option>>;

/** Options that only the environment laptop accepts: the file of another environment contains them. */
const FILE_OPTIONS = [
  "database",
  "pooler",
  "pods",
  "pool",
  "no-prepare",
  "cors",
  "brokers",
  "kafka-prefix",
  "replicas",
] as const;

/** The values of the command line. */
export type DeployValues = {
  readonly [Name in keyof typeof DEPLOY_OPTIONS]: (typeof DEPLOY_OPTIONS)[Name]["type"] extends "boolean"
    ? boolean
    : string | undefined;
};

function parseUrl(text: string): string {
  if (!URL.canParse(text) || !/^postgres(ql)?:$/.test(new URL(text).protocol)) {
    throw new UsageError("--database must be a URL such as postgres://owner@host:5432/name.");
  }
  if (new URL(text).password !== "") {
    throw new UsageError(
      "--database must not contain the password, which every process list shows. Put it into the variable DATABASE_ADMIN_PASSWORD.",
    );
  }
  return text;
}

/** Reads the authority's file on this machine, and names the place where pods find it. */
function readAuthority(text: string): { url: string; authority: string | undefined } {
  try {
    const { authority } = readDatabaseAddress(text);
    if (authority === undefined) return { url: text, authority };
    return { url: withAuthority(text), authority };
  } catch (error) {
    throw new UsageError(`--database: ${(error as Error).message}`);
  }
}

function parsePooler(text: string): string {
  if (!URL.canParse(text) || !/^postgres(ql)?:$/.test(new URL(text).protocol) || new URL(text).password !== "")
    throw new UsageError("--pooler must be a URL without a password, such as postgres://pooler.example:6432.");
  return text;
}

function parseNumber(option: string, text: string): number {
  if (!/^[1-9]\d?$/.test(text)) throw new UsageError(`${option} must be 1 to 99; "${text}" is not.`);
  return Number(text);
}

/** Returns the architectures of `--platform`. @throws {UsageError} for a name that is not an architecture */
export function readArchitectures(text: string): string[] {
  const names = text.split(",").map((name) => name.trim().replace(/^linux\//, ""));
  const wrong = names.find((name) => !/^[a-z0-9]+$/.test(name));
  if (wrong !== undefined)
    throw new UsageError(`--platform must be architectures such as amd64,arm64; "${wrong}" is not.`);
  return names;
}

function parseHosts(text: string): string[] {
  const hosts = text.split(",").map((host) => host.trim());
  const wrong = hosts.find((host) => !/^[^\s:/]+:\d{1,5}$/.test(host));
  if (wrong !== undefined)
    throw new UsageError(`--brokers must be host:port, several separated by commas; "${wrong}" is not.`);
  return hosts;
}

function oneOf<T extends string>(option: string, text: string | undefined, allowed: readonly T[]): T | undefined {
  if (text === undefined || (allowed as readonly string[]).includes(text)) return text as T | undefined;
  throw new UsageError(`${option} must be ${allowed.join(" or ")}; "${text}" is not.`);
}

function readPem(option: string, file: string, what: "certificate" | "private key"): string {
  try {
    const text = readFileSync(file, "utf8");
    if (
      what === "certificate"
        ? text.includes("-----BEGIN CERTIFICATE-----")
        : /-----BEGIN [A-Z ]*PRIVATE KEY-----/.test(text)
    )
      return text;
  } catch (error) {
    throw new UsageError(`${option}: ${(error as Error).message}.`);
  }
  throw new UsageError(`${option} must be a file in PEM; ${file} contains no ${what}.`);
}

function credentialsOf(values: DeployValues, password: string | undefined): KafkaCredentials {
  const { "kafka-tls": tls, "kafka-authority": authority, "kafka-user": name } = values;
  const mechanism = oneOf("--kafka-mechanism", values["kafka-mechanism"], MECHANISMS) ?? "scram-sha-512";
  const { "kafka-certificate": certificate, "kafka-key": key } = values;
  const named = tls || authority !== undefined || name !== undefined || certificate !== undefined || key !== undefined;
  // The file of another environment names its brokers itself.
  if (values.brokers === undefined && values.environment === LAPTOP && named) {
    throw new UsageError("The options --kafka-… need a Kafka outside the cluster: --brokers.");
  }
  if ((certificate === undefined) !== (key === undefined))
    throw new UsageError("A client certificate needs its key: give --kafka-certificate and --kafka-key.");
  if (certificate !== undefined && !tls) throw new UsageError("--kafka-certificate is for TLS: give --kafka-tls too.");
  if (authority !== undefined && !tls) throw new UsageError("--kafka-authority is for TLS: give --kafka-tls too.");
  if (name !== undefined && !password) {
    throw new UsageError("--kafka-user needs the password in the environment: KAFKA_PASSWORD=… npx lotus deploy …");
  }
  return {
    tls,
    authority: authority === undefined ? undefined : readPem("--kafka-authority", authority, "certificate"),
    client:
      certificate === undefined || key === undefined
        ? undefined
        : {
            certificate: readPem("--kafka-certificate", certificate, "certificate"),
            key: readPem("--kafka-key", key, "private key"),
          },
    user: name === undefined ? undefined : { name, password: password ?? "", mechanism },
  };
}

function environmentNameOf({ render, environment }: Pick<DeployValues, "render" | "environment">): string {
  return render ?? environment ?? LAPTOP;
}

/**
 * Returns the options of a deployment.
 * @throws {UsageError} when the values contradict each other
 */
export function readOptions(
  values: DeployValues,
  functions: readonly string[],
  environment: Readonly<Record<string, string | undefined>> = process.env,
): DeployOptions {
  if (values.brokers !== undefined && values.replicas !== undefined) {
    throw new UsageError("--replicas counts brokers in the cluster; --brokers names others. Give one of them.");
  }
  if (values["database-authority"] !== undefined && environmentNameOf(values) === LAPTOP) {
    throw new UsageError(
      "On the laptop the URL names the authority: --database 'postgres://owner@host/name?sslrootcert=FILE'.",
    );
  }
  if (values.registry !== undefined && values["load-command"] !== undefined) {
    throw new UsageError("--registry and --load-command both bring images to the cluster. Give one of them.");
  }
  if (values["load-command"]?.includes("{image}") === false) {
    throw new UsageError('--load-command must contain the name of the image: --load-command "my-loader {image}".');
  }
  if (values.registry !== undefined && !/^[\w.-]+(:\d+)?(\/[a-z0-9._-]+)*\/?$/.test(values.registry)) {
    throw new UsageError(`--registry must be a host and a path, such as ghcr.io/me; "${values.registry}" is not.`);
  }
  const prefix = v.safeParse(v.optional(KafkaPrefix), values["kafka-prefix"]);
  if (!prefix.success) {
    throw new UsageError(`--kafka-prefix must be ${prefix.issues[0].message}; "${values["kafka-prefix"]}" is not.`);
  }
  const replicas = oneOf("--replicas", values.replicas, ["1", "3"]);
  const database = values.database === undefined ? undefined : readAuthority(parseUrl(values.database));
  const environmentName = environmentNameOf(values);
  if (environmentName !== LAPTOP) {
    const inFile = FILE_OPTIONS.filter((option) => values[option] !== undefined && values[option] !== false);
    if (inFile.length > 0)
      throw new UsageError(
        `--${inFile.join(" and --")} ${inFile.length === 1 ? "belongs" : "belong"} in knative/environments/${environmentName}.yaml.`,
      );
  }
  return {
    functions,
    environment: environmentName,
    render: values.render !== undefined,
    check: values.check,
    secretsOnly: values["secrets-only"],
    move: values.move,
    yes: values.yes,
    databasePassword: environment.DATABASE_ADMIN_PASSWORD,
    database: database?.url,
    databaseAuthority:
      values["database-authority"] === undefined
        ? database?.authority
        : readPem("--database-authority", values["database-authority"], "certificate"),
    pooler: values.pooler === undefined ? undefined : parsePooler(values.pooler),
    pods: values.pods === undefined ? undefined : parseNumber("--pods", values.pods),
    pool: values.pool === undefined ? undefined : parseNumber("--pool", values.pool),
    noPrepare: values["no-prepare"],
    cors: values.cors && readOrigins(values.cors).join(","),
    kafka: values.brokers === undefined ? undefined : parseHosts(values.brokers),
    kafkaCredentials: credentialsOf(values, environment.KAFKA_PASSWORD),
    kafkaPrefix: prefix.output,
    brokers: replicas === undefined ? undefined : replicas === "3" ? 3 : 1,
    registry: values.registry?.replace(/\/+$/, ""),
    loadCommand: values["load-command"],
    builder: oneOf("--builder", values.builder, BUILDERS),
    base: values.base ?? BASE_DEFAULT,
    architectures: values.platform === undefined ? undefined : readArchitectures(values.platform),
    source: values.source ?? "",
    metrics: values.metrics ? true : values["no-metrics"] ? false : undefined,
    dryRun: values["dry-run"],
  };
}
