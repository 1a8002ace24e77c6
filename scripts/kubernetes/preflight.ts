/** Checks a cluster before anything changes. One error contains a sentence for each fault. */

import { Refusal } from "../cli/errors.ts";
import { attempt } from "../process/run.ts";
import type { Backends } from "./backends.ts";
import type { Environment } from "./environment.ts";
import type { Loading } from "./images.ts";
import { get, type KubernetesObject, list } from "./kubectl.ts";
import { architectureFaults } from "./lock.ts";
import { BUILDERS, type Builder, type DeployOptions } from "./options.ts";
import type { ImageUse } from "./plan.ts";

/** Kourier's longest-path-first routing came with 1.21; Kubernetes' own check is stricter and newer. */
const KNATIVE_OLDEST = "1.21";
const KN_OLDEST = "1.9";

const CRDS = {
  "services.serving.knative.dev": "Knative Serving",
  "ingresses.networking.internal.knative.dev": "Knative Serving",
  "pingsources.sources.knative.dev": "Knative Eventing",
  "kafkasources.sources.knative.dev": "Knative's KafkaSource",
};

/** CPU that a pod of a function asks for together with its queue-proxy; in thousandths. */
const FUNCTION_CPU = 50;
/** KafkaSource's dispatcher is started for the first source. */
const DISPATCHER_CPU = 1000;

/** The results of the checks. */
export interface Findings {
  /** How images get into the cluster. Undefined: the options do not say, and the cluster is not a minikube. */
  readonly loading: Loading | undefined;
  /** The profile of minikube. Undefined: another cluster. */
  readonly profile: string | undefined;
  /** Images that every node has. */
  readonly present: ReadonlySet<string>;
  /** The architectures of the nodes, such as amd64. */
  readonly architectures: readonly string[];
  /** Sentences that do not stop the deployment. */
  readonly warnings: readonly string[];
}

function olderThan(version: string, oldest: string): boolean {
  const numbers = (text: string) => text.replace(/^v/, "").split(".").map(Number);
  const [major = 0, minor = 0] = numbers(version);
  const [oldestMajor = 0, oldestMinor = 0] = numbers(oldest);
  return major < oldestMajor || (major === oldestMajor && minor < oldestMinor);
}

async function checkTools(withKn: boolean): Promise<string[]> {
  const wrong: string[] = [];
  const kubectl = await attempt("kubectl", ["version", "--client", "-o", "json"]);
  if (kubectl.code !== 0) wrong.push("kubectl is missing. Install it: https://kubernetes.io/docs/tasks/tools/");
  if (!withKn) return wrong;
  const kn = await attempt("kn", ["version"]);
  const version = /Version:\s*(v[\d.]+)/.exec(kn.stdout)?.[1];
  if (kn.code !== 0)
    wrong.push("kn, Knative's command line, is missing. Install it: https://knative.dev/docs/client/install-kn/");
  else if (version !== undefined && olderThan(version, KN_OLDEST)) {
    wrong.push(`kn is ${version}; Lotus needs ${KN_OLDEST} or newer: https://knative.dev/docs/client/install-kn/`);
  }
  return wrong;
}

async function minikubeProfile(): Promise<string | undefined> {
  const context = (await attempt("kubectl", ["config", "current-context"])).stdout.trim();
  const { code, stdout } = await attempt("minikube", ["profile", "list", "-o", "json"]);
  if (code !== 0) return undefined;
  const { valid = [] } = JSON.parse(stdout) as { valid?: { Name: string }[] };
  return valid.find(({ Name }) => Name === context)?.Name;
}

async function works(builder: Builder, profile: string | undefined): Promise<boolean> {
  if (builder === "minikube") return profile !== undefined;
  return (await attempt(builder, builder === "docker" ? ["version"] : ["--version"])).code === 0;
}

/**
 * Finds a program that builds images. Only a deployment that builds calls it.
 * @throws {Refusal} when no program answers
 */
export async function findBuilder(
  options: Pick<DeployOptions, "builder" | "registry" | "loadCommand">,
  profile: string | undefined,
): Promise<Builder> {
  for (const builder of options.builder === undefined ? BUILDERS : [options.builder]) {
    // The images of minikube's builder stay in minikube.
    if (builder === "minikube" && (options.registry ?? options.loadCommand)) continue;
    if (await works(builder, profile)) return builder;
  }
  if (options.builder === "minikube" && (options.registry ?? options.loadCommand))
    throw new Refusal(
      "An image that minikube builds stays in minikube. With --registry or --load-command build with docker or buildah.",
    );
  if (options.builder !== undefined)
    throw new Refusal(`--builder names ${options.builder}, which does not answer. Install and start it.`);
  throw new Refusal(
    "No program can build the image: docker does not run, and minikube and buildah do not answer. Install one of them, " +
      "or deploy an existing image with a separate environment and knative/images.lock.yaml.",
  );
}

