/** lotus deploy: renders an environment, or deploys one to the cluster of the current kubectl context. */
import { createInterface } from "node:readline/promises";
import { PROGRAM_NAMES, prepareImage } from "../build/image-files.ts";
import { command } from "../cli/command.ts";
import { Refusal } from "../cli/errors.ts";
import { print, step } from "../cli/output.ts";
import { staleFiles } from "../generate/write.ts";
import { type Backends, choose, type Previous } from "../kubernetes/backends.ts";
import { type Environment, LAPTOP, readEnvironment } from "../kubernetes/environment.ts";
import {
  buildImage,
  commitOf,
  isBuilt,
  isInRegistry,
  loadImage,
  pinBase,
  referenceOf,
  versionOf,
} from "../kubernetes/images.ts";
import {
  apply,
  changesIn,
  currentContext,
  get,
  list,
  runJob,
  secretValue,
  toYaml,
  waitForRollout,
} from "../kubernetes/kubectl.ts";
import { lockedImages, readLock } from "../kubernetes/lock.ts";
import { DEPLOY_OPTIONS, type DeployOptions, readOptions } from "../kubernetes/options.ts";
import { type ClusterPlan, type ImageUse, makePlan, namespaceOf } from "../kubernetes/plan.ts";
import { check, checkReachable, type Findings, findBuilder } from "../kubernetes/preflight.ts";
import { RENDERED_FOLDER } from "../kubernetes/render.ts";
import { staleRendered, writeRendered } from "../kubernetes/render-files.ts";
import { applyFunctions } from "../kubernetes/services.ts";
import { summary } from "../kubernetes/summary.ts";
import { run } from "../process/run.ts";
import { findFunctions, type LotusFunction } from "../project/functions.ts";
import { ROOT } from "../project/paths.ts";
import { ensureSecrets } from "../secrets/cluster.ts";

async function namesToDeploy(wanted: readonly string[], all: readonly LotusFunction[]): Promise<string[]> {
  const names = all.map(({ name }) => name);
  const unknown = wanted.find((name) => !names.includes(name));
  if (unknown !== undefined)
    throw new Refusal(`The function ${unknown} does not exist. There are: ${names.join(", ")}.`);
  const stale = await staleFiles();
  if (stale.length > 0)
    throw new Refusal(`Generated files are stale (${stale.join(", ")}). Write them: npm run manifests`);
  return wanted.length === 0 ? names : [...new Set(wanted)];
}

async function previousDeployment(within: string): Promise<Previous> {
  const configuration = await get("configmap", "lotus", within);
  return {
    configuration: configuration?.data as Record<string, string> | undefined,
    adminUrl: secretValue(await get("secret", "database-admin", within), "url"),
  };
}

async function applyPlatform(
  plan: ClusterPlan,
  backends: Backends,
  options: DeployOptions,
  environment: Environment,
): Promise<void> {
  const { database, kafka } = backends;
  const { namespace: within } = environment;
  await apply(plan.namespace);
  await makeSecrets(backends, options, environment);
  await step("Platform: policies, configuration, Kafka, Postgres", async (report) => {
    report(changesIn(await apply([...plan.platform, ...plan.backends])));
    if (kafka.kind === "cluster") await waitForRollout("statefulset", "kafka", within);
    if (database.kind === "cluster") await waitForRollout("statefulset", "postgres", within);
  });
  await step("Migrations", async (report) => report(await runJob(plan.migrate)));
  await step("Topics", async (report) => report(await runJob(plan.topics)));
  await step("Preflight", async (report) => report(await runJob(plan.preflight)));
}

/** Deploys triggers before endpoints, so that every event has a trigger that understands it. */
async function applyAllFunctions({ functions }: ClusterPlan, within: string): Promise<void> {
  const triggers = functions.filter(({ kind }) => kind === "trigger");
  const endpoints = functions.filter(({ kind }) => kind === "endpoint");
  const budgets = functions.flatMap(({ disruptionBudget }) => disruptionBudget ?? []);
  if (triggers.length > 0) await step("Triggers", (report) => applyFunctions(triggers, within, report));
  if (endpoints.length > 0) await step("Endpoints", (report) => applyFunctions(endpoints, within, report));
  if (budgets.length > 0) await step("Disruption budgets", async (report) => report(changesIn(await apply(budgets))));
  const sources = functions.flatMap(({ source }) => source ?? []);
  if (sources.length > 0) {
    await step("Sources", async (report) => {
      report(changesIn(await apply(sources)));
      const names = sources.map(({ kind, metadata }) => `${kind.toLowerCase()}/${metadata.name}`);
      await waitForSources(names, within);
    });
  }
}

/** Without the controller of KafkaSource another program delivers, and the sources have no status. */
async function waitForSources(sources: readonly string[], within: string): Promise<void> {
  const controller = await get("deployment", "kafka-controller", "knative-eventing");
  for (const source of sources) {
    if (source.startsWith("kafkasource/") && controller === undefined) continue;
    await run("kubectl", ["wait", source, "-n", within, "--for=condition=Ready", "--timeout=180s"]);
  }
  // A source becomes ready before its dispatcher.
  if (controller !== undefined) await waitForRollout("statefulset", "kafka-source-dispatcher", "knative-eventing");
}

