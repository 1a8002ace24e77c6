/** Opens a page in Chromium without a window, with a profile of its own that is deleted afterwards. */
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** Set to `1`, lets tests that need Chromium be skipped on a machine without it. */
const SKIP_VARIABLE = "LOTUS_SKIP_CHROMIUM";
const NAMES = ["chromium", "chromium-browser", "google-chrome", "chrome"];

const program = [process.env.CHROMIUM ?? "", ...NAMES].find(
  (name) => name !== "" && spawnSync(name, ["--version"]).status === 0,
);

/** Whether tests may be skipped: Chromium is missing, and the variable allows it. */
export const skipWithoutChromium = program === undefined && process.env[SKIP_VARIABLE] === "1";

/**
 * Opens a page.
 * @returns the function that closes the browser
 * @throws {Error} when the machine has no Chromium
 */
export async function openPage(url: string): Promise<() => Promise<void>> {
  if (program === undefined) {
    throw new Error(
      `This test needs Chromium. Install it (Debian: apt-get install chromium), name it in CHROMIUM, or set ${SKIP_VARIABLE}=1 to skip the test.`,
    );
  }
  const profile = await mkdtemp(join(tmpdir(), "lotus-chromium-"));
  const browser = spawn(
    program,
    [
      "--headless",
      "--disable-gpu",
      "--disable-dev-shm-usage",
      // Chromium's sandbox does not start for root.
      ...(process.getuid?.() === 0 ? ["--no-sandbox"] : []),
      `--user-data-dir=${profile}`,
      url,
    ],
    { stdio: "ignore", detached: true },
  );
  const ended = once(browser, "exit");
  return async () => {
    // The group: Chromium starts a process for each page.
    if (browser.pid !== undefined) process.kill(-browser.pid, "SIGKILL");
    await ended;
    await rm(profile, { recursive: true, force: true, maxRetries: 10 });
  };
}
