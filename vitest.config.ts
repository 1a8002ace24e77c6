import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["functions/**/*.test.ts", "triggers/**/*.test.ts", "scripts/**/*.test.ts"],
    exclude: ["**/*.cluster.test.ts"],
    globalSetup: "scripts/testing/setup.ts",
    // The database's roles belong to the whole server, and two cores are soon full.
    fileParallelism: false,
    pool: "forks",
    // How long a failure takes, and nothing else: a machine may be busy.
    testTimeout: 120_000,
    hookTimeout: 120_000,
    // For .ci/run, which counts.
    reporters: process.env.CI ? ["default", ["json", { outputFile: "node_modules/.test-results.json" }]] : ["default"],
  },
});
