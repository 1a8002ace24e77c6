/** lotus deploy: deploys Lotus to the cluster that kubectl reaches. */
import { PROGRAM_NAMES, prepareImages } from "../build/image-files.ts";
import { command } from "../cli/command.ts";
import { Refusal } from "../cli/errors.ts";
import { print, step } from "../cli/output.ts";
import { staleFiles } from "../generate/files.ts";
import { type Backends, choose, type Previous } from "../kubernetes/backends.ts";
import { buildImages, type Image, loadImages, referenceOf } from "../kubernetes/images.ts";
import {
  apply,
  changesIn,
  get,
  list,
  NAMESPACE,
  runJob,
  secretValue,
  toYaml,
  waitForRollout,
} from "../kubernetes/kubectl.ts";
import { DEPLOY_OPTIONS, type DeployOptions, readOptions } from "../kubernetes/options.ts";
import { type ClusterPlan, makePlan } from "../kubernetes/plan.ts";
import { check, checkReachable, type Environment } from "../kubernetes/preflight.ts";
import { applyFunctions } from "../kubernetes/services.ts";
import { summary } from "../kubernetes/summary.ts";
import { run } from "../process/run.ts";
import { findFunctions } from "../project/functions.ts";
import { ensureSecrets } from "../secrets/cluster.ts";

async function namesToDeploy(wanted: readonly string[]): Promise<string[]> {
  const all = (await findFunctions()).map(({ name }) => name);
  const unknown = wanted.find((name) => !all.includes(name));
  if (unknown !== undefined) throw new Refusal(`There is no function ${unknown}. There are: ${all.join(", ")}.`);
  const stale = await staleFiles();
  if (stale.length > 0)
    throw new Refusal(`Generated files are stale (${stale.join(", ")}). Write them: npm run manifests`);
  return wanted.length === 0 ? all : [...new Set(wanted)];
}

async function previousDeployment(): Promise<Previous> {
  const configuration = await get("configmap", "lotus");
  return {
    configuration: configuration?.data as Record<string, string> | undefined,
    adminUrl: secretValue(await get("secret", "database-admin"), "url"),
  };
}

/** Returns the images to build or load, without the images that every node or the registry has. */
async function missingImages(images: readonly Image[], { present, loading }: Environment): Promise<Image[]> {
  const known = new Set(present);
  if (loading.kind === "registry") {
    for (const service of await list("services.serving.knative.dev")) {
      known.add(service.spec.template.spec.containers[0].image);
    }
  }
  return images.filter(({ reference }) => !known.has(reference));
}

async function applyPlatform(
  plan: ClusterPlan,
  { database, kafka, pooler }: Backends,
  options: DeployOptions,
): Promise<void> {
  await apply(plan.namespace);
  await step("Secrets", async (report) => {
    const made = await ensureSecrets(database, options.kafkaCredentials, {
      pooler,
      authority: options.databaseAuthority,
    });
    report(made.length === 0 ? "all there" : `made ${made.join(", ")}`);
  });
  await step("Platform: policies, configuration, Kafka, Postgres", async (report) => {
    report(changesIn(await apply(plan.platform)));
    if (kafka.kind === "cluster") await waitForRollout("statefulset", "kafka");
    if (database.kind === "cluster") await waitForRollout("statefulset", "postgres");
  });
  await step("Migrations", async (report) => report(await runJob(plan.migrate)));
  await step("Topics", async (report) => report(await runJob(plan.topics)));
}

/** Applies subscribers first: an endpoint may publish an event only when its subscriber understands it. */
async function applyAllFunctions({ functions }: ClusterPlan): Promise<void> {
  const triggers = functions.filter(({ source, name }) => source !== undefined || name === "events-dead-letter");
  const endpoints = functions.filter((entry) => !triggers.includes(entry));
  if (triggers.length > 0) await step("Triggers", (report) => applyFunctions(triggers, report));
  if (endpoints.length > 0) await step("Endpoints", (report) => applyFunctions(endpoints, report));
  const sources = functions.flatMap(({ source }) => source ?? []);
  if (sources.length > 0) {
    await step("Sources", async (report) => {
      report(changesIn(await apply(sources)));
      await waitForSources(sources.map(({ kind, metadata }) => `${kind.toLowerCase()}/${metadata.name}`));
    });
  }
}

/** Where no KafkaSource controller runs, something else delivers: there is no status to wait for. */
async function waitForSources(sources: readonly string[]): Promise<void> {
  const controller = await get("deployment", "kafka-controller", "knative-eventing");
  for (const source of sources) {
    if (source.startsWith("kafkasource/") && controller === undefined) continue;
    await run("kubectl", ["wait", source, "-n", NAMESPACE, "--for=condition=Ready", "--timeout=180s"]);
  }
  // A source is said to be ready before its dispatcher is.
  if (controller !== undefined) await waitForRollout("statefulset", "kafka-source-dispatcher", "knative-eventing");
}

