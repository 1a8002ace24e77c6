/** Counts and deletes the pods of functions. */
import { setTimeout as delay } from "node:timers/promises";
import { TARGET_DEFAULT } from "../../generate/knative.ts";
import { type KubernetesObject, list } from "../../kubernetes/kubectl.ts";
import { attempt, run } from "../../process/run.ts";

/** The namespace of the environment laptop, which setup.ts deploys. */
export const { namespace: NAMESPACE } = TARGET_DEFAULT;

const ZERO_SECONDS_MAX = 240;
const SERVICE = "serving.knative.dev/service";

/** The pods of one function, or of all but the one that a PingSource wakes every minute. */
export async function functionPods(name?: string): Promise<KubernetesObject[]> {
  const pods = await list("pods", NAMESPACE, "-l", "app.kubernetes.io/component=function");
  return pods.filter(({ metadata }) => {
    const service = metadata.labels?.[SERVICE];
    return name === undefined ? service !== "events-relay" : service === name;
  });
}

/** Waits until no function has a pod. */
export async function waitForZero(): Promise<void> {
  for (let waited = 0; (await functionPods()).length > 0; waited++) {
    if (waited > ZERO_SECONDS_MAX) throw new Error(`Pods still exist after ${ZERO_SECONDS_MAX} s.`);
    await delay(1000);
  }
}

/** Deletes pods, and does not wait for their end. `killed`: without a grace period. */
export async function deletePods(pods: readonly KubernetesObject[], killed = false): Promise<void> {
  if (pods.length === 0) return;
  const names = pods.map(({ metadata }) => metadata.name);
  const how = killed ? ["--force", "--grace-period=0"] : [];
  await run("kubectl", ["delete", "pod", ...names, "-n", NAMESPACE, "--wait=false", "--ignore-not-found", ...how]);
}

/** Runs a program of Node in the container of a function. Returns its standard output; undefined when it failed. */
export async function inContainer(pod: KubernetesObject, program: string): Promise<string | undefined> {
  const where = ["exec", pod.metadata.name, "-n", NAMESPACE, "-c", "user-container", "--"];
  for (const node of ["node", "/nodejs/bin/node"]) {
    const { code, stdout } = await attempt("kubectl", [...where, node, "-e", program]);
    if (code === 0) return stdout;
  }
  return undefined;
}
