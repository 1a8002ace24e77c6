/** Writes the rendered files of an environment, and compares them with those of the checkout. */
import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { PROGRAM_NAMES } from "../build/image-files.ts";
import { findFunctions } from "../project/functions.ts";
import { ROOT } from "../project/paths.ts";
import { backendsOf } from "./backends.ts";
import { readEnvironment } from "./environment.ts";
import { versionOf } from "./images.ts";
import { lockedImages } from "./lock.ts";
import { RENDERED_FOLDER, render } from "./render.ts";

/** Renders an environment with the images of the lock file. */
async function renderEnvironment(name: string): Promise<Map<string, string>> {
  const all = await findFunctions();
  const names = all.map((fn) => fn.name);
  const environment = await readEnvironment(name, names);
  return render({
    all,
    names,
    environment,
    backends: backendsOf(environment),
    images: await lockedImages([...names, ...PROGRAM_NAMES]),
    version: await versionOf(ROOT),
  });
}

async function presentFiles(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true }).catch(() => []);
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(folder.length + 1));
}

/** Returns the files of a folder that differ from the wanted ones: missing, different or left over. */
export async function staleIn(folder: string, wanted: ReadonlyMap<string, string>): Promise<string[]> {
  const stale = (await presentFiles(folder)).filter((file) => !wanted.has(file));
  for (const [file, text] of wanted)
    if ((await readFile(join(folder, file), "utf8").catch(() => undefined)) !== text) stale.push(file);
  return stale;
}

/** Writes files into a folder and removes the others. */
export async function writeInto(folder: string, wanted: ReadonlyMap<string, string>): Promise<void> {
  for (const file of await presentFiles(folder)) if (!wanted.has(file)) await rm(join(folder, file));
  for (const [file, text] of wanted) {
    await mkdir(dirname(join(folder, file)), { recursive: true });
    await writeFile(join(folder, file), text);
  }
}

/** Returns the paths of rendered files that are missing, different or left over. */
export async function staleRendered(name: string): Promise<string[]> {
  const stale = await staleIn(join(ROOT, RENDERED_FOLDER, name), await renderEnvironment(name));
  return stale.map((file) => `${RENDERED_FOLDER}/${name}/${file}`);
}

/** Writes the rendered files of an environment and removes left-over files. Returns their number. */
export async function writeRendered(name: string): Promise<number> {
  const wanted = await renderEnvironment(name);
  await writeInto(join(ROOT, RENDERED_FOLDER, name), wanted);
  return wanted.size;
}

/** The environments that the checkout has rendered. */
export async function renderedNames(): Promise<string[]> {
  return (await readdir(join(ROOT, RENDERED_FOLDER)).catch(() => [])).sort();
}
