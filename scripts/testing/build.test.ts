import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import { copyCheckout } from "./checkout.ts";
import { eventually } from "./lotus.ts";

const FUNCTION = "functions/profile/jwks.ts";
/** Its imports do not name the file of the function. It reads the bundle as a Lotus of a test does. */
const TEST = `import { readFileSync } from "node:fs";
import { it } from "vitest";

it("reads the bundle", () => console.log(readFileSync("dist/profile-jwks.bundle.cjs", "utf8").match(/CACHE_SECONDS=\\d+/)[0]));
`;
/** The checkout's triggers and its build, without Postgres and the other tests. A change of an unwatched file has no event. */
const CONFIG = `import config from "./vitest.config.ts";

const announce = ({ watcher }) => {
  const isWatched = ([folder, files]) => folder.endsWith("functions/profile") && files.includes("jwks.ts");
  const timer = setInterval(() => {
    if (!Object.entries(watcher.getWatched()).some(isWatched)) return;
    clearInterval(timer);
    console.log("The function is watched.");
  }, 10);
};

export default {
  plugins: [{ name: "announce", configureServer: announce }],
  test: {
    forceRerunTriggers: config.test.forceRerunTriggers,
    globalSetup: "scripts/testing/build.ts",
    include: ["functions/watched.test.ts"],
  },
};
`;

it("vitest in watch mode builds a changed function, and runs the tests again", async () => {
  const { folder, remove } = await copyCheckout();
  const needless = ["functions/billing", "functions/order", "functions/notification"];
  needless.push("triggers/billing", "triggers/events", "triggers/notification");
  for (const part of needless) await rm(join(folder, part), { recursive: true });
  await writeFile(join(folder, "functions/watched.test.ts"), TEST);
  await writeFile(join(folder, "watched.config.ts"), CONFIG);
  const flags = ["node_modules/vitest/vitest.mjs", "watch", "--config", "watched.config.ts"];
  const vitest = spawn(process.execPath, flags, { cwd: folder, env: { ...process.env, CI: "", VITEST: "" } });
  let output = "";
  for (const stream of [vitest.stdout, vitest.stderr]) stream.on("data", (chunk: Buffer) => (output += chunk));
  const closed = once(vitest, "close");
  const shown = (what: string) =>
    eventually(`vitest prints "${what}"`, () => {
      if (vitest.exitCode !== null) throw new Error(output);
      return output.includes(what);
    }).catch((error: Error) => {
      throw new Error(`${error.message}\n${output}`);
    });
  try {
    for (const what of ["The function is watched.", "CACHE_SECONDS=60", "Waiting for file changes"]) await shown(what);
    const text = await readFile(join(folder, FUNCTION), "utf8");
    const changed = text.replace("CACHE_SECONDS = 60", "CACHE_SECONDS = 61");
    expect(changed).not.toBe(text);
    await writeFile(join(folder, FUNCTION), changed);
    await shown("CACHE_SECONDS=61");
  } finally {
    vitest.kill("SIGTERM");
    await closed;
    await remove();
  }
});
