/** Everything that a deployment applies, as data: generated Services, the files of knative/platform, and an environment. */
import { createHash } from "node:crypto";
import { connectionBudget, writeBudget } from "../database/connections.ts";
import { knativeService, routes, scaleOf, source, type Target } from "../generate/knative.ts";
import type { LotusFunction } from "../project/functions.ts";
import { type Backends, brokersOf, configuration, limitsOf } from "./backends.ts";
import type { Environment } from "./environment.ts";
import { type JobName, readJob, WITH_KAFKA } from "./jobs.ts";
import { secureClient, secureSource } from "./kafka-security.ts";
import { type KubernetesObject, readDocuments } from "./kubectl.ts";

/** The image of a function or a program. */
export interface ImageUse {
  readonly reference: string;
  /** A hash of the files that this function or program uses. */
  readonly content: string;
  /** The commit that the image was built from. */
  readonly commit?: string;
  /** The architectures of the image, as Kubernetes names them. */
  readonly architectures?: readonly string[];
}

export interface FunctionPlan {
  readonly name: string;
  readonly kind: "trigger" | "endpoint";
  readonly service: KubernetesObject;
  /** The source that calls a trigger. The dead-letter trigger has none. */
  readonly source: KubernetesObject | undefined;
  /** For a function whose pods stay without requests. */
  readonly disruptionBudget: KubernetesObject | undefined;
}

export interface ClusterPlan {
  readonly namespace: readonly KubernetesObject[];
  /** Policies, configuration, service account. */
  readonly platform: readonly KubernetesObject[];
  /** Kafka and Postgres of the namespace. */
  readonly backends: readonly KubernetesObject[];
  readonly migrate: KubernetesObject;
  readonly topics: KubernetesObject;
  /** Runs after `migrate` and `topics`, and before functions change. */
  readonly preflight: KubernetesObject;
  readonly functions: readonly FunctionPlan[];
  readonly routes: readonly KubernetesObject[];
  readonly metrics: readonly KubernetesObject[];
}

/** Everything that decides a plan. */
export interface PlanInput {
  /** All functions of the checkout. */
  readonly all: readonly LotusFunction[];
  /** The names of the functions to deploy. */
  readonly names: readonly string[];
  /** By name of the function or program. */
  readonly images: ReadonlyMap<string, ImageUse>;
  readonly environment: Environment;
  readonly backends: Backends;
  /** The version of Lotus, for labels. */
  readonly version: string;
}

const HASH_CHARACTERS = 8;

function hashOf(value: unknown): string {
  return createHash("sha256").update(JSON.stringify(value)).digest("hex");
}

/** Returns where the objects of an environment are. */
function targetOf({ namespace, host, clusterDomain, ingress, tls }: Environment): Target {
  const certificate = tls === undefined ? undefined : "secret" in tls ? tls.secret : CERTIFICATE;
  const { namespace: gateway = "kourier-system", service = "kourier-internal", trustedProxies = 1 } = ingress;
  return {
    namespace,
    host,
    clusterDomain,
    ingress: { namespace: gateway, service, trustedProxies },
    ...(certificate !== undefined && { certificate }),
  };
}

/** The Secret that cert-manager writes. */
const CERTIFICATE = "lotus-tls";

function certificateFor({ namespace, host, tls }: Environment): KubernetesObject[] {
  if (tls === undefined || "secret" in tls) return [];
  return [
    {
      apiVersion: "cert-manager.io/v1",
      kind: "Certificate",
      metadata: { name: CERTIFICATE, namespace },
      spec: { secretName: CERTIFICATE, dnsNames: [host], issuerRef: { name: tls.issuer, kind: tls.kind } },
    },
  ];
}

/** Adds namespace and common labels to a document of knative/. Changes it. */
function place(
  document: KubernetesObject,
  { environment, version }: Pick<PlanInput, "environment" | "version">,
): KubernetesObject {
  const { metadata } = document as { metadata: Record<string, unknown> };
  if (document.kind === "Namespace") metadata.name = environment.namespace;
  else metadata.namespace = environment.namespace;
  metadata.labels = {
    ...(metadata.labels as object),
    "app.kubernetes.io/part-of": "lotus",
    "app.kubernetes.io/instance": environment.name,
    "app.kubernetes.io/version": version,
  };
  if (document.kind === "NetworkPolicy") renameNamespaces(document.spec, environment);
  return document;
}

