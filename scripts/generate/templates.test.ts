import { execFile } from "node:child_process";
import { cp, mkdtemp, readFile, rm, symlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ROOT } from "../project/paths.ts";

const run = promisify(execFile);
let copy: string;

/** lotus new, in a copy of the checkout. */
const create = (...words: string[]) => run(process.execPath, ["scripts/lotus.mjs", "new", ...words], { cwd: copy });

beforeAll(async () => {
  copy = await mkdtemp(join(tmpdir(), "lotus-new-"));
  const parts = [
    "functions",
    "triggers",
    "scripts",
    "knative",
    "docs",
    "postman",
    "README.md",
    "package.json",
    "package-lock.json",
  ];
  for (const part of [...parts, "tsconfig.json", "biome.json", "vitest.config.ts"])
    await cp(join(ROOT, part), join(copy, part), { recursive: true });
  await symlink(join(ROOT, "node_modules"), join(copy, "node_modules"));
});
afterAll(() => rm(copy, { recursive: true, force: true }));

describe("lotus new", () => {
  it("writes an endpoint, an event and a service that compile, are formatted and pass their tests", async () => {
    await create("endpoint", "order/cheapest");
    await create("event", "order/order-shipped");
    await create("service", "gift");
    await run("npx", ["tsc", "-p", "."], { cwd: copy });
    await run("npx", ["biome", "check", "--vcs-enabled=false", "functions", "triggers"], { cwd: copy });
    await run(process.execPath, ["scripts/lotus.mjs", "generate", "--check"], { cwd: copy });
    const tests = [
      "functions/order/cheapest",
      "functions/gift",
      "triggers/order",
      "scripts/project",
      "scripts/database/sql",
    ];
    const { stdout } = await run("npx", ["vitest", "run", "--project", "unit", "--project", "lotus", ...tests], {
      cwd: copy,
      env: { ...process.env, NO_COLOR: "1", CI: "" },
    });
    expect(stdout).toMatch(/Test Files +\d+ passed/);
    expect(await readFile(join(copy, "README.md"), "utf8")).toContain("| `GET /order/cheapest` |");
  });

  it.each([
    [["endpoint", "order/top10"], 2, /Name the endpoint SERVICE\/NAME/],
    [["endpoint", "nowhere/list"], 1, /The service nowhere does not exist\. Create it: npx lotus new service nowhere/],
    [["endpoint", "order/pay"], 1, /functions\/order\/pay\.ts exists already/],
    [["service", "gift-cards"], 2, /A service has a name of the letters a to z/],
    [["table", "x"], 2, /Name the kind and the name/],
  ])("refuses %j with a sentence", async (words, code, sentence) => {
    const failed = await create(...words).catch((error) => error);
    expect([failed.code, failed.stderr]).toEqual([code, expect.stringMatching(sentence)]);
  });
});