async function applyRoutes(plan: ClusterPlan): Promise<void> {
  await step("Routes", async (report) => {
    report(changesIn(await apply(plan.routes)));
    const name = plan.routes.find(({ kind }) => kind === "Ingress")?.metadata.name ?? "";
    const ingress = `ingresses.networking.internal.knative.dev/${name}`;
    await run("kubectl", ["wait", ingress, "-n", NAMESPACE, "--for=condition=Ready", "--timeout=120s"]);
  });
}

async function switchMetrics(plan: ClusterPlan, on: boolean): Promise<void> {
  await step(`Metrics ${on ? "on" : "off"}`, async () => {
    const data = { "request-metrics-protocol": on ? "prometheus" : "none" };
    const patch = ["patch", "configmap", "config-observability", "-n", "knative-serving", "--type", "merge"];
    await run("kubectl", [...patch, "-p", JSON.stringify({ data })]);
    if (on) await apply(plan.metrics);
    else {
      for (const { kind, metadata } of plan.metrics) {
        if (kind === "PodMonitor" && (await get("crd", "podmonitors.monitoring.coreos.com", "")) === undefined)
          continue;
        await run("kubectl", ["delete", kind, metadata.name, "-n", NAMESPACE, "--ignore-not-found"]);
      }
    }
  });
}

/** Returns the functions on the cluster that the checkout no longer has. A client may still call them. */
async function leftovers(): Promise<string[]> {
  const known = (await findFunctions()).map(({ name }) => name);
  const services = await list("services.serving.knative.dev");
  return services
    .filter(({ spec }) => spec.template.metadata?.labels?.["app.kubernetes.io/part-of"] === "lotus")
    .map(({ metadata }) => metadata.name)
    .filter((name) => !known.includes(name));
}

async function checkAll(options: DeployOptions, names: readonly string[]) {
  await checkReachable({ withKn: true });
  const previous = await previousDeployment();
  if (options.functions.length > 0 && previous.configuration === undefined) {
    throw new Refusal("Lotus is not deployed here yet. Deploy all of it once: npx lotus deploy");
  }
  const backends = choose(options, previous);
  return { backends, environment: await check(options, names.length, backends) };
}

async function planWithImages(
  options: DeployOptions,
  names: readonly string[],
  programs: typeof PROGRAM_NAMES,
  backends: Backends,
): Promise<{ plan: ClusterPlan; images: Image[] }> {
  const tags = await prepareImages(names, programs, options.base);
  const images = [...tags].map(([name, tag]): Image => ({ name, reference: referenceOf(name, tag, options.registry) }));
  const references = new Map(images.map(({ name, reference }) => [name, reference]));
  // For a part of the functions there is no platform to apply, and no image of its programs.
  for (const name of PROGRAM_NAMES) {
    if (!references.has(name)) references.set(name, referenceOf(name, "unbuilt", undefined));
  }
  return { plan: await makePlan(names, references, backends), images };
}

async function deploy(options: DeployOptions): Promise<void> {
  const names = await namesToDeploy(options.functions);
  const everything = options.functions.length === 0;
  if (options.dryRun) {
    const backends = choose(options, { configuration: undefined, adminUrl: undefined });
    const { plan } = await planWithImages(options, names, PROGRAM_NAMES, backends);
    return printPlan(plan, options);
  }
  const { backends, environment } = await step("Checks", () => checkAll(options, names));
  const programs = everything ? PROGRAM_NAMES : [];
  const { plan, images } = await step("Bundles", () => planWithImages(options, names, programs, backends));
  const missing = await missingImages(images, environment);
  const { builder, loading, profile } = environment;
  if (missing.length > 0) {
    await step(`Images with ${builder}`, (report) => buildImages(missing, builder, options.base, profile, report));
    await step(`Loading (${loading.kind})`, (report) => loadImages(missing, builder, loading, report));
  } else print(`Images\n  all ${images.length} are there`);
  if (everything) await applyPlatform(plan, backends, options);
  await applyAllFunctions(plan);
  await applyRoutes(plan);
  if (options.metrics !== undefined) await switchMetrics(plan, options.metrics);
  print(await summary(plan, loading.kind === "minikube" ? profile : undefined, await leftovers()));
}

/** Prints the YAML of a deployment, for --dry-run. Secrets exist in the cluster only. */
function printPlan(plan: ClusterPlan, options: DeployOptions): void {
  const functions = plan.functions.flatMap(({ service, source }) =>
    source === undefined ? [service] : [service, source],
  );
  const platform =
    options.functions.length === 0 ? [...plan.namespace, ...plan.platform, plan.migrate, plan.topics] : [];
  const metrics = options.metrics === true ? plan.metrics : [];
  print(
    "# Secrets are made in the cluster where they are missing: database-admin, database-<service>, public-keys, signing-key.",
  );
  process.stdout.write(toYaml([...platform, ...functions, ...plan.routes, ...metrics]));
}

export default command({
  about: "Deploys Lotus to the cluster that kubectl reaches: images, database, Kafka, functions, sources, routes.",
  usage: "[FUNCTION…]",
  notes: `Safe to repeat: unchanged parts stay. With names of functions, such as order-pay, it deploys only these.
The cluster keeps where the database and Kafka are: give --database and --brokers once, and the options of images each time.`,
  options: DEPLOY_OPTIONS,
  run: (values, functions) => deploy(readOptions(values, functions)),
});
