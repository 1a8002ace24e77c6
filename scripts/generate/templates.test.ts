import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type CheckoutCopy, copyCheckout } from "../testing/checkout.ts";

const run = promisify(execFile);
let copy: CheckoutCopy;

/** lotus new, in a copy of the checkout. */
const create = (...words: string[]) =>
  run(process.execPath, ["scripts/lotus.mjs", "new", ...words], { cwd: copy.folder });

beforeAll(async () => {
  copy = await copyCheckout();
});
afterAll(() => copy.remove());

describe("lotus new", () => {
  it("writes an endpoint, an event and a service that compile, are formatted and pass their tests", async () => {
    await create("endpoint", "order/cheapest");
    await create("event", "order/order-shipped");
    await create("service", "gift");
    await run("npx", ["tsc", "-p", "."], { cwd: copy.folder });
    await run("npx", ["biome", "check", "--vcs-enabled=false", "functions", "triggers"], { cwd: copy.folder });
    await run(process.execPath, ["scripts/lotus.mjs", "generate", "--check"], { cwd: copy.folder });
    const tests = [
      "functions/order/cheapest",
      "functions/gift",
      "triggers/order",
      "scripts/project",
      "scripts/database/sql",
    ];
    const { stdout } = await run("npx", ["vitest", "run", "--project", "unit", "--project", "lotus", ...tests], {
      cwd: copy.folder,
      env: { ...process.env, NO_COLOR: "1", CI: "" },
    });
    expect(stdout).toMatch(/Test Files +\d+ passed/);
    expect(await readFile(join(copy.folder, "README.md"), "utf8")).toContain("| `GET /order/cheapest` |");
    // The role of the new service may run triggers: usage of the schema, and the functions that every trigger calls.
    const grants = await readFile(join(copy.folder, "functions/events/schema/functions.sql"), "utf8");
    expect(grants.match(/^.*"lotus:gift";$/gm)).toEqual([
      expect.stringMatching(/^grant usage on schema events to /),
      expect.stringMatching(/^ {2}to /),
    ]);
  });

  it.each([
    [["endpoint", "order/top10"], 2, /Name the endpoint SERVICE\/NAME/],
    [["endpoint", "nowhere/list"], 1, /The service nowhere does not exist\. Create it: npx lotus new service nowhere/],
    [["endpoint", "order/pay"], 1, /functions\/order\/pay\.ts exists already/],
    [["service", "gift-cards"], 2, /A service has a name of the letters a to z/],
    [["table", "x"], 2, /Name the kind and the name/],
  ])("refuses %j with an error message", async (words, code, sentence) => {
    const failed = await create(...words).catch((error) => error);
    expect([failed.code, failed.stderr]).toEqual([code, expect.stringMatching(sentence)]);
  });
});
