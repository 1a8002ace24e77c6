/** Environments: knative/environments/NAME.yaml describes where and how Lotus runs. The files contain no secret. */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { toJsonSchema } from "@valibot/to-json-schema";
import * as v from "valibot";
import { isMap, isScalar, LineCounter, parseDocument } from "yaml";
import { KafkaPrefix, Origins } from "#kernel/settings";
import { Refusal } from "../cli/errors.ts";
import { didYouMean } from "../cli/nearest.ts";
import { ROOT } from "../project/paths.ts";

/** The environment that `lotus deploy` deploys by default: one machine, images built from the checkout. */
export const LAPTOP = "laptop";
const ENVIRONMENTS_FOLDER = "knative/environments";

const NAME_LENGTH_MAX = 63;
const PODS_MAX = 1_000;
const CONCURRENCY_MAX = 1_000;
const CONNECTIONS_MAX = 99;
const MEBIBYTES_MIN = 64;
const MEBIBYTES_MAX = 65_536;
const PARTITIONS_MAX = 1_000;
const ROLLOUT_SECONDS_MAX = 3_600;
const PERCENT = 100;

const count = (least: number, most: number) => {
  const sentence = `a whole number from ${least} to ${most}`;
  return v.pipe(v.number(sentence), v.integer(sentence), v.minValue(least, sentence), v.maxValue(most, sentence));
};
const SHARE_SENTENCE = "a number from 0 to 1";
const share = v.pipe(v.number(SHARE_SENTENCE), v.minValue(0, SHARE_SENTENCE), v.maxValue(1, SHARE_SENTENCE));
const text = (pattern: RegExp, sentence: string) => v.pipe(v.string(sentence), v.regex(pattern, sentence));
/** RFC 1123. */
const LABEL = /^[a-z0-9]([a-z0-9-]*[a-z0-9])?$/;
const label = v.pipe(
  text(LABEL, "a name of lower-case letters, digits and hyphens"),
  v.maxLength(NAME_LENGTH_MAX, `a name of at most ${NAME_LENGTH_MAX} characters`),
);
const domain = text(/^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$/, "a domain such as shop.example");
const flag = v.boolean("true or false");
const url = (sentence: string, ...protocols: string[]) =>
  v.pipe(
    v.string(sentence),
    v.check((value) => URL.canParse(value) && protocols.includes(new URL(value).protocol), sentence),
  );
const DATABASE_SENTENCE = "a URL without a password, such as postgres://owner@db.example:5432/lotus";
const databaseUrl = v.pipe(
  url(DATABASE_SENTENCE, "postgres:", "postgresql:"),
  v.check((value) => new URL(value).password === "", DATABASE_SENTENCE),
);
const hosts = v.pipe(
  v.array(text(/^[^\s:/,]+:\d{1,5}$/, "host:port"), "a list of host:port"),
  v.minLength(1, "a list of at least one host:port"),
);
/** A quantity of Kubernetes, such as 25m or 2. */
const cpu = text(/^\d+(\.\d+)?m?$/, 'a quantity in quotes, such as "500m" or "1"');

/** How a function scales. The description of a function and an environment may set each field. */
const ScaleEntries = {
  /** Requests in flight at which Knative starts another pod. */
  target: v.optional(count(1, CONCURRENCY_MAX)),
  /** Requests in flight that one pod accepts at most; further ones wait in queue-proxy. 0: no limit. */
  limit: v.optional(count(0, CONCURRENCY_MAX)),
  minPods: v.optional(count(0, PODS_MAX)),
  maxPods: v.optional(count(1, PODS_MAX)),
  /** Database connections of one pod at most. */
  connections: v.optional(count(1, CONNECTIONS_MAX)),
  /** Memory limit of one pod. */
  memoryMebibytes: v.optional(count(MEBIBYTES_MIN, MEBIBYTES_MAX)),
  /** CPU limit of one pod. */
  cpu: v.optional(cpu),
};
const ScaleSchema = v.strictObject(ScaleEntries);

const Tls = v.union(
  [
    /** A Secret of type kubernetes.io/tls in the namespace. */
    v.strictObject({ secret: label }),
    /** cert-manager issues the certificate. */
    v.strictObject({ issuer: label, kind: v.optional(v.picklist(["Issuer", "ClusterIssuer"]), "ClusterIssuer") }),
  ],
  "either `secret: NAME`, or `issuer: NAME` with an optional `kind: Issuer` or `kind: ClusterIssuer`",
);

const Database = v.variant(
  "mode",
  [
    /** One Postgres in the namespace: for a laptop. */
    v.strictObject({ mode: v.literal("cluster") }),
    v.strictObject({
      mode: v.picklist(["outside", "neon"]),
      /** The owner's URL. The Secret `database-admin` contains the same URL with the password. */
      url: databaseUrl,
      /** The URL of the pooler that functions use. Its user may be a pattern such as {role}.project-ref. */
      pooler: v.optional(databaseUrl),
      /** The Secrets of the database contain the certificate authority, `ca.crt`. */
      authority: v.optional(flag, false),
      /** False: a transaction pooler that does not keep prepared statements. */
      prepare: v.optional(flag, true),
    }),
  ],
  "cluster, outside or neon",
);

