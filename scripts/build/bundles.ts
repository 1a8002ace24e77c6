/** Bundles each function: dist/<name>.bundle.cjs, and dist/<name>.cjs, which runs it. */
import { createHash } from "node:crypto";
import { watch } from "node:fs";
import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { type BuildContext, type BuildFailure, type BuildOptions, build, context, stop, transform } from "esbuild";
import { findFunctions, type LotusFunction } from "../project/functions.ts";
import { ROOT } from "../project/paths.ts";
import { leaveOut } from "./stubs.ts";

const SETTLE_MILLISECONDS = 20;

export const DIST = join(ROOT, "dist");

const LOADER = join(ROOT, "scripts/build/start-cache.ts");

/** The file that a function is started by. */
export function programOf(name: string): string {
  return join(DIST, `${name}.cjs`);
}

/** The bundle that it runs, beside it. */
export function bundleOf(name: string): string {
  return join(DIST, `${name}.bundle.cjs`);
}

/**
 * The program: listens when it is the main file; else it is being loaded by the framework's own command line, and registers with
 * that framework. esbuild would make `module.require` of it the framework in the bundle, whose functions the command line cannot see.
 */
function entry({ name, file }: LotusFunction): string {
  return `
    import { createRequire } from "node:module";
    import description from "./${file}";
    import { main, register } from "#kernel/server";
    if (require.main === module) main("${name}", description);
    else register("${name}", description, createRequire(__filename)("@google-cloud/functions-framework"));`;
}

function optionsFor(fn: LotusFunction, outfile: string) {
  return {
    stdin: { contents: entry(fn), resolveDir: ROOT, sourcefile: `${fn.name}.entry.ts`, loader: "ts" },
    outfile,
    bundle: true,
    platform: "node",
    format: "cjs",
    target: "node20",
    minifySyntax: true,
    minifyWhitespace: true,
    // No minifyIdentifiers: a stack in a log must be readable.
    legalComments: "none",
    // ws looks for native helpers that we do not install.
    define: { "process.env.WS_NO_BUFFER_UTIL": '"1"', "process.env.WS_NO_UTF_8_VALIDATE": '"1"' },
    external: ["bufferutil", "utf-8-validate", "pg-native"],
    plugins: [leaveOut],
    absWorkingDir: ROOT,
    logLevel: "silent",
  } satisfies BuildOptions;
}

/** Writes a bundle and what runs it. Returns how the names of their files begin. */
async function buildFunction(fn: LotusFunction, loader: string): Promise<string[]> {
  const { outputFiles, metafile } = await build({ ...optionsFor(fn, bundleOf(fn.name)), write: false, metafile: true });
  const outside = Object.values(metafile.outputs).flatMap(({ imports }) => imports);
  // The loader's way of running a bundle knows no import(); what esbuild bundles does not need it.
  const dynamic = outside.find(({ kind }) => kind === "dynamic-import");
  if (dynamic !== undefined) throw new Error(`${fn.file}: import("${dynamic.path}") must be an import declaration.`);
  const bundle = outputFiles[0]?.contents ?? new Uint8Array();
  const compiled = `${fn.name}.${createHash("sha256").update(bundle).digest("hex").slice(0, 16)}`;
  const names = { BUNDLE: basename(bundleOf(fn.name)), COMPILED: compiled };
  const define = Object.fromEntries(Object.entries(names).map(([name, value]) => [name, JSON.stringify(value)]));
  const { code } = await transform(loader, { loader: "ts", format: "cjs", platform: "node", target: "node20", define });
  await writeFile(bundleOf(fn.name), bundle);
  await writeFile(programOf(fn.name), code);
  return [`${fn.name}.cjs`, names.BUNDLE, `${compiled}.`];
}

/**
 * Builds every function, or those named. What V8 compiled from bundles that are the same as before stays.
 * @returns the names built
 */
export async function buildFunctions(only?: readonly string[]): Promise<string[]> {
  const functions = (await findFunctions()).filter(({ name }) => only === undefined || only.includes(name));
  await mkdir(DIST, { recursive: true });
  const loader = await readFile(LOADER, "utf8");
  const kept = (await Promise.all(functions.map((fn) => buildFunction(fn, loader)))).flat();
  // esbuild's service process would stay, with all that it has read, for as long as this one.
  await stop();
  const old = (await readdir(DIST)).filter((file) => !kept.some((beginning) => file.startsWith(beginning)));
  if (only === undefined) await Promise.all(old.map((file) => rm(join(DIST, file), { recursive: true, force: true })));
  return functions.map(({ name }) => name);
}

