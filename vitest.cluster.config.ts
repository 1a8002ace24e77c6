import { defineConfig } from "vitest/config";

/** npm run test:cluster: what only a Kubernetes with Knative can show. Skipped, with a sentence, where there is none. */
export default defineConfig({
  test: {
    include: ["scripts/**/*.cluster.test.ts"],
    globalSetup: "scripts/testing/cluster/setup.ts",
    // One cluster, whose pods the tests delete.
    fileParallelism: false,
    pool: "forks",
    testTimeout: 300_000,
    hookTimeout: 300_000,
    teardownTimeout: 60_000,
  },
});