async function checkKnative({ namespace, ingress, servingNamespace }: Environment): Promise<string[]> {
  const wrong: string[] = [];
  const advice = "npx lotus cluster sets up minikube with it; for another cluster: https://knative.dev/docs/install/";
  const { stdout } = await attempt("kubectl", ["get", "crd", "-o", "name"]);
  const present = new Set(stdout.split("\n").map((line) => line.slice(line.indexOf("/") + 1)));
  const missing = Object.entries(CRDS).flatMap(([crd, what]) => (present.has(crd) ? [] : [what]));
  for (const what of new Set(missing)) wrong.push(`${what} is not installed in this cluster. ${advice}`);
  if (missing.includes("Knative Serving")) return wrong;

  const serving = await get("namespace", servingNamespace, "");
  const version = serving?.metadata.labels?.["app.kubernetes.io/version"];
  if (version !== undefined && olderThan(version, KNATIVE_OLDEST)) {
    wrong.push(`Knative Serving is ${version} here; Lotus needs ${KNATIVE_OLDEST} or newer. ${advice}`);
  }
  const { namespace: gateway = "kourier-system", service = "kourier-internal" } = ingress;
  if ((await get("service", service, gateway)) === undefined) {
    wrong.push(
      `Kourier has no Service ${service} in the namespace ${gateway}. If it is in another one, set \`ingress.namespace\` of the environment. ${advice}`,
    );
  }
  const { code, stdout: answer } = await attempt("kubectl", [
    "auth",
    "can-i",
    "create",
    "ingresses.networking.internal.knative.dev",
    "-n",
    namespace,
  ]);
  if (code !== 0 && answer.trim() === "no") {
    wrong.push(
      "Your account may not create Knative ingresses (networking.internal.knative.dev): deploy as a cluster administrator.",
    );
  }
  return wrong;
}

/** 250m -> 250, 1 -> 1000. */
function thousandths(cpu: unknown): number {
  const text = String(cpu ?? "0");
  return text.endsWith("m") ? Number(text.slice(0, -1)) : Number(text) * 1000;
}

function requested(pod: KubernetesObject): number {
  const containers: { resources?: { requests?: { cpu?: string } } }[] = pod.spec.containers;
  return containers.reduce((sum, { resources }) => sum + thousandths(resources?.requests?.cpu), 0);
}

/** Compares the free CPUs of the nodes with the requests of the pods. */
async function checkCpu(
  functions: number,
  { kafka, database }: Backends,
  all: readonly KubernetesObject[],
): Promise<string[]> {
  const nodes = all.filter(({ spec }) => spec.unschedulable !== true);
  const pods = (await list("pods", "")).filter(({ status }) => !["Succeeded", "Failed"].includes(status?.phase));
  const named = (label: string) =>
    pods.filter(({ metadata }) => metadata.labels?.["app.kubernetes.io/name"] === label).length;
  const allocatable = nodes.reduce((sum, { status }) => sum + thousandths(status?.allocatable?.cpu), 0);
  const free = allocatable - pods.reduce((sum, pod) => sum + requested(pod), 0);
  const dispatched = pods.some(({ metadata }) => metadata.name.startsWith("kafka-source-dispatcher"));
  const controlled = pods.some(({ metadata }) => metadata.name.startsWith("kafka-controller"));
  const needed =
    functions * FUNCTION_CPU +
    (kafka.kind === "cluster" ? 250 * (kafka.brokers - named("kafka")) : 0) +
    (database.kind === "cluster" && named("postgres") === 0 ? 100 : 0) +
    (controlled && !dispatched ? DISPATCHER_CPU : 0);
  if (free >= needed) return [];
  const cpus = (value: number) => (value / 1000).toFixed(2);
  return [
    `The cluster has ${cpus(Math.max(free, 0))} CPUs left, and the pods of this deployment ask for ${cpus(needed)}. ` +
      "Give it more (minikube: `npx lotus cluster --cpus 6`), or stop other pods.",
  ];
}

