/** Applies functions with kn, and waits for them. */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Refusal } from "../cli/errors.ts";
import { eachOf } from "../process/concurrency.ts";
import { attempt, run } from "../process/run.ts";
import { ROOT } from "../project/paths.ts";
import { get, list, toYaml } from "./kubectl.ts";
import type { FunctionPlan } from "./plan.ts";

const READY_SECONDS_MAX = 180;
const WAITS_AT_ONCE = 8;

interface Split {
  readonly revisionName?: string;
  readonly latestRevision?: boolean;
  readonly percent?: number;
}

/** Compares the traffic of a Service with the rendered one. Returns a sentence for a difference. */
export function trafficFault(
  name: string,
  wanted: readonly Split[],
  actual: readonly Split[],
  latest: string | undefined,
): string | undefined {
  const shares = (splits: readonly Split[]) => {
    const sums = new Map<string, number>();
    for (const { revisionName, latestRevision, percent = 0 } of splits) {
      const revision = (latestRevision ? (revisionName ?? latest) : revisionName) ?? "";
      if (percent > 0) sums.set(revision, (sums.get(revision) ?? 0) + percent);
    }
    return [...sums]
      .sort(([a], [b]) => a.localeCompare(b))
      .map(([revision, percent]) => `${percent} % to ${revision}`)
      .join(", ");
  };
  const is = shares(actual);
  const should = shares(wanted);
  return is === should
    ? undefined
    : `The traffic of ${name} goes ${is || "nowhere"}; the deployment asks for ${should}.`;
}

interface Condition {
  readonly type: string;
  readonly status: string;
  readonly message?: string;
}

/** Returns why a function is not ready, from its pod or its conditions. */
async function reasonOf(name: string, within: string): Promise<string> {
  const pods = await list("pods", within, "-l", `serving.knative.dev/service=${name}`);
  for (const pod of pods) {
    for (const { name: container, state, lastState } of pod.status?.containerStatuses ?? []) {
      const waiting = state?.waiting;
      if (waiting?.reason === "ContainerCreating" || waiting === undefined) continue;
      const ended = lastState?.terminated === undefined ? "" : `, after exit code ${lastState.terminated.exitCode}`;
      const { stdout } = await attempt("kubectl", [
        "logs",
        pod.metadata.name,
        "-n",
        within,
        "-c",
        container,
        "--tail=5",
      ]);
      return `${container} in ${pod.metadata.name}: ${waiting.reason}${ended}. ${waiting.message ?? ""}\n  ${stdout.trim().replaceAll("\n", "\n  ")}`;
    }
  }
  const service = await get("services.serving.knative.dev", name, within);
  const conditions: Condition[] = service?.status?.conditions ?? [];
  return conditions.find(({ status }) => status !== "True")?.message ?? "its status contains no reason";
}

async function waitFor({ name, service: applied }: FunctionPlan, within: string): Promise<void> {
  const rollout = /^(\d+)s$/.exec(applied.metadata.annotations?.["serving.knative.dev/rollout-duration"] ?? "")?.[1];
  const until = Date.now() + (READY_SECONDS_MAX + Number(rollout ?? 0)) * 1000;
  let fault: string | undefined;
  const { code } = await attempt("kn", [
    "service",
    "wait",
    name,
    "-n",
    within,
    "--wait-timeout",
    String(READY_SECONDS_MAX),
  ]);
  // Right after `apply` the status may be that of the former revision.
  while (code === 0 && Date.now() < until) {
    const service = await get("services.serving.knative.dev", name, within);
    const {
      observedGeneration,
      latestCreatedRevisionName,
      latestReadyRevisionName,
      conditions = [],
    } = service?.status ?? {};
    const ready = (conditions as Condition[]).find(({ type }) => type === "Ready");
    const current =
      observedGeneration === service?.metadata.generation && latestCreatedRevisionName === latestReadyRevisionName;
    if (current && ready?.status === "True") {
      const { traffic = [] } = service?.status ?? {};
      fault = trafficFault(name, applied.spec.traffic ?? [], traffic as Split[], latestReadyRevisionName);
      if (fault === undefined) return;
    }
    if (current && ready?.status === "False") break;
    await new Promise((resolve) => setTimeout(resolve, 250));
  }
  if (fault !== undefined)
    throw new Refusal(`${fault} A revision may be pinned: kn service describe ${name} -n ${within}`);
  throw new Refusal(
    `The function ${name} did not become ready: ${await reasonOf(name, within)}\nAn earlier revision still serves. ` +
      `Details: kn revision list -s ${name} -n ${within}`,
  );
}

/** Applies functions to a namespace, then waits for all of them. Returns the names of those that changed. */
export async function applyFunctions(
  functions: readonly FunctionPlan[],
  within: string,
  report: (progress: string) => void,
): Promise<string[]> {
  const folder = join(ROOT, ".lotus/knative", within);
  await mkdir(folder, { recursive: true });
  const changed: string[] = [];
  let applied = 0;
  for (const { name, service } of functions) {
    // kn reads one document from one file, and no standard input.
    const file = join(folder, `${name}.yaml`);
    await writeFile(file, toYaml([service]));
    const said = await run("kn", ["service", "apply", "-f", file, "--no-wait", "-n", within]);
    if (!/no changes/i.test(said)) changed.push(name);
    report(`applied ${++applied} of ${functions.length}, ${changed.length} changed`);
  }
  let ready = 0;
  await eachOf(functions, WAITS_AT_ONCE, async (fn) => {
    await waitFor(fn, within);
    report(`${++ready} of ${functions.length} ready, ${changed.length} changed`);
  });
  return changed;
}
