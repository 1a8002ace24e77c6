/** Writes the generated files: Knative manifests, OpenAPI and event schemas. They follow from the functions' descriptions. */
import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { stringify } from "yaml";
import { Refusal } from "../cli/errors.ts";
import { environmentJsonSchema } from "../kubernetes/environment.ts";
import { findFunctions } from "../project/functions.ts";
import { ROOT } from "../project/paths.ts";
import { HEADER, knativeService, routes, source, TARGET_DEFAULT, UNBUILT_NOTE } from "./knative.ts";
import { eventSchemas, openApi } from "./openapi.ts";

const yaml = (documents: readonly object[], header = HEADER) =>
  header +
  documents.map((document) => stringify(document, { lineWidth: 0, aliasDuplicateObjects: false })).join("---\n");
const json = (document: object) => `${JSON.stringify(document, null, 2)}\n`;

/** Returns every generated file: its path in the checkout and its text. */
async function generatedFiles(): Promise<Map<string, string>> {
  const functions = await findFunctions();
  const sink = functions.find(({ description }) => "deadLetters" in description);
  if (sink === undefined)
    throw new Refusal("No trigger receives dead letters. One subscriber must have deadLetters: true.");
  const files = new Map<string, string>();
  for (const fn of functions) {
    files.set(`knative/functions/${fn.name}.yaml`, yaml([knativeService(fn)], HEADER + UNBUILT_NOTE));
    const itsSource = source(fn, sink.name);
    if (itsSource !== undefined) files.set(`knative/sources/${fn.name}.yaml`, yaml([itsSource]));
  }
  files.set("knative/routes.yaml", yaml(routes(functions)));
  files.set("docs/openapi.json", json(openApi(functions, [`http://${TARGET_DEFAULT.host}`, "http://localhost:8080"])));
  files.set("knative/environments/schema.json", json(environmentJsonSchema()));
  for (const [name, schema] of eventSchemas(functions)) files.set(`docs/events/${name}.schema.json`, json(schema));
  return files;
}

/** Returns the generated files in the checkout, with those of functions that no longer exist. */
async function present(): Promise<string[]> {
  const list = async (folder: string, ending: string) =>
    (await readdir(join(ROOT, folder)).catch(() => []))
      .filter((file) => file.endsWith(ending))
      .map((file) => `${folder}/${file}`);
  return [
    ...(await list("knative/functions", ".yaml")),
    ...(await list("knative/sources", ".yaml")),
    ...(await list("docs/events", ".schema.json")),
  ];
}

/** Returns the generated files that are missing, different or left over. */
export async function staleFiles(): Promise<string[]> {
  const wanted = await generatedFiles();
  const stale = (await present()).filter((file) => !wanted.has(file));
  for (const [file, text] of wanted) {
    if ((await readFile(join(ROOT, file), "utf8").catch(() => undefined)) !== text) stale.push(file);
  }
  return stale;
}

/** Writes the stale files and removes those left over. Returns their paths. */
export async function writeStaleFiles(): Promise<string[]> {
  const wanted = await generatedFiles();
  const stale = await staleFiles();
  for (const file of stale) {
    const text = wanted.get(file);
    await mkdir(dirname(join(ROOT, file)), { recursive: true });
    if (text === undefined) await rm(join(ROOT, file));
    else await writeFile(join(ROOT, file), text);
  }
  return stale;
}
