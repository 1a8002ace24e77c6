import { type ChildProcess, spawn } from "node:child_process";
import { cp, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { type CheckoutCopy, copyCheckout } from "../testing/checkout.ts";
import { createTestDatabase, type TestDatabase } from "../testing/database.ts";
import { call, eventually } from "../testing/lotus.ts";

let checkout: CheckoutCopy;
let copy: string;
let database: TestDatabase;
let dev: ChildProcess;
let output = "";
let ended: Promise<unknown>;
let url: string;
let source: string;
const FILE = "functions/order/subscriptions.ts";

beforeAll(async () => {
  checkout = await copyCheckout();
  copy = checkout.folder;
  await cp(inject("secrets"), join(copy, ".lotus/secrets"), { recursive: true });
  source = await readFile(join(copy, FILE), "utf8");
  database = await createTestDatabase();
  const flags = ["--port", "0", "--database", database.url];
  dev = spawn(process.execPath, [join(copy, "scripts/lotus.mjs"), "dev", ...flags], { cwd: copy });
  for (const stream of [dev.stdout, dev.stderr]) stream?.on("data", (chunk: Buffer) => (output += chunk));
  ended = new Promise((resolve) => dev.once("close", resolve));
  url = await eventually("Lotus prints its address", () => {
    if (dev.exitCode !== null) throw new Error(output);
    return /Lotus is at (\S+) /.exec(output)?.[1];
  });
});
afterAll(async () => {
  dev.kill("SIGTERM");
  await ended;
  await database.drop();
  await checkout.remove();
});

const ask = async () => (await call({ url }, "GET /order/subscriptions")).body;
/** The source with a line at the begin of its handler. */
function withLine(line: string): string {
  const changed = source.replace(/async handle\([^)]*\) \{/, (begin) => `${begin}\n    ${line}`);
  if (changed === source) throw new Error(`${FILE} has no handler that this test can change.`);
  return changed;
}
const greeting = (text: string) => withLine(`return ok([{ id: 9, name: "${text}", price: 1 }]);`);

const LATER_MILLISECONDS_MAX = 15_000;

describe("npm run dev", () => {
  it("answers the next request with the changed code", async () => {
    expect(await ask()).toHaveLength(3);
    for (const text of ["one", "two"]) {
      await writeFile(join(copy, FILE), greeting(text));
      await eventually("the change is answered", async () => (await ask())[0].name === text);
    }
    expect(output).toMatch(/order-subscriptions .*built/);
  });

  it("keeps the old code while the new code does not compile, sets a header, and prints the place of the error", async () => {
    await writeFile(join(copy, FILE), greeting("three").replace("return ok(", "return ok(("));
    await eventually("the error is printed", () =>
      /does not compile; the previous code keeps running\.\n.*Expected "\)".*\n\n +functions\/order\/subscriptions\.ts:\d+:\d+:\n.*return ok\(\(/.test(
        output,
      ),
    );
    const { body, headers } = await call({ url }, "GET /order/subscriptions");
    expect([body[0].name, headers.get("lotus-code")]).toEqual(["two", "outdated"]);
    expect((await call({ url }, "GET /profile/jwks")).headers.get("lotus-code")).toBeNull();
    await writeFile(join(copy, FILE), source);
    await eventually("the corrected code answers", async () => (await ask()).length === 3);
    expect((await call({ url }, "GET /order/subscriptions")).headers.get("lotus-code")).toBeNull();
  });

  it("builds the functions that use a changed file of the kernel", async () => {
    const file = join(copy, "functions/kernel/problem.ts");
    const text = await readFile(file, "utf8");
    const changed = text.replace("This address does not exist", "Nowhere");
    expect(changed).not.toBe(text);
    await writeFile(file, changed);
    await eventually(
      "the change is answered",
      async () => (await call({ url }, "GET /order/subscriptionsx")).body.title === "Nowhere",
    );
  });

  it("serves a new endpoint with its manifest, and stops serving a deleted one", async () => {
    const file = join(copy, "functions/order/cheapest.ts");
    await writeFile(
      file,
      `import * as v from "valibot";
import { endpoint, ok } from "#kernel/endpoint";

export default endpoint({
  summary: "The subscription that costs least",
  method: "GET",
  caller: "anyone",
  answers: { 200: v.object({ name: v.string() }) },
  handle: async () => ok({ name: "daily" }),
});
`,
    );
    await eventually(
      "it answers",
      async () => (await call({ url }, "GET /order/cheapest")).body.name === "daily",
      LATER_MILLISECONDS_MAX,
    );
    await expect(readFile(join(copy, "knative/functions/order-cheapest.yaml"), "utf8")).resolves.toContain(
      "order-cheapest",
    );
    await rm(file);
    await eventually(
      "the endpoint is removed",
      async () => (await call({ url }, "GET /order/cheapest")).status === 404,
      LATER_MILLISECONDS_MAX,
    );
  });

  it("shows type errors, and their correction", async () => {
    await writeFile(join(copy, FILE), withLine('const n: number = "x"; void n;'));
    await eventually("the error is shown", () => /types .*TS2322: Type 'string'/.test(output));
    await writeFile(join(copy, FILE), source);
    await eventually("the end is shown", () => /types .*no errors/.test(output));
  });

  it("migrates after an edit of SQL, and names the file of an error", async () => {
    const file = join(copy, "functions/order/schema/functions.sql");
    const text = await readFile(file, "utf8");
    await writeFile(file, `${text}\nselect nonsense;\n`);
    await eventually(
      "the error is shown",
      () => /migrate .*functions\/order\/schema\/functions\.sql.*nonsense/s.test(output),
      LATER_MILLISECONDS_MAX,
    );
    await writeFile(file, text);
  });
});
