/** The layers of scripts/: the permitted actions and imports of each part. */
import { readdir, readFile } from "node:fs/promises";
import { dirname, join, normalize, relative } from "node:path";
import { describe, expect, it } from "vitest";
import { ROOT } from "./paths.ts";

const files = (await readdir(join(ROOT, "scripts"), { recursive: true }))
  .filter((file) => file.endsWith(".ts") && !file.endsWith(".test.ts"))
  .map((file) => join("scripts", file));
const texts = new Map(
  await Promise.all(files.map(async (file) => [file, await readFile(join(ROOT, file), "utf8")] as const)),
);
const partOf = (file: string) => file.split("/")[1] ?? "";

/** Parts that talk to a person: they print, read arguments and end the process. */
const TALKING = ["commands", "cli"];
/** Separate programs, which other processes start. */
const PROGRAMS = ["bench", "testing", "check"];

/** Reading arguments, printing and exiting. */
const TALK = /\bparseArgs\(|process\.argv|console\.\w+\(|process\.std(?:out|err)\.write|process\.exit(?:Code|\()/;

/** The start cache and the warm-up run inside a function's process or an image. Chaos starts a Lotus as a process. */
const EXCEPTIONS = new Set([
  "scripts/build/start-cache.ts",
  "scripts/build/warm-up.ts",
  "scripts/chaos/lotus-program.ts",
]);

function importsOf(file: string): string[] {
  // A template contains imports of the file that it becomes.
  const text = (texts.get(file) ?? "").replace(/`[\s\S]*?`/g, "");
  return [...text.matchAll(/(?:from|import\()\s*"(\.[^"]+)"/g)].map(([, target = ""]) =>
    relative(ROOT, normalize(join(ROOT, dirname(file), target))),
  );
}

describe("the parts of scripts/", () => {
  it("that are libraries never read arguments, print or exit", () => {
    const talking = files.filter(
      (file) =>
        ![...TALKING, ...PROGRAMS].includes(partOf(file)) &&
        !EXCEPTIONS.has(file) &&
        TALK.test((texts.get(file) ?? "").replace(/\/\*[\s\S]*?\*\/|\/\/.*|`[\s\S]*?`/g, "")),
    );
    expect(talking).toEqual([]);
  });

  it("import no command", () => {
    const breaches = files.flatMap((file) =>
      importsOf(file)
        .filter((target) => partOf(target) === "commands" && partOf(file) !== "commands")
        .map((target) => `${file} imports ${target}`),
    );
    expect(breaches).toEqual([]);
  });

  it("process/ and project/ import no other part, except the errors of cli/", () => {
    const breaches = files
      .filter((file) => ["process", "project"].includes(partOf(file)))
      .flatMap((file) =>
        importsOf(file)
          .filter((target) => target.startsWith("scripts/"))
          .filter((target) => !["process", "project"].includes(partOf(target)) && target !== "scripts/cli/errors.ts")
          .map((target) => `${file} imports ${target}`),
      );
    expect(breaches).toEqual([]);
  });

  it("that run Lotus import no test helper", () => {
    const breaches = files
      .filter((file) => !PROGRAMS.includes(partOf(file)))
      .flatMap((file) =>
        importsOf(file)
          .filter((target) => partOf(target) === "testing")
          .map((target) => `${file} imports ${target}`),
      );
    expect(breaches).toEqual([]);
  });

  it("have no cycle", () => {
    const cycles: string[] = [];
    const done = new Set<string>();
    const visit = (file: string, path: readonly string[]): void => {
      if (path.includes(file)) return void cycles.push([...path.slice(path.indexOf(file)), file].join(" → "));
      if (done.has(file)) return;
      for (const target of importsOf(file)) if (texts.has(target)) visit(target, [...path, file]);
      done.add(file);
    };
    for (const file of files) visit(file, []);
    expect(cycles).toEqual([]);
  });
});
