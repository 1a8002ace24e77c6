/** Everything that a deployment applies, as data: the files of knative/, completed with what only now is known. */

import { createHash } from "node:crypto";
import { clusterBudget, writeBudget } from "../database/connections.ts";
import { type Backends, brokersOf, configuration, limitsOf } from "./backends.ts";
import { secureClient, secureSource } from "./kafka-security.ts";
import { type KubernetesObject, NAMESPACE, readDocuments, yamlFiles } from "./kubectl.ts";
import { readMigrateJob } from "./migrate-job.ts";

export interface FunctionPlan {
  readonly name: string;
  readonly service: KubernetesObject;
  /** What brings events to it. A function with one is a trigger. */
  readonly source: KubernetesObject | undefined;
}

export interface ClusterPlan {
  readonly namespace: readonly KubernetesObject[];
  /** Policies, configuration, Kafka, Postgres. */
  readonly platform: readonly KubernetesObject[];
  readonly migrate: KubernetesObject;
  readonly topics: KubernetesObject;
  readonly functions: readonly FunctionPlan[];
  readonly routes: readonly KubernetesObject[];
  readonly metrics: readonly KubernetesObject[];
}

/** Puts the built image where `unbuilt` stands: in the pod of any kind of object. */
function withImage(object: KubernetesObject, reference: string): KubernetesObject {
  const copy = structuredClone(object);
  for (const container of copy.spec.template.spec.containers) {
    if (String(container.image).endsWith(":unbuilt")) container.image = reference;
  }
  return copy;
}

function imageOf(images: ReadonlyMap<string, string>, name: string): string {
  const reference = images.get(name);
  if (reference === undefined) throw new Error(`there is no image for ${name}`);
  return reference;
}

function portOf(address: string): number {
  return Number(address.slice(address.lastIndexOf(":") + 1));
}

/** Where the database is, without its owner's password. */
function withoutPassword(url: string): string {
  const shown = new URL(url);
  shown.password = "";
  return shown.href;
}

function policy(name: string, labels: Record<string, string>, ports: readonly number[]): KubernetesObject {
  return {
    apiVersion: "networking.k8s.io/v1",
    kind: "NetworkPolicy",
    metadata: { name, namespace: NAMESPACE },
    spec: {
      podSelector: { matchLabels: labels },
      policyTypes: ["Egress"],
      egress: [{ ports: ports.map((port) => ({ protocol: "TCP", port })) }],
    },
  };
}

/** Leave to reach a database or a Kafka that is not in the cluster: its ports, wherever its names lead. */
function policiesForOutside({ database, kafka, pooler }: Backends): KubernetesObject[] {
  const kafkaPorts = kafka.kind === "outside" ? [...new Set(kafka.hosts.map(portOf))] : [];
  const databasePort = database.kind === "cluster" ? undefined : Number(new URL(database.adminUrl).port || 5432);
  const poolerPorts = pooler === undefined ? [] : [Number(new URL(pooler).port || 5432)];
  const direct = databasePort === undefined ? [] : [database.kind === "neon" ? 443 : databasePort];
  const functionPorts = [...kafkaPorts, ...(pooler === undefined ? direct : poolerPorts)];
  const jobPorts = [...kafkaPorts, ...poolerPorts, ...(databasePort === undefined ? [] : [databasePort])];
  return [
    ...(functionPorts.length > 0 ? [policy("functions-outside", { "lotus/database": "true" }, functionPorts)] : []),
    ...(jobPorts.length > 0 ? [policy("jobs-outside", { "app.kubernetes.io/component": "job" }, jobPorts)] : []),
  ];
}

async function oneDocument(file: string): Promise<KubernetesObject> {
  const [document, ...rest] = await readDocuments(file);
  if (document === undefined || rest.length > 0) throw new Error(`${file} must hold one document`);
  return document;
}

