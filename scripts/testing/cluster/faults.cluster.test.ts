/** Payments while pods are deleted, killed, starved of memory, and replaced by new revisions. */
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { request } from "node:http";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { describe, expect, inject, it } from "vitest";
import { parse } from "yaml";
import { TARGET_DEFAULT } from "../../generate/knative.ts";
import { type KubernetesObject, toYaml } from "../../kubernetes/kubectl.ts";
import { run } from "../../process/run.ts";

import { PROGRAM, ROOT } from "../../project/paths.ts";
import { runScenario } from "../../scenario/run.ts";
import { eventually } from "../lotus.ts";
import { BASE_URL, describeLoad, startLoad } from "./load.ts";
import { deletePods, functionPods, inContainer, NAMESPACE } from "./pods.ts";

const cluster = inject("cluster");
const databaseUrl = cluster.skipped === undefined ? cluster.databaseUrl : "";
const USERS = 4;

/** Applies a deployed function with a change, and waits for its new revision. */
async function roll(name: string, change: (template: KubernetesObject["spec"]) => void): Promise<void> {
  const deployed = join(ROOT, ".lotus/knative", NAMESPACE, `${name}.yaml`);
  const service = parse(await readFile(deployed, "utf8")) as KubernetesObject;
  change(service.spec.template);
  const folder = join(ROOT, ".lotus/knative/test");
  await mkdir(folder, { recursive: true });
  const file = join(folder, `${name}.yaml`);
  await writeFile(file, toYaml([service]));
  await run("kn", ["service", "apply", "-f", file, "-n", NAMESPACE, "--wait-timeout", "120"]);
}

const newRevision = (name: string) =>
  roll(name, ({ metadata }) => {
    metadata.annotations["lotus/rolled"] = String(Date.now());
  });

const asDeployed = (name: string) => roll(name, () => undefined);

async function restarts(name: string): Promise<{ count: number; reasons: string[] }> {
  const statuses = (await functionPods(name)).flatMap(({ status }) => status?.containerStatuses ?? []);
  const own = statuses.filter(({ name: container }) => container === "user-container");
  const ended = own.flatMap(({ lastState }) => lastState?.terminated?.reason ?? []);
  return { count: own.reduce((sum, { restartCount }) => sum + restartCount, 0), reasons: ended };
}

/** Requests with an incomplete body: the function keeps it in memory, and waits. */
function flood(path: string, requests: number, bytes: number): () => void {
  const sent = Array.from({ length: requests }, () => {
    const upload = request({
      host: TARGET_DEFAULT.host,
      path,
      method: "POST",
      headers: { "content-type": "application/json", "content-length": bytes + 1 },
    });
    // The connection ends with the function or with this test, so the test expects an error.
    upload.on("error", () => undefined);
    upload.write(Buffer.alloc(bytes, " "));
    return upload;
  });
  return () => {
    for (const upload of sent) upload.destroy();
  };
}

/**
 * Fills the memory file system of each pod of a function until the kernel has killed one. The file counts against the memory limit of the
 * container, and belongs to no process, so that the function is the largest process.
 */
async function exhaustMemory(name: string): Promise<void> {
  const fill = `const { openSync, writeSync } = require("node:fs");
    const file = openSync("/dev/shm/fill", "a");
    const bytes = Buffer.alloc(65_536);
    for (;;) writeSync(file, bytes);`;
  await eventually(`the pod of ${name} is killed for its memory`, async () => {
    if ((await restarts(name)).count > 0) return true;
    // A pod of the former revision has another limit. The kernel may kill this program first, and the file stays.
    for (const pod of await functionPods(name)) await inContainer(pod, fill);
    return false;
  });
}