/** Hears how a build ended: with errors, or with the empty text. */
type BuildDone = (name: string, errors: string) => void;

/** One function's build, and the files it was made of. */
class FunctionBuild {
  readonly name: string;
  readonly #context: BuildContext;
  readonly #done: BuildDone;
  #files: ReadonlySet<string> = new Set();
  #last: Promise<void> = Promise.resolve();
  #stale = true;

  constructor(name: string, context: BuildContext, done: BuildDone) {
    this.name = name;
    this.#context = context;
    this.#done = done;
  }

  uses(file: string): boolean {
    return this.#files.has(file);
  }

  /** Whether something has changed since the last build began. */
  get stale(): boolean {
    return this.#stale;
  }

  invalidate(): void {
    this.#stale = true;
  }

  /**
   * Resolves when what there is now has been built. Builds of one function come one after the other: esbuild would merge two,
   * and miss what changed in between. A build that fails keeps the files of the one before: their next change tries again.
   */
  fresh(): Promise<void> {
    if (!this.#stale) return this.#last;
    this.#stale = false;
    const next = async () => {
      const { metafile } = await this.#context.rebuild();
      this.#files = new Set(Object.keys(metafile?.inputs ?? {}));
    };
    this.#last = this.#last.then(next, next);
    this.#last.then(
      () => this.#done(this.name, ""),
      (error: unknown) => this.#done(this.name, buildErrors(error)),
    );
    return this.#last;
  }

  dispose(): Promise<void> {
    return this.#context.dispose();
  }
}

/** functions/order and its like: the folders that hold the functions' files. */
async function sourceFolders(): Promise<string[]> {
  const below = ["functions", "triggers"].map(async (top) => {
    const entries = await readdir(join(ROOT, top), { withFileTypes: true });
    return entries.filter((entry) => entry.isDirectory()).map(({ name }) => join(top, name));
  });
  return (await Promise.all(below)).flat();
}

/** What esbuild found wrong, a line an error. */
function buildErrors(error: unknown): string {
  const { errors, message } = error as BuildFailure;
  if (errors === undefined) return message;
  return errors.map(({ text, location }) => `${location?.file}:${location?.line}: ${text}`).join("\n");
}

/**
 * Builds every function, and each one again when a file that it is made of changes.
 * @param changed hears of a function that has to be built again; `build` does it, and rejects when it fails
 * @param done hears of each build after the first
 */
export async function watchFunctions(
  changed: (name: string, build: () => Promise<void>) => void,
  done: BuildDone,
): Promise<{ stop(): Promise<void> }> {
  await mkdir(DIST, { recursive: true });
  let watching = false;
  const tellDone: BuildDone = (name, errors) => watching && done(name, errors);
  const builds = await Promise.all(
    (await findFunctions()).map(
      async (fn) =>
        new FunctionBuild(fn.name, await context({ ...optionsFor(fn, programOf(fn.name)), metafile: true }), tellDone),
    ),
  );
  await Promise.all(builds.map((build) => build.fresh()));
  watching = true;
  const waiting = new Set<string>();
  const rebuild = async () => {
    const files = [...waiting];
    waiting.clear();
    for (const build of builds.filter((candidate) => files.some((file) => candidate.uses(file)))) {
      build.invalidate();
      changed(build.name, () => build.fresh());
    }
    // One after the other, so that the one that somebody asks for comes first.
    for (const build of builds) if (build.stale && watching) await build.fresh().catch(() => undefined);
  };
  // A watcher a folder: Node's recursive ones on Linux lose a file that an editor has replaced.
  const watchers = (await sourceFolders()).map((folder) =>
    watch(join(ROOT, folder), (_, file) => {
      if (file === null) return;
      // An editor writes a file in several steps; one build for all of them.
      if (waiting.size === 0) setTimeout(rebuild, SETTLE_MILLISECONDS);
      waiting.add(join(folder, file));
    }),
  );
  return {
    async stop() {
      watching = false;
      for (const watcher of watchers) watcher.close();
      await Promise.all(builds.map((build) => build.dispose()));
    },
  };
}
