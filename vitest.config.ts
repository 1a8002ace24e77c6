import { readdirSync, readFileSync } from "node:fs";
import { defineConfig } from "vitest/config";

/** How long a failing test takes. A busy machine needs this long for a test that passes. */
const TIMEOUT_MILLISECONDS = 120_000;
const CLUSTER_TIMEOUT_MILLISECONDS = 300_000;

type Project = "unit" | "unit-mocks" | "lotus" | "chaos" | "kafka" | "cluster";

/** Returns the project of a test file: by its name, or by the parts that it imports. */
function projectOf(file: string): Project {
  if (file.endsWith(".cluster.test.ts")) return "cluster";
  const text = readFileSync(file, "utf8");
  if (/testing\/kafka\.ts"|\.\.\/kafka\.ts"/.test(text)) return "kafka";
  // Each starts several Lotus under load.
  if (file.startsWith("scripts/chaos/")) return "chaos";
  // Tests of sockets, processes, bundles or the database are not unit tests. A test makes a program to start it.
  if (
    /\/lotus\.ts"|testing\/database\.ts"|\binject\b|"node:(child_process|http|net)"|\bchmod\b|bundleOf|startPostgres/.test(
      text,
    )
  )
    return "lotus";
  return /\bvi\./.test(text) ? "unit-mocks" : "unit";
}

const files = ["functions", "triggers", "scripts"].flatMap((folder) =>
  readdirSync(folder, { recursive: true, encoding: "utf8" })
    .filter((file) => file.endsWith(".test.ts"))
    .map((file) => `${folder}/${file.replaceAll("\\", "/")}`),
);
const filesOf = (project: Project) => files.filter((file) => projectOf(file) === project);

const limits = { testTimeout: TIMEOUT_MILLISECONDS, hookTimeout: TIMEOUT_MILLISECONDS, pool: "forks" } as const;
/** The files of a project run after those of lower groups: the tests share a Postgres server and two cores. */
const group = (groupOrder: number, maxWorkers = 1) => ({ maxWorkers, sequence: { groupOrder } });
const threads = { pool: "threads", sequence: { groupOrder: 0 } } as const;
/** Half of the time of such a test is a wait: for a limit to pass, or for brokers. */
const LOTUS_FILES_AT_ONCE = 2;
const KAFKA_FILES_AT_ONCE = 2;

export default defineConfig({
  test: {
    projects: [
      // These files share their modules, which halves the time. A file that replaces modules or variables has its own.
      { test: { name: "unit", include: filesOf("unit"), ...limits, ...threads, isolate: false } },
      { test: { name: "unit-mocks", include: filesOf("unit-mocks"), ...limits, ...threads } },
      {
        test: {
          name: "lotus",
          include: filesOf("lotus"),
          globalSetup: "scripts/testing/setup.ts",
          ...limits,
          ...group(1, LOTUS_FILES_AT_ONCE),
        },
      },
      {
        test: {
          name: "chaos",
          include: filesOf("chaos"),
          globalSetup: "scripts/testing/setup.ts",
          ...limits,
          ...group(2),
        },
      },
      {
        test: {
          name: "kafka",
          include: filesOf("kafka"),
          globalSetup: "scripts/testing/setup.ts",
          ...limits,
          ...group(3, KAFKA_FILES_AT_ONCE),
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
          ...group(4),
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
