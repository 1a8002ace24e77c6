/** What must be there before anything is changed. All that is missing is said at once, a sentence each. */

import { Refusal } from "../cli/errors.ts";
import { attempt } from "../process/run.ts";
import type { Backends } from "./backends.ts";
import type { Loading } from "./images.ts";
import { get, type KubernetesObject, list, NAMESPACE } from "./kubectl.ts";
import { BUILDERS, type Builder, type DeployOptions } from "./options.ts";

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

export interface Environment {
  readonly builder: Builder;
  readonly loading: Loading;
  readonly profile: string;
  /** Images that every node has already. */
  readonly present: ReadonlySet<string>;
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

async function findBuilder(options: DeployOptions, profile: string | undefined): Promise<Builder | string> {
  for (const builder of options.builder === undefined ? BUILDERS : [options.builder]) {
    // What minikube builds is in minikube, and nowhere else.
    if (builder === "minikube" && options.builder === undefined && (options.registry ?? options.loadCommand)) continue;
    if (await works(builder, profile)) return builder;
  }
  if (options.builder !== undefined)
    return `${options.builder} was asked for by --builder, and does not answer. Is it installed, and does it run?`;
  return "There is nothing to build images with: neither docker (running), minikube nor buildah answers. Install one of them.";
}

async function checkKnative(): Promise<string[]> {
  const wrong: string[] = [];
  const advice = "npx lotus cluster sets up minikube with it; for another cluster: https://knative.dev/docs/install/";
  const { stdout } = await attempt("kubectl", ["get", "crd", "-o", "name"]);
  const present = new Set(stdout.split("\n").map((line) => line.slice(line.indexOf("/") + 1)));
  const missing = Object.entries(CRDS).flatMap(([crd, what]) => (present.has(crd) ? [] : [what]));
  for (const what of new Set(missing)) wrong.push(`${what} is not installed in this cluster. ${advice}`);
  if (missing.includes("Knative Serving")) return wrong;

  const serving = await get("namespace", "knative-serving", "");
  const version = serving?.metadata.labels?.["app.kubernetes.io/version"];
  if (version !== undefined && olderThan(version, KNATIVE_OLDEST)) {
    wrong.push(`Knative Serving is ${version} here; Lotus needs ${KNATIVE_OLDEST} or newer. ${advice}`);
  }
  if ((await get("service", "kourier-internal", "kourier-system")) === undefined) {
    wrong.push(`Kourier, the gateway, is not installed in this cluster. ${advice}`);
  }
  const { code, stdout: answer } = await attempt("kubectl", [
    "auth",
    "can-i",
    "create",
    "ingresses.networking.internal.knative.dev",
    "-n",
    NAMESPACE,
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

async function checkCpu(functions: number, { kafka, database }: Backends): Promise<string[]> {
  const nodes = (await list("nodes", "")).filter(({ spec }) => spec.unschedulable !== true);
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
      "Give it more (minikube: `npx lotus cluster --cpus 6`), or stop what else runs there.",
  ];
}

async function checkMetrics(options: DeployOptions): Promise<string[]> {
  if (options.metrics !== true) return [];
  if ((await get("crd", "podmonitors.monitoring.coreos.com", "")) !== undefined) return [];
  return [
    "--metrics needs the Prometheus operator, whose PodMonitor is not known here. Install kube-prometheus-stack first: https://prometheus-community.github.io/helm-charts",
  ];
}

async function presentImages(): Promise<Set<string>> {
  const nodes = await list("nodes", "");
  const held = nodes.map(({ status }) => {
    const images: { names?: string[] }[] = status?.images ?? [];
    return new Set(images.flatMap(({ names }) => names ?? []).map((name) => name.replace(/^docker\.io\//, "")));
  });
  return new Set([...(held[0] ?? [])].filter((name) => held.every((names) => names.has(name))));
}

/**
 * Says at once whether there are the programs, and a cluster to ask at all.
 * @throws {Refusal} when there are not
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

/**
 * Checks everything else.
 * @throws {Refusal} with a sentence for each thing that is not as it must be
 */
export async function check(options: DeployOptions, functions: number, backends: Backends): Promise<Environment> {
  const profile = await minikubeProfile();
  const builder = await findBuilder(options, profile);
  const wrong = (BUILDERS as readonly string[]).includes(builder) ? [] : [builder];
  let loading: Loading | undefined;
  if (options.registry !== undefined) loading = { kind: "registry" };
  else if (options.loadCommand !== undefined) loading = { kind: "command", command: options.loadCommand };
  else if (profile !== undefined) loading = { kind: "minikube", profile };
  else {
    wrong.push(
      "This cluster is not a minikube, so say how it gets images: --registry HOST/PATH, or --load-command 'CMD {image}' " +
        "(kind: 'kind load docker-image {image}').",
    );
  }
  if (builder === "minikube" && loading !== undefined && loading.kind !== "minikube") {
    wrong.push(
      "What minikube builds stays in minikube. With --registry or --load-command build with docker or buildah.",
    );
  }
  wrong.push(...(await checkKnative()), ...(await checkCpu(functions, backends)), ...(await checkMetrics(options)));
  if (wrong.length > 0 || loading === undefined) throw new Refusal(wrong.join("\n"));
  return { builder: builder as Builder, loading, profile: profile ?? "", present: await presentImages() };
}
