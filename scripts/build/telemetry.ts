/** Bundles the exporter of traces and metrics: dist/telemetry.bundle.cjs, and dist/telemetry.cjs, which functions load. */
import { createHash } from "node:crypto";
import { stat, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { type BuildOptions, build, transform } from "esbuild";
import { ROOT } from "../project/paths.ts";

const ENTRY = "functions/kernel/telemetry-sdk.ts";
/** The files begin with this name. A function may not have it. */
export const TELEMETRY = "telemetry";
/** A change of these files builds the exporter again. */
const INPUTS = [ENTRY, "package-lock.json", "scripts/build/telemetry.ts", "scripts/build/start-cache.ts"];

/** Returns the files of the exporter in a folder: the program, and the bundle that it runs. */
export function telemetryFiles(folder: string): { readonly program: string; readonly bundle: string } {
  return { program: join(folder, `${TELEMETRY}.cjs`), bundle: join(folder, `${TELEMETRY}.bundle.cjs`) };
}

async function changedAt(file: string): Promise<number> {
  return (await stat(file).catch(() => undefined))?.mtimeMs ?? 0;
}

/** How esbuild bundles the exporter. */
const OPTIONS = {
  entryPoints: [join(ROOT, ENTRY)],
  bundle: true,
  platform: "node",
  format: "cjs",
  target: "node20",
  minify: true,
  // esbuild cannot remove unused parts of the packages' CommonJS files: the bundle would be four times as large.
  mainFields: ["module", "main"],
  // The start cache does not support import(), by which the exporter loads node:http.
  supported: { "dynamic-import": false },
  charset: "ascii",
  legalComments: "none",
  absWorkingDir: ROOT,
  logLevel: "silent",
  write: false,
} satisfies BuildOptions;

/** Returns the files that the bundle of the exporter contains, relative to the checkout. */
export async function telemetryInputs(): Promise<string[]> {
  const { metafile } = await build({ ...OPTIONS, metafile: true });
  return Object.keys(metafile.inputs);
}

/**
 * Builds the exporter unless it is newer than its inputs.
 * @param folder the folder of the bundles
 * @param startCache the text of start-cache.ts
 */
export async function buildTelemetry(folder: string, startCache: string): Promise<void> {
  const { program, bundle } = telemetryFiles(folder);
  const inputs = await Promise.all(INPUTS.map((file) => changedAt(join(ROOT, file))));
  const outputs = await Promise.all([program, bundle].map(changedAt));
  if (Math.min(...outputs) > Math.max(...inputs)) return;
  const { outputFiles } = await build(OPTIONS);
  const contents = outputFiles[0]?.contents ?? new Uint8Array();
  const compiled = `${TELEMETRY}.${createHash("sha256").update(contents).digest("hex").slice(0, 16)}`;
  const { code } = await transform(startCache, {
    loader: "ts",
    format: "cjs",
    platform: "node",
    target: "node20",
    define: { BUNDLE: JSON.stringify(basename(bundle)), COMPILED: JSON.stringify(compiled), LIBRARY: "true" },
  });
  await writeFile(bundle, contents);
  await writeFile(program, code);
}
