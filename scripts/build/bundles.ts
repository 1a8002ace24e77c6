/** Bundles each function: dist/<name>.bundle.cjs, and the program dist/<name>.cjs that runs the bundle. */
import { createHash } from "node:crypto";
import { existsSync, statSync } from "node:fs";
import { mkdir, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import {
  type BuildFailure,
  type BuildOptions,
  type BuildResult,
  build,
  formatMessages,
  type Metafile,
  type Plugin,
  stop,
  transform,
  version,
} from "esbuild";
import { Refusal } from "../cli/errors.ts";
import { type FunctionFile, functionFiles } from "../project/functions.ts";
import { ROOT } from "../project/paths.ts";
import { leaveOut, rewriteLibraries } from "./stubs.ts";
import { buildTelemetry, TELEMETRY } from "./telemetry.ts";

/** The folder of the bundles. */
export const DIST = join(ROOT, "dist");

const START_CACHE = join(ROOT, "scripts/build/start-cache.ts");
const STATE = join(DIST, "inputs.json");
/** A change of these files builds every function again. */
const COMMON_INPUTS = [
  "package.json",
  "package-lock.json",
  "tsconfig.json",
  "scripts/build/bundles.ts",
  "scripts/build/start-cache.ts",
  "scripts/build/stubs.ts",
];

/** The state of an input file: the time of its last change in milliseconds, and its size in bytes. */
type Stamp = readonly [milliseconds: number, bytes: number];

/** The bundles of the last build, with the files that they were built from. */
interface State {
  readonly version: string;
  readonly common: Readonly<Record<string, Stamp>>;
  readonly functions: Readonly<Record<string, { readonly inputs: Readonly<Record<string, Stamp>>; compiled: string }>>;
}

/** The result of a build. */
export interface Built {
  /** Every function that has an up-to-date bundle. */
  readonly names: readonly string[];
  /** The functions among them that were built now. */
  readonly changed: readonly string[];
  /** The errors of each function that does not compile, with code frames. */
  readonly failed: ReadonlyMap<string, string>;
}

/** Returns the program that runs a function. */
export function programOf(name: string): string {
  return join(DIST, `${name}.cjs`);
}

/** Returns the bundle of a function. */
export function bundleOf(name: string): string {
  return join(DIST, `${name}.bundle.cjs`);
}

/**
 * The program listens when it is the main file. The framework's own command line loads it otherwise: then it registers with that
 * framework, because esbuild would make `module.require` the framework in the bundle, which the command line cannot see.
 */
function entry({ name, file }: FunctionFile): string {
  return `
    import { createRequire } from "node:module";
    import description from "./${file}";
    import { main, register } from "#kernel/server";
    const load = createRequire(__filename);
    if (require.main === module) main("${name}", description, () => load("./${TELEMETRY}.cjs"));
    else register("${name}", description, load("@google-cloud/functions-framework"));`;
}

const NAMESPACE = "function";

function entries(functions: readonly FunctionFile[]): Plugin {
  return {
    name: "functions",
    setup({ onResolve, onLoad }) {
      onResolve({ filter: /^function:/ }, ({ path }) => ({ path: path.slice(9), namespace: NAMESPACE }));
      onLoad({ filter: /.*/, namespace: NAMESPACE }, ({ path }) => {
        const fn = functions.find(({ name }) => name === path);
        return { contents: fn === undefined ? "" : entry(fn), resolveDir: ROOT, loader: "ts" };
      });
    },
  };
}

function optionsFor(functions: readonly FunctionFile[]) {
  return {
    entryPoints: functions.map(({ name }) => ({ in: `function:${name}`, out: `${name}.bundle` })),
    outdir: DIST,
    outExtension: { ".js": ".cjs" },
    bundle: true,
    platform: "node",
    format: "cjs",
    target: "node20",
    minifySyntax: true,
    minifyWhitespace: true,
    // No minifyIdentifiers: the names in a stack stay readable.
    legalComments: "none",
    sourcemap: "linked",
    sourcesContent: false,
    // ws looks for native helpers, which Lotus does not install.
    define: { "process.env.WS_NO_BUFFER_UTIL": '"1"', "process.env.WS_NO_UTF_8_VALIDATE": '"1"' },
    external: ["bufferutil", "utf-8-validate", "pg-native"],
    plugins: [entries(functions), leaveOut, rewriteLibraries],
    absWorkingDir: ROOT,
    logLevel: "silent",
    metafile: true,
    write: false,
  } satisfies BuildOptions;
}

/** Returns the stamp of a file; zeros for a missing one. */
function stampOf(file: string): Stamp {
  const stats = statSync(join(ROOT, file), { throwIfNoEntry: false });
  return stats === undefined ? [0, 0] : [stats.mtimeMs, stats.size];
}

/** A file system takes the time of a change from a clock that advances in steps. */
const FILE_TIME_STEP_MILLISECONDS = 10;
/** Is the stamp of no file. */
const UNKNOWN: Stamp = [-1, -1];

/**
 * Returns the stamps of files that were read after `began`, in milliseconds since 1970. A file that changed since then has a stamp
 * that never matches, because its old content may have been read.
 */
export function stampsOf(files: Iterable<string>, began: number): Record<string, Stamp> {
  const isOlder = ([milliseconds]: Stamp) => milliseconds < began - FILE_TIME_STEP_MILLISECONDS;
  const safe = (stamp: Stamp) => (isOlder(stamp) ? stamp : UNKNOWN);
  return Object.fromEntries([...files].map((file) => [file, safe(stampOf(file))]));
}

/** Returns whether files still have these stamps. */
export function isUnchanged(stamps: Readonly<Record<string, Stamp>>): boolean {
  return Object.entries(stamps).every(([file, [milliseconds, bytes]]) => {
    const now = stampOf(file);
    return now[0] === milliseconds && now[1] === bytes;
  });
}

async function readState(): Promise<State> {
  const empty = { version, common: {}, functions: {} };
  try {
    const state = JSON.parse(await readFile(STATE, "utf8")) as State;
    const isValid = state.version === version && isUnchanged(state.common) && Object.keys(state.common).length > 0;
    return isValid ? state : empty;
  } catch {
    return empty;
  }
}

/** Writes a file in one step, because another start may read it. */
async function writeWhole(file: string, content: string | Uint8Array): Promise<void> {
  const written = `${file}.${process.pid}.new`;
  await writeFile(written, content);
  await rename(written, file);
}

/** Returns every file that an entry imports, directly or not. */
function inputsOf(name: string, { inputs }: Metafile): Set<string> {
  const found = new Set<string>();
  const visit = (path: string): void => {
    for (const { path: imported, external } of inputs[path]?.imports ?? []) {
      if (external || found.has(imported)) continue;
      found.add(imported);
      visit(imported);
    }
  };
  visit(`${NAMESPACE}:${name}`);
  // Files of a plugin's namespace, such as `left-out:qs`, do not exist on disk.
  return new Set([...found].filter((path) => !/^[a-z-]{2,}:/.test(path)));
}

/** Writes the bundle of one function and the program that runs it. `began` is the time before its files were read. */
async function writeFunction(
  { name, file }: FunctionFile,
  { outputFiles, metafile }: BuildResult<ReturnType<typeof optionsFor>>,
  startCache: string,
  began: number,
): Promise<State["functions"][string]> {
  const output = metafile.outputs[`dist/${name}.bundle.cjs`];
  // The start cache does not support import(); a bundle contains every module.
  const dynamic = output?.imports.find(({ kind }) => kind === "dynamic-import");
  if (dynamic !== undefined)
    throw new Refusal(
      `${file}: import("${dynamic.path}") must be an import declaration, because a bundle is one file.`,
    );
  const contentOf = (path: string) => outputFiles.find((candidate) => candidate.path === path)?.contents;
  const bundle = contentOf(bundleOf(name)) ?? new Uint8Array();
  const map = contentOf(`${bundleOf(name)}.map`) ?? new Uint8Array();
  const compiled = `${name}.${createHash("sha256").update(bundle).digest("hex").slice(0, 16)}`;
  const names = { BUNDLE: basename(bundleOf(name)), COMPILED: compiled, LIBRARY: false };
  const define = Object.fromEntries(Object.entries(names).map(([key, value]) => [key, JSON.stringify(value)]));
  const options = { loader: "ts", format: "cjs", platform: "node", target: "node20", define } as const;
  const { code } = await transform(startCache, options);
  await writeWhole(`${bundleOf(name)}.map`, map);
  await writeWhole(bundleOf(name), bundle);
  await writeWhole(programOf(name), code);
  return { inputs: stampsOf([...inputsOf(name, metafile), file], began), compiled };
}

/** Returns the errors of a failed build with code frames. */
async function describeFailure(error: unknown): Promise<string> {
  const { errors, message } = error as BuildFailure;
  if (errors === undefined) return message;
  const frames = await formatMessages(errors, { kind: "error", color: process.stdout.isTTY === true });
  return frames.join("").trimEnd();
}

/** Builds functions in one call. When one of them does not compile, it builds each by itself. */
async function buildNow(functions: readonly FunctionFile[]): Promise<{
  built: [FunctionFile, State["functions"][string]][];
  failed: Map<string, string>;
}> {
  const failed = new Map<string, string>();
  const startCache = await readFile(START_CACHE, "utf8");
  const one = async (group: readonly FunctionFile[]) => {
    const began = Date.now();
    const result = await build(optionsFor(group));
    return Promise.all(
      group.map(
        async (fn) =>
          [fn, await writeFunction(fn, result, startCache, began)] as [FunctionFile, State["functions"][string]],
      ),
    );
  };
  try {
    return { built: await one(functions), failed };
  } catch (error) {
    if (functions.length === 1) {
      failed.set(functions[0]?.name ?? "", await describeFailure(error));
      return { built: [], failed };
    }
  }
  const results = await Promise.all(functions.map((fn) => buildNow([fn])));
  for (const result of results) for (const [name, errors] of result.failed) failed.set(name, errors);
  return { built: results.flatMap(({ built }) => built), failed };
}

/** Removes files of functions that no longer exist, and compiled code of older bundles. */
async function removeOld(state: State): Promise<void> {
  const kept = Object.entries(state.functions).flatMap(([name, { compiled }]) => [
    `${name}.cjs`,
    `${name}.bundle.cjs`,
    `${compiled}.`,
  ]);
  const old = (await readdir(DIST)).filter(
    (file) =>
      file !== basename(STATE) &&
      !file.startsWith(`${TELEMETRY}.`) &&
      !kept.some((beginning) => file.startsWith(beginning)),
  );
  await Promise.all(old.map((file) => rm(join(DIST, file), { recursive: true, force: true })));
}

/** Builds run one after the other, because each reads and writes the state of dist/. */
let last: Promise<unknown> = Promise.resolve();

/**
 * Builds every function, or those named. A function whose inputs did not change keeps its bundle and its compiled code.
 * @throws {Refusal} when a name is unknown
 */
export function buildFunctions(only?: readonly string[]): Promise<Built> {
  const next = async () => buildInTurn(only);
  const result = last.then(next, next);
  last = result.catch(() => undefined);
  return result;
}

async function buildInTurn(only: readonly string[] | undefined): Promise<Built> {
  const all = await functionFiles();
  const unknown = only?.find((name) => !all.some((fn) => fn.name === name));
  if (unknown !== undefined) throw new Refusal(`No function is called ${unknown}. List them: npx lotus ps`);
  const wanted = all.filter(({ name }) => only === undefined || only.includes(name));
  await mkdir(DIST, { recursive: true });
  await buildTelemetry(DIST, await readFile(START_CACHE, "utf8"));
  const state = await readState();
  const stale = wanted.filter(({ name }) => {
    const known = state.functions[name];
    return known === undefined || !isUnchanged(known.inputs) || !existsSync(programOf(name));
  });
  if (stale.length === 0) return { names: wanted.map(({ name }) => name), changed: [], failed: new Map() };
  const common = stampsOf(COMMON_INPUTS, Date.now());
  const { built, failed } = await buildNow(stale);
  const functions = Object.fromEntries([
    ...Object.entries(state.functions).filter(([name]) => all.some((fn) => fn.name === name)),
    ...built.map(([{ name }, entryState]) => [name, entryState] as const),
  ]);
  const after: State = { version, common, functions };
  await writeWhole(STATE, JSON.stringify(after));
  if (only === undefined && failed.size === 0) await removeOld(after);
  return {
    names: wanted.map(({ name }) => name).filter((name) => !failed.has(name)),
    changed: built.map(([{ name }]) => name),
    failed,
  };
}

/** Ends esbuild's service process, which would keep its memory until this process ends. */
export const endEsbuild = stop;

/** Returns the files of each function that is built, relative to the checkout. */
export async function builtInputs(): Promise<ReadonlyMap<string, ReadonlySet<string>>> {
  const { functions } = await readState();
  return new Map(Object.entries(functions).map(([name, { inputs }]) => [name, new Set(Object.keys(inputs))]));
}
