import { type ChildProcess, spawn } from "node:child_process";
import { cp, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { ROOT } from "../project/paths.ts";
import { call, eventually } from "../testing/lotus.ts";

/** A copy, so that no test, killed or not, leaves a change in the checkout. */
let copy: string;
let dev: ChildProcess;
let output = "";
let ended: Promise<unknown>;
let url: string;
let source: string;
const FILE = "functions/order/subscriptions.ts";

beforeAll(async () => {
  copy = await mkdtemp(join(tmpdir(), "lotus-watch-"));
  for (const part of ["functions", "triggers", "scripts", "knative", "package.json", "tsconfig.json"]) {
    await cp(join(ROOT, part), join(copy, part), { recursive: true });
  }
  await symlink(join(ROOT, "node_modules"), join(copy, "node_modules"));
  await cp(inject("secrets"), join(copy, ".lotus/secrets"), { recursive: true });
  source = await readFile(join(copy, FILE), "utf8");
  const flags = ["--port", "0", "--database", inject("templateUrl")];
  dev = spawn(process.execPath, [join(copy, "scripts/lotus.mjs"), "dev", ...flags], { cwd: copy });
  for (const stream of [dev.stdout, dev.stderr]) stream?.on("data", (chunk: Buffer) => (output += chunk));
  ended = new Promise((resolve) => dev.once("close", resolve));
  url = await eventually("it is there", () => {
    if (dev.exitCode !== null) throw new Error(output);
    return /Lotus is at (\S+) /.exec(output)?.[1];
  });
});
afterAll(async () => {
  dev.kill("SIGTERM");
  await ended;
  await rm(copy, { recursive: true, force: true });
});

const ask = async () => (await call({ url }, "GET /order/subscriptions")).body;
const greeting = (text: string) =>
  source.replace("async handle() {", `async handle() {\n    return ok([{ id: 9, name: "${text}", price: 1 }]);`);

describe("npm run dev", () => {
  it("answers the next request with the changed code", async () => {
    expect(await ask()).toHaveLength(3);
    for (const text of ["one", "two"]) {
      await writeFile(join(copy, FILE), greeting(text));
      await eventually("the change is answered", async () => (await ask())[0].name === text);
    }
    expect(output).toMatch(/order-subscriptions .*built anew/);
  });

  it("keeps the old code while the new one does not build, and names the place", async () => {
    await writeFile(join(copy, FILE), greeting("three").replace("return ok(", "return ok(("));
    await eventually("it says what is wrong", () =>
      /does not build; the old code goes on\.\nfunctions\/order\/subscriptions\.ts:\d+: /.test(output),
    );
    expect((await ask())[0].name).toBe("two");
    await writeFile(join(copy, FILE), source);
    await eventually("the mended code is answered", async () => (await ask()).length === 3);
  });

  it("builds what uses a file of the kernel", async () => {
    const file = join(copy, "functions/kernel/problem.ts");
    const text = await readFile(file, "utf8");
    await writeFile(
      file,
      text
        .replace("Something went wrong on our side", "Something else")
        .replace("There is nothing at this address", "Nowhere"),
    );
    await eventually(
      "the change is answered",
      async () => (await call({ url }, "GET /order/subscriptionsx")).body.title === "Nowhere",
    );
  });
});
