/** The contents of the images: one folder each below .lotus/images, with the Dockerfile beside them. */
import { createHash } from "node:crypto";
import { cp, mkdir, readdir, readFile, rm } from "node:fs/promises";
import { basename, join, relative } from "node:path";
import { build, type Plugin } from "esbuild";
import { Refusal } from "../cli/errors.ts";
import { findFunctions } from "../project/functions.ts";
import { ROOT } from "../project/paths.ts";
import { buildFunctions, bundleOf, DIST, endEsbuild, programOf } from "./bundles.ts";
import { telemetryFiles } from "./telemetry.ts";

/** The context that images are built from. */
export const CONTEXT = join(ROOT, ".lotus/images");
const DOCKERFILE = join(ROOT, "knative/images/Dockerfile");

/** Programs that run in the cluster: commands of lotus, and the wsproxy. `schema`: the SQL files lie beside the program. */
const PROGRAMS = {
  migrate: { command: "scripts/commands/migrate.ts", schema: true },
  topics: { command: "scripts/commands/topics.ts", schema: false },
} as const;
export const PROGRAM_NAMES = Object.keys(PROGRAMS) as (keyof typeof PROGRAMS)[];

/** Replaces the modules that read the folders of the checkout, which an image does not have: the bundle contains the list. */
async function embedFunctions(): Promise<Plugin> {
  const functions = await findFunctions();
  const imports = functions.map(({ file }, index) => `import description${index} from "./${file}";`);
  const list = functions.map(({ description: _, ...found }, index) => {
    return `{ ...${JSON.stringify(found)}, description: description${index} }`;
  });
  const contents = `${imports.join("\n")}
    export async function findFunctions() { return [${list.join(", ")}]; }`;
  return {
    name: "embed-functions",
    setup({ onLoad }) {
      onLoad({ filter: /[\\/]scripts[\\/].*\.ts$/ }, async ({ path }) => {
        if (path === join(ROOT, "scripts/project/functions.ts")) return { contents, resolveDir: ROOT, loader: "ts" };
        if (path === join(ROOT, "scripts/project/paths.ts"))
          return { contents: "export const ROOT = import.meta.dirname;", loader: "ts" };
        return undefined;
      });
    },
  };
}

/** Runs while an image is built (knative/images/Dockerfile); one file, whatever Node the image has. */
async function bundleRehearsal(): Promise<void> {
  await build({
    entryPoints: [join(ROOT, "scripts/build/warm-up.ts")],
    outfile: join(CONTEXT, "rehearse.cjs"),
    bundle: true,
    platform: "node",
    format: "cjs",
    target: "node20",
    minify: true,
    external: ["bufferutil", "utf-8-validate", "pg-native"],
    absWorkingDir: ROOT,
    logLevel: "silent",
  });
}

const entryOf = (name: string, command: string) => `
  import { runSingleCommand } from "./scripts/cli/single.ts";
  import command from "./${command}";
  await runSingleCommand("${name}", command, process.argv.slice(2));`;

async function bundleProgram(name: keyof typeof PROGRAMS): Promise<void> {
  const { command, schema } = PROGRAMS[name];
  await build({
    ...(command === undefined
      ? { entryPoints: [join(ROOT, `scripts/${name}.ts`)] }
      : { stdin: { contents: entryOf(name, command), resolveDir: ROOT, sourcefile: `${name}.entry.ts` } }),
    outfile: join(CONTEXT, name, "program.mjs"),
    bundle: true,
    platform: "node",
    format: "esm",
    target: "node20",
    minifySyntax: true,
    minifyWhitespace: true,
    legalComments: "none",
    // Some packages are CommonJS, and call `require` for Node's own modules.
    banner: {
      js: 'import { createRequire as programRequire } from "node:module";const require = programRequire(import.meta.url);',
    },
    define: { "process.env.WS_NO_BUFFER_UTIL": '"1"', "process.env.WS_NO_UTF_8_VALIDATE": '"1"' },
    external: ["bufferutil", "utf-8-validate", "pg-native"],
    plugins: [await embedFunctions()],
    absWorkingDir: ROOT,
    logLevel: "silent",
  });
  if (!schema) return;
  for (const service of await readdir(join(ROOT, "functions"))) {
    const schema = join("functions", service, "schema");
    await cp(join(ROOT, schema), join(CONTEXT, name, schema), { recursive: true }).catch((error: unknown) => {
      // A service without a database has no schema.
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    });
  }
}

async function filesBelow(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .sort();
}

/** Returns the hash of an image's content as 16 hexadecimal digits: its files, the Dockerfile, and the base image. */
async function contentHash(name: string, base: string): Promise<string> {
  const hash = createHash("sha256")
    .update(base)
    .update(await readFile(DOCKERFILE))
    .update(await readFile(join(CONTEXT, "rehearse.cjs")));
  for (const file of await filesBelow(join(CONTEXT, name))) {
    hash.update(`\0${relative(CONTEXT, file)}\0`).update(await readFile(file));
  }
  return hash.digest("hex").slice(0, 16);
}

/**
 * Bundles functions and programs into .lotus/images.
 * @param functions their names
 * @returns by name, the tag of the image: a hash of what it holds
 */
export async function prepareImages(
  functions: readonly string[],
  programs: readonly (keyof typeof PROGRAMS)[],
  base: string,
): Promise<Map<string, string>> {
  await rm(CONTEXT, { recursive: true, force: true });
  await mkdir(CONTEXT, { recursive: true });
  // By name, so that what is in dist/ already stays: a local run may be using it.
  const { failed } = await buildFunctions(functions).finally(endEsbuild);
  for (const [name, errors] of failed) throw new Refusal(`${name} does not compile.\n${errors}`);
  for (const name of functions) {
    await mkdir(join(CONTEXT, name));
    await cp(programOf(name), join(CONTEXT, name, "function.cjs"));
    await cp(bundleOf(name), join(CONTEXT, name, basename(bundleOf(name))));
    for (const file of Object.values(telemetryFiles(DIST))) await cp(file, join(CONTEXT, name, basename(file)));
  }
  for (const name of programs) await bundleProgram(name);
  await bundleRehearsal();
  await cp(DOCKERFILE, join(CONTEXT, "Dockerfile"));
  const tags = new Map<string, string>();
  for (const name of [...functions, ...programs]) tags.set(name, await contentHash(name, base));
  return tags;
}
