/** What scripts/deploy can be told. */
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { type KafkaCredentials, MECHANISMS } from "./kafka-security.ts";
import { Refusal } from "./shell.ts";

export const BASE_DEFAULT = "gcr.io/distroless/nodejs24-debian12:nonroot";
export const BUILDERS = ["docker", "minikube", "buildah"] as const;
export type Builder = (typeof BUILDERS)[number];

export interface DeployOptions {
  /** These functions only; empty: everything. */
  readonly functions: readonly string[];
  readonly database: string | undefined;
  /** The database is behind a pooler that does not keep prepared statements. */
  readonly noPrepare: boolean;
  readonly kafka: readonly string[] | undefined;
  readonly kafkaCredentials: KafkaCredentials;
  readonly brokers: 1 | 3 | undefined;
  readonly registry: string | undefined;
  readonly loadCommand: string | undefined;
  readonly builder: Builder | undefined;
  readonly base: string;
  /** On, off, or as it is. */
  readonly metrics: boolean | undefined;
  readonly dryRun: boolean;
}

export const HELP = `Usage: scripts/deploy [FUNCTION…] [options]

Puts Lotus on the cluster that kubectl reaches: builds an image a function, loads it, and applies Postgres, Kafka, secrets,
migrations, topics, functions, sources and routes. Safe to repeat: what has not changed is left alone. With names of
functions, such as order-pay, only these.

  --database URL        use this database, Neon or any Postgres, and none in the cluster; the URL is its owner's
  --no-prepare          use no prepared statements: for a transaction pooler that does not keep them
  --kafka HOST:PORT,…   use this Kafka, and none in the cluster
  --kafka-tls           speak TLS to it; --kafka-authority FILE when its certificates are signed by an authority of its own
  --kafka-user NAME     say who we are; the password is read from the environment, KAFKA_PASSWORD
  --kafka-mechanism M   plain, scram-sha-256 or scram-sha-512 (the default)
  --brokers 1|3         how many Kafka brokers in the cluster (1)
  --registry HOST/PATH  push the images there (else: minikube image load)
  --load-command CMD    bring an image into the cluster with this command; {image} stands for its name
  --builder NAME        docker, minikube or buildah (the first that works)
  --base IMAGE          what the images stand on (${BASE_DEFAULT})
  --metrics             measure requests, for Prometheus; --no-metrics ends that
  --dry-run             print what a first deployment with these options would apply, and change nothing

Where the database and Kafka are is kept in the cluster: say it once. What is about images: each time.`;

function parseUrl(text: string): string {
  if (!URL.canParse(text) || !/^postgres(ql)?:$/.test(new URL(text).protocol)) {
    throw new Refusal("--database must be a URL such as postgres://owner:password@host:5432/name.");
  }
  if (new URL(text).password === "") {
    throw new Refusal("--database needs the owner's password: postgres://owner:password@host:5432/name.");
  }
  return text;
}

function parseHosts(text: string): string[] {
  const hosts = text.split(",").map((host) => host.trim());
  const wrong = hosts.find((host) => !/^[^\s:/]+:\d{1,5}$/.test(host));
  if (wrong !== undefined)
    throw new Refusal(`--kafka must be host:port, several separated by commas; "${wrong}" is not.`);
  return hosts;
}

function oneOf<T extends string>(option: string, text: string | undefined, allowed: readonly T[]): T | undefined {
  if (text === undefined || (allowed as readonly string[]).includes(text)) return text as T | undefined;
  throw new Refusal(`${option} must be ${allowed.join(" or ")}; "${text}" is not.`);
}

function readAuthority(file: string): string {
  try {
    const text = readFileSync(file, "utf8");
    if (text.includes("-----BEGIN CERTIFICATE-----")) return text;
  } catch (error) {
    throw new Refusal(`--kafka-authority: ${(error as Error).message}.`);
  }
  throw new Refusal(`--kafka-authority must be a file in PEM; ${file} holds no certificate.`);
}

