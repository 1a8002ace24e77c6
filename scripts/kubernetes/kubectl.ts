/** The cluster, through kubectl: whatever the user's kubectl reaches is the cluster that is meant. */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { parseAllDocuments, stringify } from "yaml";
import { Refusal } from "../cli/errors.ts";
import { attempt, run, runJson } from "../process/run.ts";
import { ROOT } from "../project/paths.ts";

export const NAMESPACE = "lotus";
export const HOST = "arch.homework";

/** Any Kubernetes object, as far as it is known here. */
export interface KubernetesObject {
  readonly apiVersion: string;
  readonly kind: string;
  readonly metadata: {
    readonly name: string;
    readonly namespace?: string;
    readonly labels?: Record<string, string>;
    readonly annotations?: Record<string, string>;
    readonly generation?: number;
    readonly resourceVersion?: string;
  };
  // biome-ignore lint/suspicious/noExplicitAny: the schema of this object is Kubernetes' own, and judged by it
  readonly [field: string]: any;
}

/** The documents of one YAML file of the checkout, each time anew: callers change them. */
export async function readDocuments(file: string): Promise<KubernetesObject[]> {
  const text = await readFile(join(ROOT, file), "utf8");
  return parseAllDocuments(text).map((document) => {
    if (document.errors[0] !== undefined) throw new Refusal(`${file} is not YAML: ${document.errors[0].message}`);
    return document.toJS() as KubernetesObject;
  });
}

/** The YAML files of a folder of the checkout, in the order of their names. */
export async function yamlFiles(folder: string): Promise<string[]> {
  const files = await readdir(join(ROOT, folder));
  return files
    .filter((file) => file.endsWith(".yaml"))
    .sort()
    .map((file) => `${folder}/${file}`);
}

/** Documents as one YAML text. */
export function toYaml(documents: readonly KubernetesObject[]): string {
  return documents.map((document) => stringify(document, { lineWidth: 0, aliasDuplicateObjects: false })).join("---\n");
}

/** Applies documents as they are. Unknown and doubled fields are refused. Returns kubectl's line for each. */
export async function apply(documents: readonly KubernetesObject[]): Promise<string[]> {
  if (documents.length === 0) return [];
  const output = await run("kubectl", ["apply", "--validate=strict", "-f", "-"], { input: toYaml(documents) });
  return output.trim().split("\n");
}

/** How many lines of kubectl tell of a change. */
export function changesIn(lines: readonly string[]): string {
  const changed = lines.filter((line) => !line.endsWith(" unchanged")).length;
  return changed === 0 ? `${lines.length} objects, no changes` : `${changed} of ${lines.length} objects changed`;
}

/** One object, or undefined when it, or its kind, does not exist. */
export async function get(kind: string, name: string, namespace = NAMESPACE): Promise<KubernetesObject | undefined> {
  const { code, stdout, stderr } = await attempt("kubectl", ["get", kind, name, "-n", namespace, "-o", "json"]);
  if (code === 0) return JSON.parse(stdout) as KubernetesObject;
  if (/NotFound|doesn't have a resource type/.test(stderr)) return undefined;
  throw new Refusal(`The cluster did not say whether there is ${kind} ${name}: ${stderr.trim()}`);
}

/** All objects of a kind in a namespace, or with "" in all of them. */
export async function list(kind: string, namespace = NAMESPACE, ...selectors: string[]): Promise<KubernetesObject[]> {
  const where = namespace === "" ? ["-A"] : ["-n", namespace];
  const answer = await runJson<{ items: KubernetesObject[] }>("kubectl", [
    "get",
    kind,
    ...where,
    "-o",
    "json",
    ...selectors,
  ]);
  return answer.items;
}

/** The value of a key of a Secret. */
export function secretValue(secret: KubernetesObject | undefined, key: string): string | undefined {
  const encoded = secret?.data?.[key] as string | undefined;
  return encoded === undefined ? undefined : Buffer.from(encoded, "base64").toString("utf8");
}

/** Waits until a Deployment or a StatefulSet runs what was applied. */
export async function waitForRollout(kind: "deployment" | "statefulset", name: string, namespace = NAMESPACE) {
  const { code, stderr } = await attempt("kubectl", [
    "rollout",
    "status",
    `${kind}/${name}`,
    "-n",
    namespace,
    "--timeout=300s",
  ]);
  if (code === 0) return;
  const events = await attempt("kubectl", [
    "get",
    "events",
    "-n",
    namespace,
    "--field-selector=type=Warning",
    "--sort-by=.lastTimestamp",
    "-o",
    'jsonpath={range .items[*]}{.involvedObject.name}{": "}{.message}{"\\n"}{end}',
  ]);
  const last = events.stdout
    .split("\n")
    .filter((line) => line.startsWith(name))
    .at(-1);
  throw new Refusal(`${kind} ${name} did not get ready: ${last ?? stderr.trim()}`);
}

/** Runs a Job anew and waits for its end; its pod's last lines are part of the error. */
export async function runJob(job: KubernetesObject): Promise<string> {
  const { name } = job.metadata;
  await run("kubectl", ["delete", "job", name, "-n", NAMESPACE, "--ignore-not-found", "--wait"]);
  await apply([job]);
  const until = Date.now() + 600_000;
  for (;;) {
    const conditions: { type: string; status: string; message?: string }[] =
      (await get("job", name))?.status?.conditions ?? [];
    const holds = (type: string) =>
      conditions.find((condition) => condition.type === type && condition.status === "True");
    const failed = holds("Failed");
    const over = Date.now() > until;
    if (holds("Complete") || failed || over) {
      const { stdout } = await attempt("kubectl", ["logs", `job/${name}`, "-n", NAMESPACE, "--tail=10"]);
      if (!failed && !over) return stdout.trim().replaceAll("\n", "; ");
      throw new Refusal(
        `The job ${name} failed: ${failed?.message ?? "it did not end in ten minutes"}\n  ${stdout.trim().replaceAll("\n", "\n  ")}\n` +
          `Look closer with: kubectl -n ${NAMESPACE} describe job/${name} pods`,
      );
    }
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
}
