/** The content of the image: a bill of materials with every bundled package, and hashes that change with one function only. */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
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

  it.each(PROGRAM_NAMES)("starts the program %s without the checkout", async (name) => {
    const folder = await mkdtemp(join(tmpdir(), "lotus-program-"));
    await cp(join(CONTEXT, "app", name), folder, { recursive: true });
    const { stdout } = await promisify(execFile)(process.execPath, [join(folder, "program.mjs"), "--help"]);
    expect(stdout).toContain(`lotus ${name}`);
    await rm(folder, { recursive: true });
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

  describe("V8's compiled code of functions and of the exporter", () => {
    const some = ["order-list", "profile-login", "notification-store"];
    /** V8's code contains the path of the file, which is the same in every image. */
    let folder: string;
    beforeAll(async () => {
      folder = await mkdtemp(join(tmpdir(), "lotus-rehearsal-"));
    });
    afterAll(() => rm(folder, { recursive: true }));

    const hashOf = async (file: string) =>
      createHash("sha256")
        .update(await readFile(file))
        .digest("hex");

    /**
     * Runs the warm-up of the image. Returns the hash of each file.
     * @param before a program that each process runs before its bundle
     */
    async function build(before = ""): Promise<Map<string, string>> {
      for (const name of some) {
        await rm(join(folder, name), { recursive: true, force: true });
        await cp(join(CONTEXT, "app", name), join(folder, name), { recursive: true });
        for (const file of ["function.cjs", "telemetry.cjs"])
          await writeFile(join(folder, name, file), before + (await readFile(join(folder, name, file), "utf8")));
      }
      await cp(join(CONTEXT, "rehearse.cjs"), join(folder, "rehearse.cjs"));
      await promisify(execFile)(process.execPath, [join(folder, "rehearse.cjs")]);
      const entries = await readdir(folder, { recursive: true, withFileTypes: true });
      const files = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
      return new Map(
        await Promise.all(files.map(async (file) => [relative(folder, file), await hashOf(file)] as const)),
      );
    }
    const cachesIn = (files: Iterable<string>) => [...files].filter((file) => file.endsWith(".cache")).sort();

    it("has equal bytes in two builds, and also when Node has compiled other functions before", async () => {
      const first = await build();
      const names = cachesIn(first.keys()).map((file) => file.split(".")[0]);
      expect(names).toEqual(some.flatMap((name) => [`${name}/${name}`, `${name}/telemetry`]).sort());
      expect(await build()).toEqual(first);

      const others = await build("for (let i = 0; i < 100; i++) new Function('return (() => ' + i + ')()')();");
      for (const file of cachesIn(first.keys())) expect(others.get(file), file).toBe(first.get(file));
    });

    it("makes the build fail when a cache cannot be renumbered", async () => {
      const foreign = "require('node:fs').writeFileSync(__dirname + '/foreign.v8.cache', '');";
      await expect(build(foreign)).rejects.toThrow(/The process --renumber of .*order-list ended with 1\./);
    });

    it("is accepted by a process without flags", async () => {
      const caches = cachesIn((await build()).keys());
      const program = `
        const { readFileSync } = require("node:fs");
        const { wrap } = require("node:module");
        const { Script } = require("node:vm");
        for (const cache of process.argv.slice(1)) {
          const filename = cache.slice(0, cache.indexOf(".", cache.lastIndexOf("/"))) + ".bundle.cjs";
          const cachedData = readFileSync(cache).subarray(32);
          const script = new Script(wrap(readFileSync(filename, "latin1")), { filename, cachedData });
          console.log(script.cachedDataRejected);
        }`;
      const files = caches.map((file) => join(folder, file));
      const { stdout } = await promisify(execFile)(process.execPath, ["-e", program, ...files]);
      expect(stdout.trim().split("\n")).toEqual(caches.map(() => "false"));
    });
  });

  it("has the same hashes in a second build, and other hashes on another base", async () => {
    const again = await prepareImage(names, "base", "1.2.3");
    expect(again).toEqual(image);
    const other = await prepareImage(names, "another base", "1.2.3");
    expect(other.tag).not.toBe(image.tag);
    expect([...other.contents].filter(([name, hash]) => image.contents.get(name) === hash)).toEqual([]);
  });
});
