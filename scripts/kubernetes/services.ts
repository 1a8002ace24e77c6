/** The functions themselves: kn applies them and waits for them. */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Refusal } from "../cli/errors.ts";
import { attempt, eachOf, run } from "../process/run.ts";
import { ROOT } from "../project/paths.ts";
import { get, list, NAMESPACE, toYaml } from "./kubectl.ts";
import type { FunctionPlan } from "./plan.ts";

const READY_SECONDS_MAX = 180;
const WAITS_AT_ONCE = 8;

interface Condition {
  readonly type: string;
  readonly status: string;
  readonly message?: string;
}

/** Why a function is not ready, in the words of whoever knows best: its pod, its revision, itself. */
async function reasonOf(name: string): Promise<string> {
  const pods = await list("pods", NAMESPACE, "-l", `serving.knative.dev/service=${name}`);
  for (const pod of pods) {
    for (const { name: container, state, lastState } of pod.status?.containerStatuses ?? []) {
      const waiting = state?.waiting;
      if (waiting?.reason === "ContainerCreating" || waiting === undefined) continue;
      const ended = lastState?.terminated === undefined ? "" : `, after exit code ${lastState.terminated.exitCode}`;
      const { stdout } = await attempt("kubectl", [
        "logs",
        pod.metadata.name,
        "-n",
        NAMESPACE,
        "-c",
        container,
        "--tail=5",
      ]);
      return `${container} in ${pod.metadata.name}: ${waiting.reason}${ended}. ${waiting.message ?? ""}\n  ${stdout.trim().replaceAll("\n", "\n  ")}`;
    }
  }
  const service = await get("services.serving.knative.dev", name);
  const conditions: Condition[] = service?.status?.conditions ?? [];
  return conditions.find(({ status }) => status !== "True")?.message ?? "it does not say why";
}

async function waitFor(name: string): Promise<void> {
  const until = Date.now() + READY_SECONDS_MAX * 1000;
  const { code } = await attempt("kn", [
    "service",
    "wait",
    name,
    "-n",
    NAMESPACE,
    "--wait-timeout",
    String(READY_SECONDS_MAX),
  ]);
  // Right after `apply` the old Ready may still be there: what counts is that the newest revision is the ready one.
  while (code === 0 && Date.now() < until) {
    const service = await get("services.serving.knative.dev", name);
    const {
      observedGeneration,
      latestCreatedRevisionName,
      latestReadyRevisionName,
      conditions = [],
    } = service?.status ?? {};
    const ready = (conditions as Condition[]).find(({ type }) => type === "Ready");
    const current =
      observedGeneration === service?.metadata.generation && latestCreatedRevisionName === latestReadyRevisionName;
    if (current && ready?.status === "True") return;
    if (current && ready?.status === "False") break;
    await new Promise((resolve) => setTimeout(resolve, 250));
  }
  throw new Refusal(
    `The function ${name} did not get ready: ${await reasonOf(name)}\nThe revision before it still serves, where there was one. ` +
      `Look closer with: kn revision list -s ${name} -n ${NAMESPACE}`,
  );
}

/** Applies functions, then waits for all of them. Returns the names of those that changed. */
export async function applyFunctions(
  functions: readonly FunctionPlan[],
  report: (progress: string) => void,
): Promise<string[]> {
  const folder = join(ROOT, ".lotus/knative");
  await mkdir(folder, { recursive: true });
  const changed: string[] = [];
  let applied = 0;
  for (const { name, service } of functions) {
    // kn reads one document from one file, and no standard input.
    const file = join(folder, `${name}.yaml`);
    await writeFile(file, toYaml([service]));
    const said = await run("kn", ["service", "apply", "-f", file, "--no-wait", "-n", NAMESPACE]);
    if (!/no changes/i.test(said)) changed.push(name);
    report(`applied ${++applied} of ${functions.length}, ${changed.length} changed`);
  }
  let ready = 0;
  await eachOf(functions, WAITS_AT_ONCE, async ({ name }) => {
    await waitFor(name);
    report(`${++ready} of ${functions.length} ready, ${changed.length} changed`);
  });
  return changed;
}