/** Replaces the default namespaces of Kourier and Knative below a value by those of the environment. */
// biome-ignore lint/suspicious/noExplicitAny: any part of a policy
function renameNamespaces(value: any, { ingress, servingNamespace, eventingNamespace }: Environment): void {
  const names: Record<string, string> = {
    "kourier-system": ingress.namespace ?? "kourier-system",
    "knative-serving": servingNamespace,
    "knative-eventing": eventingNamespace,
  };
  const walk = (node: unknown): unknown => {
    if (typeof node === "string") return names[node] ?? node;
    if (Array.isArray(node)) return [...new Set(node.map(walk))];
    if (typeof node !== "object" || node === null) return node;
    for (const [key, inner] of Object.entries(node)) (node as Record<string, unknown>)[key] = walk(inner);
    return node;
  };
  walk(value);
}

/** Sets image, pull secrets and service account of a pod. Changes the object. */
function complete(object: KubernetesObject, image: ImageUse, args: readonly string[], environment: Environment): void {
  const { spec } = object.spec.template;
  const [container] = spec.containers;
  container.image = image.reference;
  container.args = args;
  spec.serviceAccountName = environment.serviceAccount.name ?? "lotus";
  if (environment.pullSecrets.length > 0) spec.imagePullSecrets = environment.pullSecrets.map((name) => ({ name }));
}

function imageOf(images: ReadonlyMap<string, ImageUse>, name: string): ImageUse {
  const image = images.get(name);
  if (image === undefined) throw new Error(`The plan has no image for ${name}.`);
  return image;
}

function portOf(address: string): number {
  return Number(address.slice(address.lastIndexOf(":") + 1));
}

function policy(name: string, labels: Record<string, string>, ports: readonly number[]): KubernetesObject {
  return {
    apiVersion: "networking.k8s.io/v1",
    kind: "NetworkPolicy",
    metadata: { name },
    spec: {
      podSelector: { matchLabels: labels },
      policyTypes: ["Egress"],
      egress: [{ ports: [...new Set(ports)].map((port) => ({ protocol: "TCP", port })) }],
    },
  };
}

const HTTP_PORT = 80;
const HTTPS_PORT = 443;
const POSTGRES_PORT = 5432;

/** Policies that allow functions and jobs to reach servers outside the namespace: their ports, at any address. */
function policiesForOutside({ database, kafka, pooler }: Backends, { tracing }: Environment): KubernetesObject[] {
  const kafkaPorts = kafka.kind === "outside" ? kafka.hosts.map(portOf) : [];
  const databasePort = database.kind === "cluster" ? undefined : Number(new URL(database.url).port || POSTGRES_PORT);
  const poolerPorts = pooler === undefined ? [] : [Number(new URL(pooler).port || POSTGRES_PORT)];
  const direct = databasePort === undefined ? [] : [database.kind === "neon" ? HTTPS_PORT : databasePort];
  const collector = tracing && new URL(tracing.endpoint);
  const tracingPorts = collector
    ? [Number(collector.port || (collector.protocol === "http:" ? HTTP_PORT : HTTPS_PORT))]
    : [];
  const functionPorts = [...kafkaPorts, ...(pooler === undefined ? direct : poolerPorts)];
  const jobPorts = [...kafkaPorts, ...poolerPorts, ...direct, ...(databasePort === undefined ? [] : [databasePort])];
  return [
    ...(functionPorts.length > 0 ? [policy("functions-outside", { "lotus/database": "true" }, functionPorts)] : []),
    ...(tracingPorts.length > 0
      ? [policy("functions-tracing", { "app.kubernetes.io/component": "function" }, tracingPorts)]
      : []),
    ...(jobPorts.length > 0 ? [policy("jobs-outside", { "app.kubernetes.io/component": "job" }, jobPorts)] : []),
  ];
}

/** Returns the scale of a function in an environment. --pods and --pool are upper limits. */
function scaleIn(fn: LotusFunction, { scale }: Environment, limits: Backends["limits"]) {
  const chosen = scaleOf(fn, scale.default ?? {}, fn.description.scale ?? {}, scale[fn.name] ?? {});
  const maxPods = Math.min(chosen.maxPods, limits?.pods ?? chosen.maxPods);
  const minPods = Math.min(chosen.minPods, maxPods);
  return { ...chosen, maxPods, minPods, connections: Math.min(chosen.connections, limits?.pool ?? chosen.connections) };
}

function isOnDatabase(service: KubernetesObject): boolean {
  return service.spec.template.metadata.labels["lotus/database"] === "true";
}

/** Returns `spec.traffic`, always in full: `kn service apply` keeps a split that the file does not mention. */
function trafficOf(name: string, { traffic }: Environment): object[] {
  const splits = traffic[name] ?? [{ revision: "latest", percent: 100 }];
  return splits.map(({ revision, percent, ...rest }) => ({
    ...(revision === "latest" ? { latestRevision: true } : { latestRevision: false, revisionName: revision }),
    percent,
    ...rest,
  }));
}

