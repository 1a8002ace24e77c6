/** lotus licences: lists the licences of the packages that ship in the images. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { command } from "../cli/command.ts";
import { Refusal } from "../cli/errors.ts";
import { json } from "../cli/options.ts";
import { print, printJson } from "../cli/output.ts";
import { table } from "../cli/text.ts";
import { ROOT } from "../project/paths.ts";

/** Licences that permit the use of a package in a product whose source is closed. CC-BY-3.0 is that of a list of data, with attribution. */
const PERMISSIVE = new Set([
  "MIT",
  "ISC",
  "Apache-2.0",
  "BSD-2-Clause",
  "BSD-3-Clause",
  "0BSD",
  "CC0-1.0",
  "CC-BY-3.0",
  "BlueOak-1.0.0",
]);

interface Locked {
  readonly version?: string;
  readonly license?: string;
  readonly dev?: boolean;
}

/** A package that ships. */
export interface Shipped {
  readonly name: string;
  readonly version: string;
  readonly licence: string;
}

/** Whether each alternative of an SPDX expression such as `(MIT AND Zlib)` is permissive. */
const isPermissive = (licence: string) =>
  licence
    .replace(/[()]/g, "")
    .split(/ (?:AND|OR) /)
    .every((one) => PERMISSIVE.has(one));

/**
 * Returns the packages that ship: the locked packages without those that only development needs. A bundle contains a part of them.
 * @param lock the text of package-lock.json
 */
export function shippedPackages(lock: string): Shipped[] {
  const { packages } = JSON.parse(lock) as { packages: Readonly<Record<string, Locked>> };
  return Object.entries(packages)
    .filter(([path, { dev }]) => path !== "" && dev !== true)
    .map(([path, { version = "", license = "unknown" }]) => {
      return { name: path.replace(/^.*node_modules\//, ""), version, licence: license };
    })
    .sort((a, b) => (a.name < b.name ? -1 : 1));
}

export default command({
  about: "Lists the licences of the packages that ship in the images.",
  notes: "It reads package-lock.json. Exit code 1: a package has no licence, or one that is not permissive.",
  options: { json },
  async run(values) {
    const shipped = shippedPackages(await readFile(join(ROOT, "package-lock.json"), "utf8"));
    if (values.json) printJson(shipped);
    else {
      print(table([["package", "version", "licence"], ...shipped.map((one) => [one.name, one.version, one.licence])]));
      const counts = new Map<string, number>();
      for (const { licence } of shipped) counts.set(licence, (counts.get(licence) ?? 0) + 1);
      print(`\n${shipped.length} packages: ${[...counts].map(([licence, count]) => `${count} ${licence}`).join(", ")}`);
    }
    const refused = shipped.filter(({ licence }) => !isPermissive(licence));
    if (refused.length > 0)
      throw new Refusal(
        `These packages need a decision: ${refused.map(({ name, licence }) => `${name} (${licence})`).join(", ")}.`,
      );
  },
});