const TopicEntries = {
  /** The beginning of every topic and consumer group. Environments that share a Kafka need different ones. */
  prefix: v.optional(KafkaPrefix, ""),
  partitions: v.optional(count(1, PARTITIONS_MAX)),
  /** Copies of each record. The brokers decide when it is not set. */
  replication: v.optional(count(1, 9)),
  /** Kafka deletes the oldest records of a larger partition. By default only the age of a record counts. */
  retentionBytes: v.optional(count(1, Number.MAX_SAFE_INTEGER)),
  /** Consumers of each KafkaSource. */
  consumers: v.optional(count(1, PARTITIONS_MAX), 1),
};

const Kafka = v.variant(
  "mode",
  [
    v.strictObject({
      mode: v.literal("cluster"),
      brokers: v.optional(v.picklist([1, 3], "1 or 3"), 1),
      ...TopicEntries,
    }),
    v.strictObject({
      mode: v.literal("outside"),
      hosts,
      tls: v.optional(flag, false),
      /** The Secret `kafka` contains the certificate authority, `ca.crt`. */
      authority: v.optional(flag, false),
      /** The Secret `kafka` contains the client's certificate and key, `user.crt` and `user.key`. */
      clientCertificate: v.optional(flag, false),
      /** The Secret `kafka` contains `user` and `password`. */
      mechanism: v.optional(
        v.picklist(["plain", "scram-sha-256", "scram-sha-512"], "plain, scram-sha-256 or scram-sha-512"),
      ),
      ...TopicEntries,
    }),
  ],
  "cluster or outside",
);

const Split = v.pipe(
  v.array(
    v.strictObject({
      /** The name of a revision, or `latest`. */
      revision: label,
      percent: count(0, PERCENT),
      tag: v.optional(label),
    }),
  ),
  v.check(
    (splits) => splits.reduce((sum, { percent }) => sum + percent, 0) === PERCENT,
    "a list whose percents add up to 100",
  ),
);

/** The fields of an environment. knative/environments/schema.json is generated from this schema. */
const EnvironmentSchema = v.strictObject({
  namespace: v.optional(label, "lotus"),
  /** Create the Namespace with its pod security labels. False: an administrator did it. */
  createNamespace: v.optional(flag, true),
  /** The public host of the endpoints. */
  host: domain,
  tls: v.optional(Tls),
  clusterDomain: v.optional(domain, "cluster.local"),
  ingress: v.optional(
    v.strictObject({
      /** The namespace of Kourier's gateway. */
      namespace: v.optional(label, "kourier-system"),
      service: v.optional(label, "kourier-internal"),
      /** Proxies in front of the functions that append to X-Forwarded-For. */
      trustedProxies: v.optional(count(0, 9), 1),
    }),
    {},
  ),
  servingNamespace: v.optional(label, "knative-serving"),
  eventingNamespace: v.optional(label, "knative-eventing"),
  database: Database,
  kafka: Kafka,
  /** By name of a function. The name `default` applies to every function. */
  scale: v.optional(v.record(label, ScaleSchema), {}),
  serviceAccount: v.optional(
    v.strictObject({ name: v.optional(label, "lotus"), annotations: v.optional(v.record(v.string(), v.string()), {}) }),
    {},
  ),
  /** Secrets of type kubernetes.io/dockerconfigjson. */
  pullSecrets: v.optional(v.array(label), []),
  cors: v.optional(
    v.pipe(
      v.array(v.string()),
      v.check(
        (list) => list.length === 0 || v.is(Origins, list.join(",")),
        "a list of origins such as https://shop.example",
      ),
    ),
    [],
  ),
  /** Present: a PodMonitor with these labels. */
  metrics: v.optional(v.strictObject({ labels: v.optional(v.record(v.string(), v.string()), {}) })),
  tracing: v.optional(
    v.strictObject({
      endpoint: url("a URL such as http://collector.monitoring.svc:4318", "http:", "https:"),
      /** The share of new traces that functions record. */
      sampleRatio: v.optional(share, 1),
    }),
  ),
  /** Seconds in which traffic moves to a new revision. */
  rolloutSeconds: v.optional(count(0, ROLLOUT_SECONDS_MAX), 0),
  /** By name of a function. A function without an entry sends all traffic to its latest ready revision. */
  traffic: v.optional(v.record(label, Split), {}),
});

export type Scale = v.InferOutput<typeof ScaleSchema>;
export interface Environment extends v.InferOutput<typeof EnvironmentSchema> {
  readonly name: string;
}

/**
 * Parses the text of an environment file.
 * @param functions the names that `scale` and `traffic` may contain
 * @throws {Refusal} a sentence with file and line for each wrong field
 */
