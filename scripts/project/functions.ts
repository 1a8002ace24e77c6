/** Finds the functions of the project. The path of a file is its name and its route. */
import { readdir, readFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { pathToFileURL } from "node:url";
import type { Endpoint } from "#kernel/endpoint";
import type { Subscriber } from "#kernel/subscriber";
import { Refusal } from "../cli/errors.ts";
import { ROOT } from "./paths.ts";

/** The file of a function. */
export interface FunctionFile {
  /** functions/order/pay.ts -> order-pay; functions/notification/index.ts -> notification. */
  readonly name: string;
  /** The service, which gives the function its database role and its secrets. */
  readonly service: string;
  /** The path relative to the checkout. */
  readonly file: string;
}

/** A function with its description. */
export type LotusFunction =
  | (FunctionFile & { readonly kind: "endpoint"; readonly path: string; readonly description: Endpoint })
  | (FunctionFile & { readonly kind: "subscriber"; readonly description: Subscriber });

const DEFAULT_EXPORT = /^export default\b/m;
const DESCRIPTION = /^(?:const \w+ = |export const \w+ = )(endpoint|subscriber)\(/m;
const SERVED = /^(?:functions|triggers)\/([a-z]+)\/([a-z]+(?:-[a-z]+)*)\.ts$/;

/** Returns the function of a file; undefined for any other file. @throws {Refusal} when the file cannot be served */
export function functionOf(file: string, text: string): FunctionFile | undefined {
  const isTrigger = file.startsWith("triggers/");
  if (!DEFAULT_EXPORT.test(text)) {
    const call = DESCRIPTION.exec(text)?.[1];
    if (call !== undefined || isTrigger)
      throw new Refusal(
        `${file} is not served: it has no default export. Write: export default ${call ?? "subscriber"}({ … });`,
      );
    return undefined;
  }
  const [, service, base] = SERVED.exec(file) ?? [];
  if (service !== undefined && base !== undefined)
    return { name: base === "index" ? service : `${service}-${base}`, service, file };
  const depth = file.split("/").length;
  const reason =
    depth !== 3
      ? `a function is a file of a service folder, such as ${isTrigger ? "triggers" : "functions"}/order/${basename(file)}`
      : "the folder consists of the letters a to z, and the file of these letters and single hyphens";
  throw new Refusal(`${file} is not served: ${reason}. Rename it, or remove its default export.`);
}

async function sourceFiles(folder: string): Promise<string[]> {
  const files = await readdir(join(ROOT, folder), { recursive: true });
  return files
    .map((file) => join(folder, file).replaceAll("\\", "/"))
    .filter((file) => file.endsWith(".ts") && !file.endsWith(".test.ts") && !file.startsWith("functions/kernel/"))
    .sort();
}

/**
 * Returns the files of all functions, those of functions/ before those of triggers/, in the order of their paths.
 * @throws {Refusal} for a file that cannot be served, and for two files with one name
 */
export async function functionFiles(): Promise<FunctionFile[]> {
  const files = [...(await sourceFiles("functions")), ...(await sourceFiles("triggers"))];
  const found = await Promise.all(
    files.map(async (file) => functionOf(file, await readFile(join(ROOT, file), "utf8"))),
  );
  const functions = found.filter((entry) => entry !== undefined);
  for (const [index, { name, file }] of functions.entries()) {
    const other = functions.slice(0, index).find((candidate) => candidate.name === name);
    if (other !== undefined)
      throw new Refusal(`${file} and ${other.file} have the same name and route: ${name}. Rename one of them.`);
  }
  return functions;
}

/** Returns all functions with their descriptions. Imports each file: they have no side effects. */
export async function findFunctions(): Promise<LotusFunction[]> {
  const files = await functionFiles();
  return Promise.all(
    files.map(async (fn): Promise<LotusFunction> => {
      const { default: description } = (await import(pathToFileURL(join(ROOT, fn.file)).href)) as {
        default: Endpoint | Subscriber;
      };
      if ("method" in description)
        return { ...fn, kind: "endpoint", path: `/${fn.name.replace("-", "/")}`, description };
      return { ...fn, kind: "subscriber", description };
    }),
  );
}
