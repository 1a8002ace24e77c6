/** The content of the image: a bill of materials with every bundled package, and hashes that change with one function only. */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { cp, mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
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

  it("has equal bytes in two builds, V8's compiled code of functions and of the exporter included", async () => {
    const some = ["order-list", "profile-login", "notification-store"];
    // V8's code contains the path of the file, which is the same in every image.
    const folder = await mkdtemp(join(tmpdir(), "lotus-rehearsal-"));
    const build = async () => {
      for (const name of some) await cp(join(CONTEXT, "app", name), join(folder, name), { recursive: true });
      await cp(join(CONTEXT, "rehearse.cjs"), join(folder, "rehearse.cjs"));
      await promisify(execFile)(process.execPath, [join(folder, "rehearse.cjs")]);
      const hashes = new Map<string, string>();
      for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
        if (!entry.isFile()) continue;
        const file = join(entry.parentPath, entry.name);
        hashes.set(
          relative(folder, file),
          createHash("sha256")
            .update(await readFile(file))
            .digest("hex"),
        );
      }
      for (const name of some) await rm(join(folder, name), { recursive: true });
      return hashes;
    };
    const first = await build();
    for (const name of some) {
      const caches = [...first.keys()].filter((file) => file.startsWith(`${name}/`) && file.endsWith(".cache"));
      expect(caches.map((file) => file.slice(name.length + 1).split(".")[0]).sort()).toEqual([name, "telemetry"]);
    }
    expect(await build()).toEqual(first);
    await rm(folder, { recursive: true });
  });

  it("has the same hashes in a second build, and other hashes on another base", async () => {
    const again = await prepareImage(names, "base", "1.2.3");
    expect(again).toEqual(image);
    const other = await prepareImage(names, "another base", "1.2.3");
    expect(other.tag).not.toBe(image.tag);
    expect([...other.contents].filter(([name, hash]) => image.contents.get(name) === hash)).toEqual([]);
  });
});
