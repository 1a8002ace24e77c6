/** Finds the functions of the project. The path of a file is its name and its route. */
import { readdir } from "node:fs/promises";
import { join, relative } from "node:path";
import { pathToFileURL } from "node:url";
import type { Endpoint } from "#kernel/endpoint";
import type { Subscriber } from "#kernel/subscriber";
import { ROOT } from "./paths.ts";

interface Found {
  /** functions/order/pay.ts -> order-pay; functions/notification/index.ts -> notification. */
  readonly name: string;
  /** The service whose database role and secrets it has. */
  readonly service: string;
  /** Relative to the checkout. */
  readonly file: string;
}

export type LotusFunction =
  | (Found & { readonly kind: "endpoint"; readonly path: string; readonly description: Endpoint })
  | (Found & { readonly kind: "subscriber"; readonly description: Subscriber });

async function sourceFiles(folder: string): Promise<string[]> {
  const files = await readdir(join(ROOT, folder), { recursive: true });
  return files
    .filter((file) => /^[a-z]+\/[a-z-]+\.ts$/.test(file) && !file.startsWith("kernel/"))
    .map((file) => join(folder, file))
    .sort();
}

/** All functions, endpoints before subscribers, each in the order of their names. Imports each file: they have no side effects. */
export async function findFunctions(): Promise<LotusFunction[]> {
  const files = [...(await sourceFiles("functions")), ...(await sourceFiles("triggers"))];
  const found = await Promise.all(
    files.map(async (file): Promise<LotusFunction | undefined> => {
      const { default: description } = (await import(pathToFileURL(join(ROOT, file)).href)) as {
        default?: Endpoint | Subscriber;
      };
      if (description === undefined) return undefined;
      const [, service = "", base = ""] = relative(ROOT, join(ROOT, file)).replace(/\.ts$/, "").split("/");
      const name = base === "index" ? service : `${service}-${base}`;
      if ("method" in description) {
        return { kind: "endpoint", name, service, file, path: `/${name.replace("-", "/")}`, description };
      }
      return { kind: "subscriber", name, service, file, description };
    }),
  );
  return found.filter((entry) => entry !== undefined);
}