function disruptionBudget(name: string, minPods: number): KubernetesObject | undefined {
  if (minPods === 0) return undefined;
  return {
    apiVersion: "policy/v1",
    kind: "PodDisruptionBudget",
    metadata: { name },
    // A drain of a node may end one pod at a time. Requiring one pod would block the drain of a single pod.
    spec: { maxUnavailable: 1, selector: { matchLabels: { "serving.knative.dev/service": name } } },
  };
}

function functionPlans(input: PlanInput): FunctionPlan[] {
  const { all, names, images, environment, backends } = input;
  const { database, kafka } = backends;
  const security = kafka.kind === "outside" ? kafka.security : undefined;
  const target = targetOf(environment);
  const told = [configuration(backends, environment).data, database.kind === "cluster" ? "" : database.url];
  const hash = hashOf(told).slice(0, 2 * HASH_CHARACTERS);
  const sink = all.find(({ description }) => "deadLetters" in description);
  return all
    .filter(({ name }) => names.includes(name))
    .map((fn): FunctionPlan => {
      const { name } = fn;
      const scale = scaleIn(fn, environment, backends.limits);
      const service = knativeService(fn, target, scale) as KubernetesObject;
      const image = imageOf(images, name);
      complete(service, image, [`/app/${name}/function.cjs`], environment);
      const { metadata } = service.spec.template;
      // A process reads its environment once, so another configuration needs another revision.
      metadata.annotations["lotus/configuration"] = hash;
      metadata.annotations["lotus/content"] = image.content;
      metadata.labels["app.kubernetes.io/instance"] = environment.name;
      const annotations: Record<string, string> = {
        ...(environment.rolloutSeconds > 0 && {
          "serving.knative.dev/rollout-duration": `${environment.rolloutSeconds}s`,
        }),
        ...(image.commit !== undefined && { "lotus/commit": image.commit }),
      };
      if (Object.keys(annotations).length > 0) (service.metadata as { annotations?: object }).annotations = annotations;
      service.spec.traffic = trafficOf(name, environment);
      const [container] = service.spec.template.spec.containers;
      if (environment.tracing !== undefined)
        container.env.push(
          { name: "OTEL_EXPORTER_OTLP_ENDPOINT", value: environment.tracing.endpoint },
          { name: "OTEL_TRACES_SAMPLER", value: "parentbased_traceidratio" },
          { name: "OTEL_TRACES_SAMPLER_ARG", value: String(environment.tracing.sampleRatio) },
        );
      if (security !== undefined && isOnDatabase(service)) secureClient(service, security);
      const budget = disruptionBudget(name, scale.minPods);
      const itsSource = source(fn, sink?.name ?? "", target) as KubernetesObject | undefined;
      if (itsSource?.kind === "KafkaSource") {
        const { spec } = itsSource;
        const prefix = backends.kafkaPrefix ?? "";
        spec.bootstrapServers = brokersOf(backends, environment);
        spec.topics = spec.topics.map((topic: string) => prefix + topic);
        spec.consumerGroup = prefix + spec.consumerGroup;
        spec.consumers = environment.kafka.consumers;
        if (security !== undefined) secureSource(itsSource, security);
      }
      return {
        name,
        kind: fn.kind === "endpoint" ? "endpoint" : "trigger",
        service: place(service, input),
        source: itsSource && place(itsSource, input),
        disruptionBudget: budget && place(budget, input),
      };
    });
}

/** Adds a hash of the content to the name of a Job, because Kubernetes refuses to change a Job. Changes it. */
function nameByContent(job: KubernetesObject): KubernetesObject {
  const { metadata, spec } = job;
  (metadata as { name: string }).name = `${metadata.name}-${hashOf(spec).slice(0, HASH_CHARACTERS)}`;
  return job;
}

async function jobOf(name: JobName, args: readonly string[], input: PlanInput): Promise<KubernetesObject> {
  const { environment, images, backends } = input;
  const job = await readJob(name);
  const image = imageOf(images, name);
  const [container] = job.spec.template.spec.containers;
  const [, ...given] = container.args as string[];
  complete(job, image, [`/app/${name}/program.mjs`, ...given, ...args], environment);
  // The Job reads the ConfigMap: another configuration is another Job.
  job.spec.template.metadata.annotations = {
    "lotus/configuration": hashOf(configuration(backends, environment).data).slice(0, 2 * HASH_CHARACTERS),
    "lotus/content": image.content,
  };
  job.spec.template.metadata.labels["app.kubernetes.io/instance"] = environment.name;
  const { kafka } = backends;
  if (WITH_KAFKA.includes(name) && kafka.kind === "outside" && kafka.security !== undefined)
    secureClient(job, kafka.security);
  return job;
}

