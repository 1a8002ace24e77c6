import { readdir, readFile } from "node:fs/promises";
import { dirname, join, normalize, relative } from "node:path";
import * as v from "valibot";
import { describe, expect, it } from "vitest";
import { staleFiles } from "../generate/write.ts";
import { findFunctions } from "./functions.ts";
import { ROOT } from "./paths.ts";

const functions = await findFunctions();

/** TypeScript files of a folder, relative to the checkout. */
async function files(folder: string): Promise<string[]> {
  const all = await readdir(join(ROOT, folder), { recursive: true });
  return all.filter((file) => file.endsWith(".ts")).map((file) => join(folder, file));
}

/** functions/order/pay.ts and triggers/order/x.ts -> order. */
const serviceOf = (file: string) => file.split("/")[1] ?? "";

describe("the project", () => {
  it("lets a service import only its own files, the kernel, and another service's events", async () => {
    const breaches: string[] = [];
    for (const file of [...(await files("functions")), ...(await files("triggers"))]) {
      if (file.endsWith(".test.ts")) continue;
      const text = await readFile(join(ROOT, file), "utf8");
      for (const [, target = ""] of text.matchAll(/(?:from|import\()\s*"(\.[^"]+)"/g)) {
        const path = relative(ROOT, normalize(join(ROOT, dirname(file), target)));
        const allowed = serviceOf(path) === serviceOf(file) || path === `functions/${serviceOf(path)}/events.ts`;
        if (!allowed || !path.startsWith("functions/")) breaches.push(`${file} imports ${path}`);
      }
      if (serviceOf(file) === "kernel" && /from "\.\.\//.test(text))
        breaches.push(`${file} imports from outside the kernel`);
    }
    expect(breaches).toEqual([]);
  });

  it("has one file that imports kafkajs, and one that imports the database driver", async () => {
    const importers = async (name: string) => {
      const found: string[] = [];
      for (const file of [...(await files("functions")), ...(await files("triggers"))]) {
        if (!file.endsWith(".test.ts") && (await readFile(join(ROOT, file), "utf8")).includes(`"${name}"`))
          found.push(file);
      }
      return found;
    };
    expect(await importers("kafkajs")).toEqual(["functions/kernel/kafka.ts"]);
    expect(await importers("@neondatabase/serverless")).toEqual(["functions/kernel/database.ts"]);
  });

  it("has functions and triggers with different names", () => {
    expect(new Set(functions.map(({ kind }) => kind))).toEqual(new Set(["endpoint", "subscriber"]));
    expect(new Set(functions.map(({ name }) => name)).size).toBe(functions.length);
  });

  it("has generated files that follow from the descriptions", async () => {
    expect(await staleFiles(), "run `npm run manifests` and commit").toEqual([]);
  });
});

describe("the events", () => {
  const topics = functions.flatMap(({ description }) => ("topic" in description ? [description] : []));

  it.each(topics)("of $topic: every sample that was ever published still parses", async ({ topic, data }) => {
    const samples = (await readdir(join(ROOT, "docs/events"))).filter(
      (file) => file.startsWith(`${topic}.`) && file.endsWith(".sample.json"),
    );
    expect(samples).not.toEqual([]);
    for (const file of samples) {
      for (const sample of JSON.parse(await readFile(join(ROOT, "docs/events", file), "utf8"))) {
        expect(v.safeParse(data, sample).issues, JSON.stringify(sample)).toBeUndefined();
      }
    }
  });

  it("have a sample of each kind of notification", async () => {
    const schema = JSON.parse(await readFile(join(ROOT, "docs/events/notification-requested.v1.schema.json"), "utf8"));
    const kinds = JSON.stringify(schema).matchAll(/"kind":\{"const":"([a-z-]+)"/g);
    const samples = JSON.parse(await readFile(join(ROOT, "docs/events/notification-requested.v1.sample.json"), "utf8"));
    expect([...kinds].map(([, kind]) => kind).sort()).toEqual(samples.map(({ kind }: { kind: string }) => kind).sort());
  });
});