async function applyRoutes(plan: ClusterPlan, within: string): Promise<void> {
  await step("Routes", async (report) => {
    report(changesIn(await apply(plan.routes)));
    const name = plan.routes.find(({ kind }) => kind === "Ingress")?.metadata.name ?? "";
    const ingress = `ingresses.networking.internal.knative.dev/${name}`;
    await run("kubectl", ["wait", ingress, "-n", within, "--for=condition=Ready", "--timeout=120s"]);
  });
}

async function switchMetrics(plan: ClusterPlan, on: boolean, within: string): Promise<void> {
  await step(`Metrics ${on ? "on" : "off"}`, async () => {
    if (on) await apply(plan.metrics);
    else {
      for (const { kind, metadata } of plan.metrics) {
        if (kind === "PodMonitor" && (await get("crd", "podmonitors.monitoring.coreos.com", "")) === undefined)
          continue;
        await run("kubectl", ["delete", kind, metadata.name, "-n", within, "--ignore-not-found"]);
      }
    }
  });
}

/** Returns the functions of the namespace that the checkout does not contain. Other programs may still call them. */
async function leftovers(all: readonly LotusFunction[], within: string): Promise<string[]> {
  const known = all.map(({ name }) => name);
  const services = await list("services.serving.knative.dev", within, "-l", "app.kubernetes.io/part-of=lotus");
  return services.map(({ metadata }) => metadata.name).filter((name) => !known.includes(name));
}

/** Asks before a cluster other than a laptop's changes. @throws {Refusal} for another answer than yes */
async function confirm({ name, namespace: within }: Environment, options: DeployOptions): Promise<void> {
  const context = await currentContext();
  print(`Environment ${name}: namespace ${within} of the kubectl context ${context}.`);
  if (name === LAPTOP || options.yes) return;
  if (!process.stdin.isTTY) throw new Refusal(`Lotus asks before it changes ${name}. A script confirms with --yes.`);
  const terminal = createInterface({ input: process.stdin, output: process.stdout });
  const answer = await terminal.question(`Deploy to this cluster? Type ${name}: `).finally(() => terminal.close());
  if (answer.trim() !== name) throw new Refusal("The cluster is unchanged.");
}

async function checkAll(options: DeployOptions, names: readonly string[], environment: Environment) {
  await checkReachable({ withKn: true });
  const previous = await previousDeployment(environment.namespace);
  if (options.functions.length > 0 && previous.configuration === undefined) {
    throw new Refusal("Lotus is not deployed here yet. Deploy all functions once: npx lotus deploy");
  }
  const backends = choose(options, previous, environment);
  const locked = environment.name === LAPTOP ? undefined : await readLock();
  return { backends, findings: await check(options, names.length, backends, environment, locked) };
}

/** Returns the image that a Service uses, when its content is the same and the cluster can still get it. */
async function keptImages(
  contents: ReadonlyMap<string, string>,
  findings: Findings,
  within: string,
): Promise<Map<string, string>> {
  const kept = new Map<string, string>();
  for (const service of await list("services.serving.knative.dev", within)) {
    const { annotations = {} } = service.spec.template.metadata ?? {};
    const { image } = service.spec.template.spec.containers[0];
    const { name } = service.metadata;
    const isThere = findings.present.has(image) || findings.loading?.kind === "registry";
    if (isThere && annotations["lotus/content"] === contents.get(name)) kept.set(name, image);
  }
  return kept;
}

/** Builds the image when a function needs it, and returns the image of each function and program. */
async function provideImages(
  options: DeployOptions,
  all: readonly LotusFunction[],
  findings: Findings,
  within: string,
) {
  const base = await pinBase(options.base);
  const version = await versionOf(ROOT);
  const { tag, contents } = await step("Bundles", () =>
    prepareImage(
      all.map(({ name }) => name),
      base,
      version,
    ),
  );
  const reference = referenceOf(tag, options.registry);
  const kept = await keptImages(contents, findings, within);
  const images = new Map<string, ImageUse>(
    [...contents].map(([name, content]) => [name, { reference: kept.get(name) ?? reference, content }]),
  );
  const { loading } = findings;
  const isThere = findings.present.has(reference) || (loading?.kind === "registry" && (await isInRegistry(reference)));
  if (isThere || [...images.values()].every((image) => image.reference !== reference)) {
    print(`  Image: ${reference} is there`);
    return images;
  }
  if (loading === undefined)
    throw new Refusal(
      "This cluster is not a minikube. Say how it gets images: --registry HOST/PATH, or --load-command 'CMD {image}' " +
        "(kind: 'kind load docker-image {image}').",
    );
  const builder = await findBuilder(options, findings.profile);
  const build = {
    reference,
    builder,
    base,
    profile: findings.profile ?? "",
    architectures: options.architectures ?? findings.architectures,
    source: options.source,
    commit: await commitOf(ROOT),
    version,
  };
  await step(`Image with ${builder}`, async () => {
    if (!(await isBuilt(reference, builder))) await buildImage(build);
  });
  await step(`Loading (${loading.kind})`, () => loadImage(build, loading));
  return images;
}