async function functionPlans(
  names: readonly string[],
  images: ReadonlyMap<string, string>,
  backends: Backends,
): Promise<FunctionPlan[]> {
  const { database, kafka } = backends;
  const security = kafka.kind === "outside" ? kafka.security : undefined;
  const { pods } = limitsOf(backends);
  const told = [configuration(backends).data, database.kind === "cluster" ? "" : withoutPassword(database.adminUrl)];
  const hash = createHash("sha256").update(JSON.stringify(told)).digest("hex").slice(0, 16);
  const sources = new Set(await yamlFiles("knative/sources"));
  return Promise.all(
    names.map(async (name): Promise<FunctionPlan> => {
      const service = withImage(await oneDocument(`knative/functions/${name}.yaml`), imageOf(images, name));
      // A process reads its environment once: another configuration must be another revision.
      service.spec.template.metadata.annotations["lotus/configuration"] = hash;
      const publishes = service.spec.template.metadata.labels["lotus/database"] === "true";
      service.spec.template.metadata.annotations["autoscaling.knative.dev/max-scale"] = String(pods);
      if (security !== undefined && publishes) secureClient(service, security);
      const sourceFile = `knative/sources/${name}.yaml`;
      if (!sources.has(sourceFile)) return { name, service, source: undefined };
      const source = await oneDocument(sourceFile);
      if (source.kind === "KafkaSource") {
        source.spec.bootstrapServers = brokersOf(backends);
        const prefix = backends.kafkaPrefix ?? "";
        source.spec.topics = source.spec.topics.map((topic: string) => prefix + topic);
        source.spec.consumerGroup = prefix + source.spec.consumerGroup;
        if (security !== undefined) secureSource(source, security);
      }
      return { name, service, source };
    }),
  );
}

/**
 * Makes the plan.
 * @param names of the functions to deploy
 * @param images by name: the full reference of each function's and each program's image
 */
export async function makePlan(
  names: readonly string[],
  images: ReadonlyMap<string, string>,
  backends: Backends,
): Promise<ClusterPlan> {
  const { database, kafka } = backends;
  const topics = withImage(await oneDocument("knative/platform/jobs/topics.yaml"), imageOf(images, "topics"));
  // A Kafka that is there already has at least as many brokers as were named.
  topics.spec.template.spec.containers[0].args.push(
    "--replication",
    String(kafka.kind === "cluster" ? kafka.brokers : kafka.hosts.length >= 3 ? 3 : 1),
  );
  if (kafka.kind === "outside" && kafka.security !== undefined) secureClient(topics, kafka.security);
  const functions = await functionPlans(names, images, backends);
  const migrate = withImage(await readMigrateJob(), imageOf(images, "migrate"));
  const withDatabase = functions.filter(
    ({ service }) => service.spec.template.metadata.labels["lotus/database"] === "true",
  );
  const { pods, pool } = limitsOf(backends);
  const { args } = migrate.spec.template.spec.containers[0];
  // A pooler holds the connections to the server, and limits them itself.
  if (backends.pooler !== undefined) args.push("--pooler", backends.pooler);
  else args.push("--connections", writeBudget(clusterBudget(withDatabase.length, pods, pool)));
  const kafkaFile = kafka.kind === "cluster" && kafka.brokers === 3 ? "kafka-3/kafka.yaml" : "kafka/kafka.yaml";
  return {
    namespace: await readDocuments("knative/platform/namespace.yaml"),
    platform: [
      configuration(backends),
      ...(await readDocuments("knative/platform/network-policies.yaml")),
      ...policiesForOutside(backends),
      ...(kafka.kind === "cluster" ? await readDocuments(`knative/platform/${kafkaFile}`) : []),
      ...(database.kind === "cluster" ? await readDocuments("knative/platform/postgres.yaml") : []),
    ],
    migrate,
    topics,
    functions,
    routes: await readDocuments("knative/routes.yaml"),
    metrics: await readDocuments("knative/platform/metrics.yaml"),
  };
}
