import { readdirSync, readFileSync } from "node:fs";
import { defineConfig } from "vitest/config";

/** How long a failing test takes. A busy machine needs this long for a test that passes. */
const TIMEOUT_MILLISECONDS = 120_000;
const CLUSTER_TIMEOUT_MILLISECONDS = 300_000;

type Project = "unit" | "lotus" | "kafka" | "cluster";

/** Returns the project of a test file: by its name, or by the parts that it imports. */
function projectOf(file: string): Project {
  if (file.endsWith(".cluster.test.ts")) return "cluster";
  const text = readFileSync(file, "utf8");
  if (/testing\/kafka\.ts"|\.\.\/kafka\.ts"/.test(text)) return "kafka";
  // An exhaustive model takes too long for a unit test.
  if (file.startsWith("scripts/chaos/")) return "lotus";
  // Tests of processes, bundles or the database are not unit tests.
  if (/testing\/lotus\.ts"|\/lotus\.ts"|\binject\b|node:child_process|bundleOf|startPostgres/.test(text))
    return "lotus";
  return "unit";
}

const files = ["functions", "triggers", "scripts"].flatMap((folder) =>
  readdirSync(folder, { recursive: true, encoding: "utf8" })
    .filter((file) => file.endsWith(".test.ts"))
    .map((file) => `${folder}/${file.replaceAll("\\", "/")}`),
);
const filesOf = (project: Project) => files.filter((file) => projectOf(file) === project);

const limits = { testTimeout: TIMEOUT_MILLISECONDS, hookTimeout: TIMEOUT_MILLISECONDS, pool: "forks" } as const;
/** One file at a time: the tests share a Postgres server and two cores. */
const oneAtATime = (groupOrder: number) => ({ maxWorkers: 1, sequence: { groupOrder } });

export default defineConfig({
  test: {
    projects: [
      { test: { name: "unit", include: filesOf("unit"), ...limits, sequence: { groupOrder: 0 } } },
      {
        test: {
          name: "lotus",
          include: filesOf("lotus"),
          globalSetup: "scripts/testing/setup.ts",
          ...limits,
          ...oneAtATime(1),
        },
      },
      {
        test: {
          name: "kafka",
          include: filesOf("kafka"),
          globalSetup: "scripts/testing/setup.ts",
          ...limits,
          ...oneAtATime(2),
        },
      },
      {
        test: {
          name: "cluster",
          include: filesOf("cluster"),
          globalSetup: "scripts/testing/cluster/setup.ts",
          ...limits,
          testTimeout: CLUSTER_TIMEOUT_MILLISECONDS,
          hookTimeout: CLUSTER_TIMEOUT_MILLISECONDS,
          ...oneAtATime(3),
        },
      },
    ],
    // In watch mode: a test reaches a function through dist/, which its imports do not show.
    forceRerunTriggers: ["**/functions/**/*.{ts,sql}", "**/triggers/**/*.ts"],
    teardownTimeout: 60_000,
    // .ci/run counts the results.
    reporters: process.env.CI ? ["default", ["json", { outputFile: "node_modules/.test-results.json" }]] : ["default"],
  },
});