/** Returns the preflight Job. Its name changes with every function, so that it runs before each rollout. */
async function preflightJob(functions: readonly FunctionPlan[], input: PlanInput): Promise<KubernetesObject> {
  const job = await jobOf("preflight", [], input);
  const services = functions.map(({ service }) => service.spec);
  job.spec.template.metadata.annotations["lotus/functions"] = hashOf(services).slice(0, 2 * HASH_CHARACTERS);
  return nameByContent(place(job, input));
}

function topicArguments({ backends, environment }: PlanInput): string[] {
  const { partitions, replication, retentionBytes } = environment.kafka;
  // Without a number the topics program counts the brokers of the cluster.
  const copies = replication ?? (backends.kafka.kind === "cluster" ? backends.kafka.brokers : undefined);
  return [
    ...(copies === undefined ? [] : ["--replication", String(copies)]),
    ...(partitions === undefined ? [] : ["--partitions", String(partitions)]),
    ...(retentionBytes === undefined ? [] : ["--retention-bytes", String(retentionBytes)]),
  ];
}

/** Connections that the functions of the checkout may open in an environment, each at its full scale. */
export function budgetIn({ all, environment, backends }: Pick<PlanInput, "all" | "environment" | "backends">) {
  const scales = all
    .filter((fn) => isOnDatabase(knativeService(fn) as KubernetesObject))
    .map((fn) => scaleIn(fn, environment, { pool: limitsOf(backends).pool, ...backends.limits }));
  return connectionBudget(scales.map(({ maxPods, connections }) => ({ pods: maxPods, pool: connections })));
}

/** Returns the PodMonitor and its policy, with the labels of the environment. */
async function metricsOf(input: PlanInput): Promise<KubernetesObject[]> {
  const documents = await readDocuments("knative/platform/metrics.yaml");
  for (const document of documents) {
    place(document, input);
    if (document.kind === "PodMonitor")
      Object.assign(document.metadata.labels ?? {}, input.environment.metrics?.labels);
  }
  return documents;
}

/** Returns the Namespace of an environment; an empty list when an administrator makes it. */
export async function namespaceOf(input: Pick<PlanInput, "environment" | "version">): Promise<KubernetesObject[]> {
  if (!input.environment.createNamespace) return [];
  return (await readDocuments("knative/platform/namespace.yaml")).map((document) => place(document, input));
}

/** Makes the plan of a deployment. */
export async function makePlan(input: PlanInput): Promise<ClusterPlan> {
  const { environment, backends } = input;
  const { database, kafka } = backends;
  const placed = async (file: string) =>
    (await readDocuments(`knative/platform/${file}`)).map((document) => place(document, input));
  // A pooler keeps the connections to the server, and limits them itself.
  const budget =
    backends.pooler !== undefined ? ["--pooler", backends.pooler] : ["--connections", writeBudget(budgetIn(input))];
  const kafkaFile = kafka.kind === "cluster" && kafka.brokers === 3 ? "kafka-3/kafka.yaml" : "kafka/kafka.yaml";
  const [account] = await placed("service-account.yaml");
  if (account === undefined) throw new Error("knative/platform/service-account.yaml is empty.");
  const { name = "lotus", annotations = {} } = environment.serviceAccount;
  Object.assign(account.metadata, { name, ...(Object.keys(annotations).length > 0 && { annotations }) });
  const functions = functionPlans(input);
  return {
    namespace: await namespaceOf(input),
    platform: [
      place(configuration(backends, environment), input),
      account,
      ...(await placed("network-policies.yaml")),
      ...policiesForOutside(backends, environment).map((document) => place(document, input)),
    ],
    backends: [
      ...(kafka.kind === "cluster" ? await placed(kafkaFile) : []),
      ...(database.kind === "cluster" ? await placed("postgres.yaml") : []),
    ],
    migrate: nameByContent(place(await jobOf("migrate", budget, input), input)),
    topics: nameByContent(place(await jobOf("topics", topicArguments(input), input), input)),
    preflight: await preflightJob(functions, input),
    functions,
    routes: [...certificateFor(environment), ...(routes(input.all, targetOf(environment)) as KubernetesObject[])].map(
      (document) => place(document, input),
    ),
    metrics: await metricsOf(input),
  };
}