describe.skipIf(cluster.skipped !== undefined)("Lotus on a cluster, under load", () => {
  it("rolls out new revisions of an endpoint and a trigger in 60 s, and no request fails", async () => {
    const load = await startLoad(databaseUrl, USERS, "order-pay");
    await delay(10_000);
    await newRevision("order-pay");
    await newRevision("notification-store");
    await delay(20_000);
    // Applies the deployed state again, which is another new revision.
    await asDeployed("order-pay");
    await asDeployed("notification-store");
    await delay(25_000);
    const result = await load.stop();
    console.log(describeLoad(result));
    expect(result.difference).toBeUndefined();
    expect([...result.failures]).toEqual([]);
  });

  it("has its pods deleted while they work, and no request fails", async () => {
    const load = await startLoad(databaseUrl, USERS, "order-pay");
    for (let round = 0; round < 3; round++) {
      await delay(8_000);
      await deletePods([...(await functionPods("order-pay")), ...(await functionPods("notification-store"))]);
    }
    await delay(10_000);
    const result = await load.stop();
    console.log(describeLoad(result));
    expect(result.difference).toBeUndefined();
    expect([...result.failures]).toEqual([]);
  });

  it("has its pods killed: only requests in flight fail, and no payment is lost or doubled", async () => {
    const load = await startLoad(databaseUrl, USERS, "order-pay");
    for (let round = 0; round < 3; round++) {
      await delay(8_000);
      await deletePods([...(await functionPods("order-pay")), ...(await functionPods("notification-store"))], true);
    }
    await delay(10_000);
    const result = await load.stop();
    console.log(describeLoad(result));
    expect(result.difference).toBeUndefined();
    for (const failure of result.failures.keys())
      expect(failure).toMatch(/^50[234]|ECONNRESET|other side closed|fetch failed/);
  });

  it("has all pods deleted in the middle of the scenario, and all assertions pass", async () => {
    // Deleted pods drain for half a minute. Deleting their successors too would only occupy the machine.
    for (let round = 0; round < 2; round++) {
      const playing = runScenario({ baseUrl: BASE_URL, quiet: true });
      await delay(1_500);
      await deletePods(await functionPods());
      const { failed, failures } = await playing;
      expect({ failed, failures }).toEqual({ failed: 0, failures: [] });
      await delay(40_000);
    }
  });

  it("receives new keys and new passwords under load", async () => {
    const load = await startLoad(databaseUrl, USERS, "order-pay");
    await delay(3_000);
    await run(process.execPath, [PROGRAM, "rotate", "passwords"]);
    // Every function must connect again, with the new passwords.
    await deletePods(await functionPods());
    await delay(5_000);
    await run(process.execPath, [PROGRAM, "rotate", "keys"]);
    // Earlier users continue with their tokens. A new login returns a token of the new key.
    const later = await startLoad(databaseUrl, 1, "order-pay");
    await delay(5_000);
    for (const result of [await load.stop(), await later.stop()]) {
      console.log(describeLoad(result));
      expect(result.difference).toBeUndefined();
      for (const failure of result.failures.keys()) expect(failure).toMatch(/^503 /);
    }
  });

  it("survives a flood of unfinished bodies within the memory limit of its pod", async () => {
    const load = await startLoad(databaseUrl, USERS, "order-create");
    const end = flood("/order/create", 900, 60_000);
    await delay(10_000);
    end();
    const { count } = await restarts("order-create");
    const result = await load.stop();
    console.log(describeLoad(result));
    expect(count).toBe(0);
    expect(result.difference).toBeUndefined();
  });

  it("restarts a function that was killed for its memory", async () => {
    await roll("order-create", ({ metadata, spec }) => {
      metadata.annotations["autoscaling.knative.dev/max-scale"] = "1";
      spec.containers[0].resources.limits.memory = "80Mi";
    });
    try {
      const load = await startLoad(databaseUrl, USERS, "order-create");
      await exhaustMemory("order-create");
      await delay(10_000);
      const { count, reasons } = await restarts("order-create");
      const result = await load.stop();
      console.log(`${count} restarts (${reasons.join(", ")}); ${describeLoad(result)}`);
      expect(reasons).toContain("OOMKilled");
      expect(result.difference).toBeUndefined();
    } finally {
      await asDeployed("order-create");
    }
  });
});
