/** Opens a page in Chromium without a window, with a profile of its own that is deleted afterwards. */
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Browser, chromium } from "playwright-core";

/** Set to `1`, lets tests that need Chromium be skipped on a machine without it. */
const SKIP_VARIABLE = "LOTUS_SKIP_CHROMIUM";
const NAMES = ["chromium", "chromium-browser", "google-chrome", "chrome"];

const program = [process.env.CHROMIUM ?? "", ...NAMES].find(
  (name) => name !== "" && spawnSync(name, ["--version"]).status === 0,
);

/** Whether tests may be skipped: Chromium is missing, and the variable allows it. */
export const skipWithoutChromium = program === undefined && process.env[SKIP_VARIABLE] === "1";

/** Returns the program. @throws {Error} when the machine has no Chromium */
function foundProgram(): string {
  if (program !== undefined) return program;
  throw new Error(
    `This test needs Chromium. Install it (Debian: apt-get install chromium), name it in CHROMIUM, or set ${SKIP_VARIABLE}=1 to skip the test.`,
  );
}

/** Arguments of Chromium on a machine without a display. Its sandbox does not start for root. */
const ARGUMENTS = ["--disable-gpu", "--disable-dev-shm-usage", ...(process.getuid?.() === 0 ? ["--no-sandbox"] : [])];

/**
 * Starts Chromium for Playwright. The caller closes it.
 * @throws {Error} when the machine has no Chromium
 */
export function launchBrowser(): Promise<Browser> {
  const name = foundProgram();
  // Playwright needs a path. `which` is not on every machine, and a shell has `command -v`.
  const path = spawnSync("sh", ["-c", 'command -v "$1"', "sh", name], { encoding: "utf8" }).stdout.trim();
  return chromium.launch({ executablePath: path, args: ARGUMENTS });
}

/**
 * Opens a page.
 * @returns the function that closes the browser
 * @throws {Error} when the machine has no Chromium
 */
export async function openPage(url: string): Promise<() => Promise<void>> {
  const name = foundProgram();
  const profile = await mkdtemp(join(tmpdir(), "lotus-chromium-"));
  const browser = spawn(name, ["--headless", ...ARGUMENTS, `--user-data-dir=${profile}`, url], {
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