function credentialsOf(values: ReturnType<typeof parse>["values"], password: string | undefined): KafkaCredentials {
  const { "kafka-tls": tls, "kafka-authority": authority, "kafka-user": name } = values;
  const mechanism = oneOf("--kafka-mechanism", values["kafka-mechanism"], MECHANISMS) ?? "scram-sha-512";
  if (values.kafka === undefined && (tls || authority !== undefined || name !== undefined)) {
    throw new Refusal(
      "--kafka-tls, --kafka-authority and --kafka-user speak of a Kafka outside: name it with --kafka.",
    );
  }
  if (authority !== undefined && !tls) throw new Refusal("--kafka-authority is for TLS: give --kafka-tls too.");
  if (name !== undefined && !password) {
    throw new Refusal("--kafka-user needs the password, in the environment: KAFKA_PASSWORD=… scripts/deploy …");
  }
  return {
    tls,
    authority: authority === undefined ? undefined : readAuthority(authority),
    user: name === undefined ? undefined : { name, password: password ?? "", mechanism },
  };
}

/**
 * Reads the command line. Undefined: help was asked for.
 * @throws {Refusal} when it cannot be meant
 */
export function parseOptions(
  args: readonly string[],
  environment: Readonly<Record<string, string | undefined>> = process.env,
): DeployOptions | undefined {
  let parsed: ReturnType<typeof parse>;
  try {
    parsed = parse(args);
  } catch (error) {
    throw new Refusal(`${(error as Error).message}\n\n${HELP}`);
  }
  const { values, positionals } = parsed;
  if (values.help) return undefined;
  if (values.kafka !== undefined && values.brokers !== undefined) {
    throw new Refusal(
      "--brokers says how many brokers run in the cluster; with --kafka there are none. Give one of them.",
    );
  }
  if (values.registry !== undefined && values["load-command"] !== undefined) {
    throw new Refusal("--registry and --load-command are two ways to bring images to the cluster. Give one of them.");
  }
  if (values["load-command"]?.includes("{image}") === false) {
    throw new Refusal('--load-command must say where the name of the image goes: --load-command "my-loader {image}".');
  }
  if (values.registry !== undefined && !/^[\w.-]+(:\d+)?(\/[a-z0-9._-]+)*\/?$/.test(values.registry)) {
    throw new Refusal(`--registry must be a host and a path, such as ghcr.io/me; "${values.registry}" is not.`);
  }
  const brokers = oneOf("--brokers", values.brokers, ["1", "3"]);
  return {
    functions: positionals,
    database: values.database === undefined ? undefined : parseUrl(values.database),
    noPrepare: values["no-prepare"],
    kafka: values.kafka === undefined ? undefined : parseHosts(values.kafka),
    kafkaCredentials: credentialsOf(values, environment.KAFKA_PASSWORD),
    brokers: brokers === undefined ? undefined : brokers === "3" ? 3 : 1,
    registry: values.registry?.replace(/\/+$/, ""),
    loadCommand: values["load-command"],
    builder: oneOf("--builder", values.builder, BUILDERS),
    base: values.base,
    metrics: values.metrics ? true : values["no-metrics"] ? false : undefined,
    dryRun: values["dry-run"],
  };
}

function parse(args: readonly string[]) {
  return parseArgs({
    args: [...args],
    allowPositionals: true,
    options: {
      database: { type: "string" },
      "no-prepare": { type: "boolean", default: false },
      kafka: { type: "string" },
      "kafka-tls": { type: "boolean", default: false },
      "kafka-authority": { type: "string" },
      "kafka-user": { type: "string" },
      "kafka-mechanism": { type: "string" },
      brokers: { type: "string" },
      registry: { type: "string" },
      "load-command": { type: "string" },
      builder: { type: "string" },
      base: { type: "string", default: BASE_DEFAULT },
      metrics: { type: "boolean", default: false },
      "no-metrics": { type: "boolean", default: false },
      "dry-run": { type: "boolean", default: false },
      help: { type: "boolean", short: "h", default: false },
    },
  });
}
