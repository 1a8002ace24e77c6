/** The cluster of the current kubectl context. */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { parseAllDocuments, stringify } from "yaml";
import { Refusal } from "../cli/errors.ts";
import { attempt, run, runJson } from "../process/run.ts";
import { waitFor } from "../process/wait.ts";
import { ROOT } from "../project/paths.ts";

/** Returns the name of the current kubectl context. */
export async function currentContext(): Promise<string> {
  return (await attempt("kubectl", ["config", "current-context"])).stdout.trim();
}

/** Any Kubernetes object. */
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
  // biome-ignore lint/suspicious/noExplicitAny: Kubernetes checks the schema of this object
  readonly [field: string]: any;
}

/** Reads the documents of one YAML file of the checkout. Callers may change the result. */
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

/** Counts the lines of kubectl that report a change. */
export function changesIn(lines: readonly string[]): string {
  const changed = lines.filter((line) => !line.endsWith(" unchanged")).length;
  return changed === 0 ? `${lines.length} objects, no changes` : `${changed} of ${lines.length} objects changed`;
}

/** Returns one object, or undefined when it, or its kind, does not exist. `within` is a namespace, or "" for an object of the cluster. */
export async function get(kind: string, name: string, within: string): Promise<KubernetesObject | undefined> {
  const { code, stdout, stderr } = await attempt("kubectl", ["get", kind, name, "-n", within, "-o", "json"]);
  if (code === 0) return JSON.parse(stdout) as KubernetesObject;
  if (/NotFound|doesn't have a resource type/.test(stderr)) return undefined;
  throw new Refusal(`kubectl cannot read ${kind} ${name}: ${stderr.trim()}`);
}

/** Returns all objects of a kind in a namespace, or with "" in all namespaces. */
export async function list(kind: string, within: string, ...selectors: string[]): Promise<KubernetesObject[]> {
  const where = within === "" ? ["-A"] : ["-n", within];
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
export async function waitForRollout(kind: "deployment" | "statefulset", name: string, within: string) {
  const { code, stderr } = await attempt("kubectl", [
    "rollout",
    "status",
    `${kind}/${name}`,
    "-n",
    within,
    "--timeout=300s",
  ]);
  if (code === 0) return;
  const events = await attempt("kubectl", [
    "get",
    "events",
    "-n",
    within,
    "--field-selector=type=Warning",
    "--sort-by=.lastTimestamp",
    "-o",
    'jsonpath={range .items[*]}{.involvedObject.name}{": "}{.message}{"\\n"}{end}',
  ]);
  const last = events.stdout
    .split("\n")
    .filter((line) => line.startsWith(name))
    .at(-1);
  throw new Refusal(`${kind} ${name} did not become ready: ${last ?? stderr.trim()}`);
}

/** The label of a Job whose name ends in a hash of its content. */
const JOB_MILLISECONDS_MAX = 600_000;
const JOB_STEP_MILLISECONDS = 500;
const JOB_LABEL = "app.kubernetes.io/name";

/** Removes earlier Jobs of this kind, runs this one and waits for its end. The last lines of its pod are part of the error. */
export async function runJob(job: KubernetesObject): Promise<string> {
  const { name, namespace: within } = job.metadata;
  if (within === undefined) throw new Error(`The job ${name} has no namespace.`);
  const selector = `${JOB_LABEL}=${job.metadata.labels?.[JOB_LABEL]},app.kubernetes.io/part-of=lotus`;
  await run("kubectl", ["delete", "job", "-l", selector, "-n", within, "--ignore-not-found", "--wait"]);
  await apply([job]);
  const end = await waitFor<{ type: string; message?: string }>(
    async () => {
      const conditions: { type: string; status: string; message?: string }[] =
        (await get("job", name, within))?.status?.conditions ?? [];
      return conditions.find(({ type, status }) => status === "True" && (type === "Complete" || type === "Failed"));
    },
    { millisecondsMax: JOB_MILLISECONDS_MAX, stepMilliseconds: JOB_STEP_MILLISECONDS },
  );
  const { stdout } = await attempt("kubectl", ["logs", `job/${name}`, "-n", within, "--tail=10"]);
  if (end?.type === "Complete") return stdout.trim().replaceAll("\n", "; ");
  throw new Refusal(
    `The job ${name} failed: ${end === undefined ? "it did not end in ten minutes" : (end.message ?? "no reason was given")}\n  ${stdout.trim().replaceAll("\n", "\n  ")}\n` +
      `Details: kubectl -n ${within} describe job/${name} pods`,
  );
}
