/** Writes the content of the image: one folder for each function and program below .lotus/images/app. */
import { createHash } from "node:crypto";
import { cp, mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { basename, join, relative } from "node:path";
import { build, type Metafile, type Plugin } from "esbuild";
import { Refusal } from "../cli/errors.ts";
import { findFunctions } from "../project/functions.ts";
import { ROOT } from "../project/paths.ts";
import { buildFunctions, builtInputs, bundleOf, DIST, endEsbuild, programOf } from "./bundles.ts";
import { billOfMaterials, noticesOf, readPackages } from "./licences.ts";
import { telemetryFiles, telemetryInputs } from "./telemetry.ts";

/** The build context of the image. */
export const CONTEXT = join(ROOT, ".lotus/images");
const APP = join(CONTEXT, "app");
const DOCKERFILE = join(ROOT, "knative/images/Dockerfile");

/** Commands of lotus that run as Jobs. `schema`: the program reads the SQL files, or the services that have some. */
const PROGRAMS = {
  migrate: { command: "scripts/commands/migrate.ts", schema: true },
  topics: { command: "scripts/commands/topics.ts", schema: false },
  preflight: { command: "scripts/commands/preflight.ts", schema: true },
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

/** The image build runs it (knative/images/Dockerfile). One file serves every version of Node. */
async function bundleRehearsal(): Promise<Metafile> {
  const { metafile } = await build({
    metafile: true,
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
  return metafile;
}

const entryOf = (name: string, command: string) => `
  import { runSingleCommand } from "./scripts/cli/single.ts";
  import command from "./${command}";
  await runSingleCommand("${name}", command, process.argv.slice(2));`;

async function bundleProgram(name: keyof typeof PROGRAMS): Promise<Metafile> {
  const { command, schema } = PROGRAMS[name];
  const { metafile } = await build({
    stdin: { contents: entryOf(name, command), resolveDir: ROOT, sourcefile: `${name}.entry.ts` },
    outfile: join(APP, name, "program.mjs"),
    metafile: true,
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
  if (!schema) return metafile;
  for (const service of await readdir(join(ROOT, "functions"))) {
    const folder = join("functions", service, "schema");
    await cp(join(ROOT, folder), join(APP, name, folder), { recursive: true }).catch((error: unknown) => {
      // A service without a database has no schema.
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    });
  }
  return metafile;
}

async function filesBelow(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .sort();
}

const HASH_CHARACTERS = 16;

/** Hashes the files below a folder together with the base image. */
async function contentHash(folder: string, base: string): Promise<string> {
  const hash = createHash("sha256").update(base);
  for (const file of await filesBelow(folder)) {
    hash.update(`\0${relative(CONTEXT, file)}\0`).update(await readFile(file));
  }
  return hash.digest("hex").slice(0, HASH_CHARACTERS);
}

/** The content of the image. */
export interface ImageContent {
  /** A hash of all files and of the base: the tag of the image. */
  readonly tag: string;
  /** By name of the function or program, a hash of the files that it uses and of the base. */
  readonly contents: ReadonlyMap<string, string>;
}

/**
 * Bundles all functions and programs into .lotus/images.
 * @param functions the names of all functions
 * @param base the base image, as the Dockerfile receives it
 * @param version the version of Lotus, for the bill of materials
 */
export async function prepareImage(functions: readonly string[], base: string, version: string): Promise<ImageContent> {
  await rm(CONTEXT, { recursive: true, force: true });
  await mkdir(APP, { recursive: true });
  const metafiles: Metafile[] = [];
  // Builds by name, so that other files of dist/ stay: a local run may use them.
  const { failed } = await buildFunctions(functions).finally(endEsbuild);
  for (const [name, errors] of failed) throw new Refusal(`${name} does not compile.\n${errors}`);
  const inputs = await builtInputs();
  for (const name of functions) {
    await mkdir(join(APP, name));
    await cp(programOf(name), join(APP, name, "function.cjs"));
    await cp(bundleOf(name), join(APP, name, basename(bundleOf(name))));
    for (const file of Object.values(telemetryFiles(DIST))) await cp(file, join(APP, name, basename(file)));
  }
  for (const name of PROGRAM_NAMES) metafiles.push(await bundleProgram(name));
  metafiles.push(await bundleRehearsal());
  const telemetry = await telemetryInputs();
  await endEsbuild();
  const packages = await readPackages([
    ...functions.flatMap((name) => [...(inputs.get(name) ?? [])]),
    ...metafiles.flatMap((metafile) => Object.keys(metafile.inputs)),
    ...telemetry,
  ]);
  await writeFile(join(APP, "NOTICES.txt"), noticesOf(packages));
  await writeFile(join(APP, "sbom.cdx.json"), `${JSON.stringify(billOfMaterials(packages, version), null, 2)}\n`);
  await cp(join(ROOT, "LICENSE"), join(APP, "LICENSE"));
  await cp(DOCKERFILE, join(CONTEXT, "Dockerfile"));
  const contents = new Map<string, string>();
  for (const name of [...functions, ...PROGRAM_NAMES]) contents.set(name, await contentHash(join(APP, name), base));
  return { tag: await contentHash(CONTEXT, base), contents };
}
