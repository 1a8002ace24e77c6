/** Builds the functions before all tests, and again before each run of `vitest watch`. */
import type { TestProject } from "vitest/node";
import { buildFunctions, endEsbuild } from "../build/bundles.ts";

/** Builds the functions. @throws {Error} with the code frames, when one does not compile */
async function buildAll(): Promise<void> {
  const { failed } = await buildFunctions().finally(endEsbuild);
  if (failed.size > 0) throw new Error([...failed.values()].join("\n"));
}

/** Is a global setup of vitest. A test reaches a function through its bundle, so each run needs current bundles. */
export default async function build(project: Pick<TestProject, "onTestsRerun">): Promise<void> {
  project.onTestsRerun(buildAll);
  await buildAll();
}
