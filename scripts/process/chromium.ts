/** Starts the Chromium of this machine, without a window. */
import { spawnSync } from "node:child_process";
import { type Browser, chromium } from "playwright-core";
import { Refusal } from "../cli/errors.ts";

const NAMES = ["chromium", "chromium-browser", "google-chrome", "chrome"];

/** Arguments on a machine without a display. The sandbox of Chromium does not start for root. */
export const CHROMIUM_ARGUMENTS = [
  "--disable-gpu",
  "--disable-dev-shm-usage",
  ...(process.getuid?.() === 0 ? ["--no-sandbox"] : []),
];

/** Returns the name of the program: CHROMIUM, else the first of its usual names that runs. Undefined: the machine has none. */
export function findChromium(): string | undefined {
  return [process.env.CHROMIUM ?? "", ...NAMES].find(
    (name) => name !== "" && spawnSync(name, ["--version"]).status === 0,
  );
}

/** Starts Chromium for Playwright. The caller closes it. @throws {Refusal} when the machine has no Chromium */
export function launchBrowser(): Promise<Browser> {
  const name = findChromium();
  if (name === undefined)
    throw new Refusal("Chromium is missing. Install it (Debian: apt-get install chromium), or name it in CHROMIUM.");
  // Playwright needs a path, and every shell has `command -v`.
  const path = spawnSync("sh", ["-c", 'command -v "$1"', "sh", name], { encoding: "utf8" }).stdout.trim();
  return chromium.launch({ executablePath: path, args: CHROMIUM_ARGUMENTS });
}
