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
/** Returns the change that adds a line at the begin of the handler. */
const withLine = (line: string) => (text: string) =>
  text.replace(/async handle\([^)]*\) \{/, (begin) => `${begin}\n    ${line}`);
const greeting = (text: string) => withLine(`return ok([{ id: 9, name: "${text}", price: 1 }]);`);

/** Writes a text into a file of the copy, does the work, and writes the earlier text back, so that the next test finds it. */
async function edited(file: string, change: (text: string) => string, work: () => Promise<void>): Promise<void> {
  const path = join(copy, file);
  const before = await readFile(path, "utf8");
  const after = change(before);
  if (after === before) throw new Error(`${file} has no text that this test can change.`);
  await writeFile(path, after);
  try {
    await work();
  } finally {
    await writeFile(path, before);
  }
}

/** Waits until dev prints a text after the call of this function. */
function printed(what: string, pattern: RegExp): () => Promise<void> {
  const from = output.length;
  return async () => void (await eventually(what, () => pattern.test(output.slice(from))));
}

describe("npm run dev", () => {
  it("answers the next request with the changed code", async () => {
    expect(await ask()).toHaveLength(3);
    await edited(FILE, greeting("one"), async () => {
      await eventually("the change is answered", async () => (await ask())[0].name === "one");
      await writeFile(join(copy, FILE), greeting("two")(source));
      await eventually("the second change is answered", async () => (await ask())[0].name === "two");
    });
    expect(output).toMatch(/order-subscriptions .*built/);
  });

  it("keeps the old code while the new code does not compile, sets a header, and prints the place of the error", async () => {
    await edited(FILE, greeting("old"), async () => {
      await eventually("the old code answers", async () => (await ask())[0].name === "old");
      const error = printed(
        "the error is printed",
        /does not compile; the previous code keeps running\.\n.*Expected "\)".*\n\n +functions\/order\/subscriptions\.ts:\d+:\d+:\n.*return ok\(\(/,
      );
      await writeFile(join(copy, FILE), greeting("new")(source).replace("return ok(", "return ok(("));
      await error();
      const { body, headers } = await call({ url }, "GET /order/subscriptions");
      expect([body[0].name, headers.get("lotus-code")]).toEqual(["old", "outdated"]);
      expect((await call({ url }, "GET /profile/jwks")).headers.get("lotus-code")).toBeNull();
    });
    await eventually("the corrected code answers", async () => (await ask()).length === 3);
    expect((await call({ url }, "GET /order/subscriptions")).headers.get("lotus-code")).toBeNull();
  });

  it("builds the functions that use a changed file of the kernel", async () => {
    const rename = (text: string) => text.replace("This address does not exist", "Nowhere");
    await edited("functions/kernel/problem.ts", rename, async () => {
      await eventually(
        "the change is answered",
        async () => (await call({ url }, "GET /order/subscriptionsx")).body.title === "Nowhere",
      );
    });
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
    try {
      await eventually("it answers", async () => (await call({ url }, "GET /order/cheapest")).body.name === "daily");
      await expect(readFile(join(copy, "knative/functions/order-cheapest.yaml"), "utf8")).resolves.toContain(
        "order-cheapest",
      );
    } finally {
      await rm(file);
    }
    await eventually(
      "the endpoint is removed",
      async () => (await call({ url }, "GET /order/cheapest")).status === 404,
    );
  });

  it("shows type errors, and their correction", async () => {
    const error = printed("the error is shown", /types .*TS2322: Type 'string'/);
    await edited(FILE, withLine('const n: number = "x"; void n;'), error);
    await printed("the correction is shown", /types .*no errors/)();
  });

  it("migrates after an edit of SQL, and names the file of an error", async () => {
    const error = printed("the error is shown", /migrate .*functions\/order\/schema\/functions\.sql.*nonsense/s);
    const add = (text: string) => `${text}\nselect nonsense;\n`;
    await edited("functions/order/schema/functions.sql", add, error);
  });
});
