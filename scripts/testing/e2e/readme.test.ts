import { execFile } from "node:child_process";
import { cp, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { findFunctions } from "../../project/functions.ts";
import { ROOT } from "../../project/paths.ts";
import { type CheckoutCopy, copyCheckout } from "../checkout.ts";
import { createTestDatabase } from "../database.ts";

const run = promisify(execFile);
let checkout: CheckoutCopy;
let copy: string;
let readme: string;
let contributing: string;

beforeAll(async () => {
  readme = await readFile(join(ROOT, "README.md"), "utf8");
  contributing = await readFile(join(ROOT, "CONTRIBUTING.md"), "utf8");
  checkout = await copyCheckout();
  copy = checkout.folder;
});
afterAll(() => checkout.remove());

describe("the documents", () => {
  it("show an endpoint that works when a reader pastes it", async () => {
    const file = /Put this into `([^`]+)`/.exec(contributing)?.[1] ?? "";
    const code = /```ts\n([\s\S]+?)```/.exec(contributing)?.[1] ?? "";
    const expected = /`curl localhost:8080(\S+)` answers\s+`([^`]+)`/.exec(contributing);
    await writeFile(join(copy, file), code);
    await run("npx", ["tsc", "-p", ".", "--noEmit"], { cwd: copy });
    await run("npx", ["biome", "check", "--vcs-enabled=false", file], { cwd: copy });
    await run(process.execPath, ["scripts/lotus.mjs", "generate"], { cwd: copy });
    await cp(inject("secrets"), join(copy, ".lotus/secrets"), { recursive: true });
    // A separate process: this one has the functions of this checkout loaded.
    const program = `
      import { startLotus } from "./scripts/local/lotus.ts";
      const lotus = await startLotus({ port: 0, folder: ".lotus", databaseUrl: process.argv[2] });
      const answer = await fetch(lotus.url + process.argv[3]);
      console.log(answer.status + " " + await answer.text());
      await lotus.stop();`;
    await writeFile(join(copy, "try.mts"), program);
    const database = await createTestDatabase();
    const { stdout } = await run(
      process.execPath,
      ["--import", "./scripts/typescript.mjs", "try.mts", database.url, expected?.[1] ?? ""],
      { cwd: copy },
    ).finally(() => database.drop());
    expect(stdout.trim()).toBe(`200 ${expected?.[2]}`);
  });

  it("have a row for each call in the README, with its refusals", async () => {
    const rows = [...readme.matchAll(/^\| `((?:GET|POST) [a-z/-]+).*?\| (20\d).*?\|(.*)\|$/gm)].map(
      ([, call, status, refusals = ""]) => [
        call,
        status,
        [...refusals.matchAll(/`([a-z-]+)`/g)].map(([, code]) => code),
      ],
    );
    const described = (await findFunctions()).flatMap((fn) => {
      if (fn.kind !== "endpoint") return [];
      const { method, answers } = fn.description;
      const codes = Object.values(answers).flatMap((answer) => (Array.isArray(answer) ? answer : []));
      return [[`${method} ${fn.path}`, answers[201] === undefined ? "200" : "201", codes]];
    });
    expect(rows.sort()).toEqual(described.sort());
  });
});
