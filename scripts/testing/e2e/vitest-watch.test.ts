import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { copyCheckout } from "../checkout.ts";
import { eventually } from "../lotus.ts";

const FUNCTION = "functions/profile/jwks.ts";
const TEST = "functions/profile/watched.test.ts";
/** A test reaches a function through its bundle, so its imports do not name the file of the function. */
const TEST_TEXT = `import { afterAll, beforeAll, expect, it } from "vitest";
import { call, startTestLotus, type TestLotus } from "../../scripts/testing/lotus.ts";

let lotus: TestLotus;
beforeAll(async () => {
  lotus = await startTestLotus();
});
afterAll(() => lotus.stop());
it("is answered", async () => {
  expect((await call(lotus, "GET /profile/jwks")).headers.get("cache-control")).toBe("public, max-age=60");
});
`;

describe("vitest in watch mode", () => {
  it("runs a test again with the new code when a function changes", async () => {
    const copy = await copyCheckout();
    await writeFile(join(copy.folder, TEST), TEST_TEXT);
    const flags = ["node_modules/vitest/vitest.mjs", "watch", "--project", "lotus", TEST];
    const env = { ...process.env, CI: "", VITEST: "", NO_COLOR: "1" };
    const vitest = spawn(process.execPath, flags, { cwd: copy.folder, env });
    let output = "";
    for (const stream of [vitest.stdout, vitest.stderr]) stream.on("data", (chunk: Buffer) => (output += chunk));
    const closed = once(vitest, "close");
    const shown = (what: RegExp) =>
      eventually(`vitest shows ${what}`, () => {
        if (vitest.exitCode !== null) throw new Error(output);
        return what.test(output);
      }).catch((error: Error) => {
        throw new Error(`${error.message}\n${output}`);
      });
    try {
      await shown(/Tests +1 passed[\s\S]*Waiting for file changes/);
      const text = await readFile(join(copy.folder, FUNCTION), "utf8");
      const changed = text.replace("CACHE_SECONDS = 60", "CACHE_SECONDS = 61");
      expect(changed).not.toBe(text);
      await writeFile(join(copy.folder, FUNCTION), changed);
      await shown(/max-age=61/);
    } finally {
      vitest.kill("SIGTERM");
      await closed;
      await copy.remove();
    }
  });
});