/** Prints a first deployment as YAML. Secrets are made in the cluster only. */
async function printPlan(
  options: DeployOptions,
  environment: Environment,
  all: readonly LotusFunction[],
  names: readonly string[],
) {
  const backends = choose(options, { configuration: undefined, adminUrl: undefined }, environment);
  const version = await versionOf(ROOT);
  const { tag, contents } = await prepareImage(
    all.map(({ name }) => name),
    options.base,
    version,
  );
  const reference = referenceOf(tag, options.registry);
  const images = new Map([...contents].map(([name, content]) => [name, { reference, content }]));
  const plan = await makePlan({ all, names, images, environment, backends, version });
  const functions = plan.functions.flatMap(({ service, source, disruptionBudget }) =>
    [service, source ?? [], disruptionBudget ?? []].flat(),
  );
  const platform =
    options.functions.length === 0
      ? [...plan.namespace, ...plan.platform, ...plan.backends, plan.migrate, plan.topics, plan.preflight]
      : [];
  print(
    "# Lotus makes the missing Secrets in the cluster: database-admin, database-<service>, public-keys, signing-key.",
  );
  process.stdout.write(toYaml([...platform, ...functions, ...plan.routes, ...(options.metrics ? plan.metrics : [])]));
}

async function renderOnly({ environment: name, check: checks }: DeployOptions): Promise<void> {
  if (!checks) {
    const count = await writeRendered(name);
    return print(`Rendered ${count} files into ${RENDERED_FOLDER}/${name}.`);
  }
  const stale = await staleRendered(name);
  if (stale.length > 0)
    throw new Refusal(
      `Rendered files are stale. Run npx lotus deploy --render ${name} and commit:\n  ${stale.join("\n  ")}`,
    );
  print(`${RENDERED_FOLDER}/${name} is up to date.`);
}

async function makeSecrets(backends: Backends, options: DeployOptions, environment: Environment): Promise<void> {
  await step("Secrets", async (report) => {
    const made = await ensureSecrets(backends.database, options.kafkaCredentials, environment, {
      pooler: backends.pooler,
      authority: options.databaseAuthority,
      password: options.databasePassword,
    });
    report(made.length === 0 ? "all there" : `made ${made.join(", ")}`);
  });
  const { kafka } = backends;
  const isSecured = kafka.kind === "outside" && kafka.security !== undefined;
  if (isSecured && (await get("secret", "kafka", environment.namespace)) === undefined)
    throw new Refusal(
      "The Secret kafka is missing. Give --kafka-tls with --kafka-user, --kafka-certificate or --kafka-authority once.",
    );
}

async function deploy(options: DeployOptions): Promise<void> {
  if (options.render) return renderOnly(options);
  const all = await findFunctions();
  const names = await namesToDeploy(options.functions, all);
  const environment = await readEnvironment(
    options.environment,
    all.map(({ name }) => name),
  );
  const { namespace: within } = environment;
  if (options.dryRun) return printPlan(options, environment, all, names);
  const everything = options.functions.length === 0;
  const { backends, findings } = await step("Checks", () => checkAll(options, names, environment));
  for (const warning of findings.warnings) print(`  Warning: ${warning}`);
  if (options.check) return print("The cluster fits. The check changed no object.");
  await confirm(environment, options);
  if (options.secretsOnly) {
    await apply(await namespaceOf({ environment, version: await versionOf(ROOT) }));
    return makeSecrets(backends, options, environment);
  }
  const images =
    environment.name === LAPTOP
      ? await provideImages(options, all, findings, within)
      : await lockedImages([...all.map(({ name }) => name), ...PROGRAM_NAMES]);
  const plan = await makePlan({ all, names, images, environment, backends, version: await versionOf(ROOT) });
  if (everything) await applyPlatform(plan, backends, options, environment);
  await applyAllFunctions(plan, within);
  await applyRoutes(plan, within);
  const metrics = options.metrics ?? (environment.metrics === undefined ? undefined : true);
  if (metrics !== undefined) await switchMetrics(plan, metrics, within);
  const profile = findings.loading?.kind === "minikube" ? findings.profile : undefined;
  print(await summary(plan, environment, profile, await leftovers(all, within)));
}

export default command({
  about: "Deploys Lotus to the cluster of the current kubectl context, or renders an environment for GitOps.",
  usage: "[FUNCTION…]",
  notes: `Safe to repeat: unchanged parts stay. With names of functions, such as order-pay, it deploys only these.
The environment laptop builds images from the checkout. The cluster keeps the choice of database and Kafka: give --database and
--brokers once, and the options of images each time. Other environments use their file and knative/images.lock.yaml.`,
  options: DEPLOY_OPTIONS,
  run: (values, functions) => deploy(readOptions(values, functions)),
});
