/** The content of the image: a bill of materials with every bundled package, and hashes that change with one function only. */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { cp, mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { beforeAll, describe, expect, it } from "vitest";
import { findFunctions } from "../project/functions.ts";
import { builtInputs } from "./bundles.ts";
import { CONTEXT, type ImageContent, PROGRAM_NAMES, prepareImage } from "./image-files.ts";
import { packageFolders } from "./licences.ts";

let names: string[];
let image: ImageContent;
beforeAll(async () => {
  names = (await findFunctions()).map(({ name }) => name);
  image = await prepareImage(names, "base", "1.2.3");
});
const appFile = (name: string) => readFile(join(CONTEXT, "app", name), "utf8");

describe("the image", () => {
  it("contains every function and every program", () => {
    expect([...image.contents.keys()].sort()).toEqual([...names, ...PROGRAM_NAMES].sort());
    for (const name of names) expect(existsSync(join(CONTEXT, "app", name, "function.cjs"))).toBe(true);
    for (const name of PROGRAM_NAMES) expect(existsSync(join(CONTEXT, "app", name, "program.mjs"))).toBe(true);
  });

  it("lists every bundled package in its bill of materials, each with a notice", async () => {
    const folders = packageFolders([...(await builtInputs()).values()].flatMap((inputs) => [...inputs]));
    expect(folders.length).toBeGreaterThan(5);
    const { components } = JSON.parse(await appFile("sbom.cdx.json"));
    const notices = await appFile("NOTICES.txt");
    for (const folder of folders) {
      const { name, version } = JSON.parse(await readFile(join(folder, "package.json"), "utf8"));
      expect(components).toContainEqual(expect.objectContaining({ name, version }));
      expect(notices).toContain(`${name} ${version} (`);
    }
    expect(notices).toMatch(/Copyright/);
  });

  it("compiles a function to equal bytes each time", async () => {
    const folder = await mkdtemp(join(tmpdir(), "lotus-rehearsal-"));
    const compile = async () => {
      await cp(join(CONTEXT, "app/order-list"), join(folder, "order-list"), { recursive: true });
      await cp(join(CONTEXT, "rehearse.cjs"), join(folder, "rehearse.cjs"));
      await promisify(execFile)(process.execPath, [join(folder, "rehearse.cjs")]);
      const files = (await readdir(join(folder, "order-list"))).filter((file) => /^order-list\..*\.cache$/.test(file));
      const caches = await Promise.all(files.map((file) => readFile(join(folder, "order-list", file))));
      await rm(join(folder, "order-list"), { recursive: true });
      return caches.map((cache) => createHash("sha256").update(cache).digest("hex"));
    };
    const first = await compile();
    expect(first.length).toBeGreaterThan(0);
    expect(await compile()).toEqual(first);
    await rm(folder, { recursive: true });
  });

  it("has the same hashes when it is built again, and other ones on another base", async () => {
    const again = await prepareImage(names, "base", "1.2.3");
    expect(again).toEqual(image);
    const other = await prepareImage(names, "another base", "1.2.3");
    expect(other.tag).not.toBe(image.tag);
    expect([...other.contents].filter(([name, hash]) => image.contents.get(name) === hash)).toEqual([]);
  });
});