export function parseEnvironment(
  name: string,
  source: string,
  functions: readonly string[],
  file = `${ENVIRONMENTS_FOLDER}/${name}.yaml`,
): Environment {
  const lines = new LineCounter();
  const document = parseDocument(source, { lineCounter: lines });
  const [broken] = document.errors;
  if (broken !== undefined)
    throw new Refusal(`${file}:${lines.linePos(broken.pos[0]).line}: ${broken.message.split("\n")[0]}`);
  /** The line of a field, or of the nearest field around it that the file has. */
  const lineOf = (path: readonly (string | number)[]): number => {
    for (let length = path.length; length > 0; length--) {
      const parent = document.getIn(path.slice(0, length - 1), true) ?? document.contents;
      const last = path[length - 1];
      const pair = isMap(parent) ? parent.items.find(({ key }) => isScalar(key) && key.value === last) : undefined;
      const node = pair?.key ?? document.getIn(path.slice(0, length), true);
      const range = (node as { range?: [number, number, number] } | undefined)?.range;
      if (range) return lines.linePos(range[0]).line;
    }
    return 1;
  };
  const result = v.safeParse(EnvironmentSchema, document.toJS() ?? {});
  const wrong: string[] = [];
  const tell = (path: readonly (string | number)[], sentence: string) =>
    wrong.push(`${file}:${lineOf(path)}: ${path.join(".")} ${sentence}`);
  if (!result.success) {
    for (const issue of result.issues) {
      const path = (issue.path ?? []).map(({ key }) => key as string | number);
      if (issue.type === "strict_object" && issue.expected === "never") {
        const parent = issue.path?.at(-1)?.input as object;
        const known = knownFields(path.slice(0, -1));
        tell(path, `is not a field.${didYouMean(String(path.at(-1)), known.length > 0 ? known : Object.keys(parent))}`);
      } else if (issue.input === undefined) tell(path, `is missing; it must be ${issue.message}.`);
      // A URL may contain a password by mistake.
      else if (/\/\/[^/]*@/.test(String(issue.input))) tell(path, `must be ${issue.message}; its value is not.`);
      else tell(path, `must be ${issue.message}; ${JSON.stringify(issue.input)} is not.`);
    }
    throw new Refusal([...new Set(wrong)].join("\n"));
  }
  for (const field of ["scale", "traffic"] as const) {
    const allowed = field === "scale" ? ["default", ...functions] : functions;
    for (const key of Object.keys(result.output[field]))
      if (!allowed.includes(key)) tell([field, key], `is not the name of a function.${didYouMean(key, allowed)}`);
  }
  const { kafka } = result.output;
  if (kafka.mode === "outside") {
    for (const field of ["authority", "clientCertificate"] as const)
      if (kafka[field] && !kafka.tls) tell(["kafka", field], "needs `tls: true`.");
  }
  if (wrong.length > 0) throw new Refusal(wrong.join("\n"));
  return { name, ...result.output };
}

/** The names of the fields at a path of the schema; an empty list where the schema has alternatives. */
function knownFields(path: readonly (string | number)[]): string[] {
  // biome-ignore lint/suspicious/noExplicitAny: the schema is walked by name
  let schema: any = EnvironmentSchema;
  for (const key of path) {
    while (schema?.wrapped !== undefined) schema = schema.wrapped;
    schema = schema?.entries?.[key] ?? schema?.value;
  }
  while (schema?.wrapped !== undefined) schema = schema.wrapped;
  if (schema?.options !== undefined)
    return schema.options.flatMap((option: { entries?: object }) => Object.keys(option.entries ?? {}));
  return Object.keys(schema?.entries ?? {});
}

/** The file of the database's authority in a pod. The Secret of the password contains it too. */
const AUTHORITY_PATH = "/etc/lotus/database/ca.crt";

/** Returns a database URL that names the authority as pods find it. */
export function withAuthority(url: string): string {
  const complete = new URL(url);
  complete.searchParams.set("sslrootcert", AUTHORITY_PATH);
  return complete.href;
}

/** The names of the environments in the checkout. */
export async function environmentNames(): Promise<string[]> {
  const files = await readdir(join(ROOT, ENVIRONMENTS_FOLDER));
  return files.flatMap((file) => /^(.+)\.yaml$/.exec(file)?.[1] ?? []).sort();
}

/**
 * Reads the environment of this name.
 * @param functions the names of all functions
 * @throws {Refusal} when the file does not exist, or for each wrong field
 */
export async function readEnvironment(name: string, functions: readonly string[]): Promise<Environment> {
  const names = await environmentNames();
  if (!names.includes(name))
    throw new Refusal(
      `The environment ${name} does not exist. ${ENVIRONMENTS_FOLDER} contains ${names.join(", ")}.${didYouMean(name, names)}`,
    );
  return parseEnvironment(name, await readFile(join(ROOT, ENVIRONMENTS_FOLDER, `${name}.yaml`), "utf8"), functions);
}

/** Returns the JSON schema of an environment file, for editors. */
export function environmentJsonSchema(): object {
  const schema = toJsonSchema(EnvironmentSchema, { typeMode: "input", errorMode: "ignore" });
  return { title: "An environment of Lotus", ...schema };
}
