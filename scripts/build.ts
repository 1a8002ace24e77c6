/** Bundles each function into one file, dist/<name>.cjs. */
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { type BuildOptions, build, context, type Plugin } from "esbuild";
import { findFunctions, type LotusFunction, ROOT } from "./functions.ts";

export const DIST = join(ROOT, "dist");

/** Where the bundle of a function is. */
export function bundleOf(name: string): string {
  return join(DIST, `${name}.cjs`);
}

/**
 * What the functions framework pulls in and this listener never lets it use: `domain` costs two thirds of the framework's
 * time for a request, and the body parsers' encodings a third of the bundle. The bodies are read before it sees them.
 */
const leaveOut: Plugin = {
  name: "leave-out",
  setup({ onResolve, onLoad }) {
    onResolve({ filter: /^(domain|iconv-lite)$/ }, ({ path }) => ({ path, namespace: "left-out" }));
    onLoad({ filter: /^domain$/, namespace: "left-out" }, () => ({
      contents: `
        const none = { on() {}, run(work) { work(); }, bind: (callback) => callback };
        process.domain = none;
        module.exports = { create: () => none };`,
    }));
    onLoad({ filter: /^iconv-lite$/, namespace: "left-out" }, () => ({
      contents: `
        const unused = () => { throw new Error("the listener reads bodies itself"); };
        module.exports = { encodingExists: () => true, decode: unused, getDecoder: unused };`,
    }));
  },
};

/** The program: listens when it is the main file; else it is being loaded by the framework's own command line. */
function entry({ name, file }: LotusFunction): string {
  return `
    import description from "./${file}";
    import { main, register } from "#kernel/server";
    if (require.main === module) main("${name}", description);
    else register("${name}", description, module.require("@google-cloud/functions-framework"));`;
}

function optionsFor(fn: LotusFunction): BuildOptions {
  return {
    stdin: { contents: entry(fn), resolveDir: ROOT, sourcefile: `${fn.name}.entry.ts`, loader: "ts" },
    outfile: bundleOf(fn.name),
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
  };
}

/** Builds every function, or those named. Resolves to the names built. */
export async function buildFunctions(only?: readonly string[]): Promise<string[]> {
  const functions = (await findFunctions()).filter(({ name }) => only === undefined || only.includes(name));
  if (only === undefined) await rm(DIST, { recursive: true, force: true });
  await mkdir(DIST, { recursive: true });
  await Promise.all(functions.map((fn) => build(optionsFor(fn))));
  return functions.map(({ name }) => name);
}

/** Builds every function and again whenever one of its files changes. `changed` hears of each build after the first. */
export async function watchFunctions(
  changed: (name: string, errors: string[]) => void,
): Promise<{ stop(): Promise<void> }> {
  await mkdir(DIST, { recursive: true });
  const contexts = await Promise.all(
    (await findFunctions()).map(async (fn) => {
      let first = true;
      const tell: Plugin = {
        name: "tell",
        setup({ onEnd }) {
          onEnd(({ errors }) => {
            if (!first)
              changed(
                fn.name,
                errors.map(({ text, location }) => `${location?.file}:${location?.line}: ${text}`),
              );
            first = false;
          });
        },
      };
      const made = await context({ ...optionsFor(fn), plugins: [leaveOut, tell] });
      await made.rebuild().catch(() => undefined);
      await made.watch({ delay: 20 });
      return made;
    }),
  );
  return {
    async stop() {
      await Promise.all(contexts.map((made) => made.dispose()));
    },
  };
}

if (process.argv[1] === import.meta.filename) {
  const names = await buildFunctions();
  console.log(`Built ${names.length} functions into dist/.`);
}