/** Metrics need two settings that belong to the whole cluster. Lotus checks them and does not change them. */
async function checkMetrics(
  options: DeployOptions,
  { metrics, servingNamespace }: Environment,
): Promise<{ wrong: string[]; warnings: string[] }> {
  if (options.metrics === false || (options.metrics === undefined && metrics === undefined))
    return { wrong: [], warnings: [] };
  const wrong =
    (await get("crd", "podmonitors.monitoring.coreos.com", "")) === undefined
      ? [
          "Metrics need the Prometheus operator, and this cluster has no PodMonitor. Install kube-prometheus-stack: https://prometheus-community.github.io/helm-charts",
        ]
      : [];
  const observability = await get("configmap", "config-observability", servingNamespace);
  const protocol = observability?.data?.["request-metrics-protocol"];
  const warnings =
    protocol === "prometheus"
      ? []
      : [
          `Pods measure no requests until an administrator sets request-metrics-protocol: prometheus in the ConfigMap config-observability of ${servingNamespace}.`,
        ];
  return { wrong, warnings };
}

function presentImages(nodes: readonly KubernetesObject[]): Set<string> {
  const held = nodes.map(({ status }) => {
    const images: { names?: string[] }[] = status?.images ?? [];
    return new Set(images.flatMap(({ names }) => names ?? []).map((name) => name.replace(/^docker\.io\//, "")));
  });
  return new Set([...(held[0] ?? [])].filter((name) => held.every((names) => names.has(name))));
}

/** Returns the nodes. Undefined: this account may not list them. */
async function readNodes(): Promise<KubernetesObject[] | undefined> {
  const { code, stdout, stderr } = await attempt("kubectl", ["get", "nodes", "-A", "-o", "json"]);
  if (code === 0) return (JSON.parse(stdout) as { items: KubernetesObject[] }).items;
  if (/forbidden/i.test(stderr)) return undefined;
  throw new Refusal(`kubectl cannot list the nodes: ${stderr.trim()}`);
}

/**
 * Checks the programs and the connection to a cluster.
 * @throws {Refusal} when one is missing
 */
export async function checkReachable({ withKn }: { withKn: boolean }): Promise<void> {
  const wrong = await checkTools(withKn);
  if (wrong.length === 0) {
    const { code, stderr } = await attempt("kubectl", ["get", "namespaces", "-o", "name", "--request-timeout=10s"]);
    const said = stderr.trim().split("\n").at(-1);
    if (code !== 0)
      wrong.push(
        `kubectl reaches no cluster (${said}). Start one: npx lotus cluster, or \`minikube start\` if you have one.`,
      );
  }
  if (wrong.length > 0) throw new Refusal(wrong.join("\n"));
}

/** Node's names of architectures, as Kubernetes names them. */
const ARCHITECTURES: Readonly<Record<string, string>> = {
  x64: "amd64",
  arm64: "arm64",
  s390x: "s390x",
  ppc64: "ppc64le",
};

/**
 * Checks everything else.
 * @param locked the images of the lock file. Undefined: the deployment builds its image, or the file is missing
 * @throws {Refusal} with a sentence for each fault
 */
export async function check(
  options: DeployOptions,
  functions: number,
  backends: Backends,
  environment: Environment,
  locked: ReadonlyMap<string, ImageUse> | undefined,
): Promise<Findings> {
  const profile = await minikubeProfile();
  let loading: Loading | undefined;
  if (options.registry !== undefined) loading = { kind: "registry" };
  else if (options.loadCommand !== undefined) loading = { kind: "command", command: options.loadCommand };
  else if (profile !== undefined) loading = { kind: "minikube", profile };
  const nodes = await readNodes();
  const found = new Set((nodes ?? []).map(({ status }) => status?.nodeInfo?.architecture as string | undefined));
  const own = ARCHITECTURES[process.arch] ?? process.arch;
  const architectures = [...found].filter((name) => name !== undefined).sort();
  const wrong = await checkKnative(environment);
  const missing = architectures.filter((name) => options.architectures?.includes(name) === false);
  if (missing.length > 0)
    wrong.push(`The cluster has nodes of the architecture ${missing.join(", ")}, and --platform does not name it.`);
  if (locked !== undefined) wrong.push(...architectureFaults(architectures, locked));
  const metrics = await checkMetrics(options, environment);
  wrong.push(...metrics.wrong);
  const cpu = nodes === undefined ? [] : await checkCpu(functions, backends, nodes);
  // A cluster outside this machine may add nodes by itself.
  if (profile !== undefined) wrong.push(...cpu);
  if (wrong.length > 0) throw new Refusal(wrong.join("\n"));
  return {
    loading,
    profile,
    present: presentImages(nodes ?? []),
    architectures: architectures.length > 0 ? architectures : [own],
    warnings: [...metrics.warnings, ...(profile === undefined ? cpu : [])],
  };
}
