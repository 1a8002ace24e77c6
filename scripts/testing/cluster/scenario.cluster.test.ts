/** The deployment, and the scenario through the gateway: from zero, warm, and from zero again. */
import { describe, expect, inject, it } from "vitest";
import { runScenario } from "../../scenario/run.ts";
import { BASE_URL } from "./load.ts";
import { functionPods, waitForZero } from "./pods.ts";
import { deploy } from "./setup.ts";

const cluster = inject("cluster");

async function scenario(): Promise<void> {
  const { requests, assertions, failed, failures, overall } = await runScenario({ baseUrl: BASE_URL, quiet: true });
  console.log(`${requests} requests, ${assertions} assertions, mean ${overall.mean.toFixed(0)} ms`);
  expect({ failed, failures }).toEqual({ failed: 0, failures: [] });
  expect([requests, assertions]).toEqual([14, 22]);
}

/** Returns the last report of a step. The time precedes it: `  Routes … 0.4 s: 2 objects, no changes`. */
function resultOf(step: string, said: string): string | undefined {
  const line = said.split("\n").find((text) => text.startsWith(`  ${step}`) && / \d+\.\d s: /.test(text));
  return line?.slice(line.indexOf(" s: ") + " s: ".length);
}

describe.skipIf(cluster.skipped !== undefined)("Lotus on a cluster", () => {
  it("is deployed a second time without a change", async () => {
    const said = await deploy(cluster.skipped === undefined ? cluster.deployArguments : "");
    for (const functions of ["Triggers", "Endpoints"]) expect(resultOf(functions, said)).toMatch(/, 0 changed$/);
    for (const objects of ["Platform: policies, configuration, Kafka, Postgres", "Sources", "Routes"])
      expect(resultOf(objects, said)).toMatch(/objects, no changes$/);
  });

  it("plays the scenario from zero", async () => {
    await waitForZero();
    await scenario();
    expect((await functionPods()).length).toBeGreaterThan(8);
  });

  it("plays it warm", scenario);

  it("goes back to zero, and plays it again", async () => {
    await waitForZero();
    await scenario();
  });
});
