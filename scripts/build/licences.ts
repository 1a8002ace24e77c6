/** Licence notices and the bill of materials of an image, from the inputs that esbuild bundled. */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { ROOT } from "../project/paths.ts";

/** An npm package of which a bundle contains a file. */
export interface BundledPackage {
  readonly name: string;
  readonly version: string;
  /** The SPDX expression of its package.json. */
  readonly licence: string;
  /** The texts of its licence and notice files. */
  readonly notice: string;
}

const LICENCE_FILE = /^(?:licen[cs]e|notice|copying)(?:[.-].*)?$/i;
const PACKAGE_FOLDER = /^(.*node_modules\/(?:@[^/]+\/)?[^/]+)\//;

/** Returns the folders of the packages that files belong to, relative to the checkout. */
export function packageFolders(inputs: readonly string[]): string[] {
  return [...new Set(inputs.flatMap((input) => PACKAGE_FOLDER.exec(input)?.[1] ?? []))].sort();
}

async function readPackage(folder: string): Promise<BundledPackage> {
  const about = JSON.parse(await readFile(join(ROOT, folder, "package.json"), "utf8")) as {
    name: string;
    version: string;
    license?: string;
    author?: string | { name: string };
  };
  const files = (await readdir(join(ROOT, folder))).filter((file) => LICENCE_FILE.test(file)).sort();
  const texts = await Promise.all(files.map((file) => readFile(join(ROOT, folder, file), "utf8")));
  const author = typeof about.author === "object" ? about.author.name : about.author;
  const licence = about.license ?? "NOASSERTION";
  return {
    name: about.name,
    version: about.version,
    licence,
    notice: texts.length > 0 ? texts.join("\n") : `Licence: ${licence}. Author: ${author ?? "see the package"}.\n`,
  };
}

/** Reads the packages that the inputs of bundles belong to. */
export async function readPackages(inputs: readonly string[]): Promise<BundledPackage[]> {
  const packages = await Promise.all(packageFolders(inputs).map(readPackage));
  const byId = new Map(packages.map((found) => [`${found.name}@${found.version}`, found]));
  return [...byId.values()].sort((a, b) => a.name.localeCompare(b.name) || a.version.localeCompare(b.version));
}

/** Returns the text of all notices. */
export function noticesOf(packages: readonly BundledPackage[]): string {
  return packages
    .map(({ name, version, licence, notice }) => `${name} ${version} (${licence})\n\n${notice.trim()}\n`)
    .join(`\n${"-".repeat(80)}\n\n`);
}

/** Returns a CycloneDX 1.6 document. It has no time and no serial number, so that equal bundles give equal bytes. */
export function billOfMaterials(packages: readonly BundledPackage[], version: string): object {
  return {
    bomFormat: "CycloneDX",
    specVersion: "1.6",
    version: 1,
    metadata: { component: { type: "application", name: "lotus", version, "bom-ref": "lotus" } },
    components: packages.map(({ name, version: packageVersion, licence }) => {
      const purl = `pkg:npm/${name.replace("@", "%40")}@${packageVersion}`;
      return {
        type: "library",
        "bom-ref": purl,
        name,
        version: packageVersion,
        purl,
        // An expression covers single identifiers too. CycloneDX has no expression for an unknown licence.
        licenses: licence === "NOASSERTION" ? [] : [{ expression: licence }],
      };
    }),
  };
}
