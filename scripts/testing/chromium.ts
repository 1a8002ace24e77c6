/** Opens a page in Chromium without a window, with a new profile that is deleted afterwards. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CHROMIUM_ARGUMENTS, findChromium } from "../process/chromium.ts";

/** The value `1` skips tests that need Chromium on a machine without it. */
const SKIP_VARIABLE = "LOTUS_SKIP_CHROMIUM";

const program = findChromium();

/** Whether tests may be skipped: Chromium is missing, and the variable allows it. */
export const skipWithoutChromium = program === undefined && process.env[SKIP_VARIABLE] === "1";

/** Returns the program. @throws {Error} when the machine has no Chromium */
function foundProgram(): string {
  if (program !== undefined) return program;
  throw new Error(
    `This test needs Chromium. Install it (Debian: apt-get install chromium), name it in CHROMIUM, or set ${SKIP_VARIABLE}=1 to skip the test.`,
  );
}

/**
 * Opens a page.
 * @returns the function that closes the browser
 * @throws {Error} when the machine has no Chromium
 */
export async function openPage(url: string): Promise<() => Promise<void>> {
  const name = foundProgram();
  const profile = await mkdtemp(join(tmpdir(), "lotus-chromium-"));
  const browser = spawn(name, ["--headless", ...CHROMIUM_ARGUMENTS, `--user-data-dir=${profile}`, url], {
    stdio: "ignore",
    detached: true,
  });
  const ended = once(browser, "exit");
  return async () => {
    // The group: Chromium starts a process for each page.
    if (browser.pid !== undefined) process.kill(-browser.pid, "SIGKILL");
    await ended;
    await rm(profile, { recursive: true, force: true, maxRetries: 10 });
  };
}
