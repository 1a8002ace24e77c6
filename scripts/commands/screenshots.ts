/** lotus screenshots: takes the pictures of the console for the README. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { command } from "../cli/command.ts";
import { print, step } from "../cli/output.ts";
import { IMAGES, takeScreenshots } from "../console/screenshots.ts";
import { startLotus } from "../local/lotus.ts";
import { launchBrowser } from "../process/chromium.ts";

export default command({
  about: "Starts Lotus in a temporary folder and takes the pictures in docs/images with Chromium.",
  options: {},
  async run() {
    const browser = await launchBrowser();
    const folder = await mkdtemp(join(tmpdir(), "lotus-screenshots-"));
    try {
      const lotus = await startLotus({ port: 0, folder, console: true, step });
      try {
        await step("Taking the pictures", () => takeScreenshots(browser, lotus.url));
      } finally {
        await lotus.stop();
      }
    } finally {
      await browser.close();
      await rm(folder, { recursive: true, force: true });
    }
    print(`The pictures are in ${relative(process.cwd(), IMAGES)}.`);
  },
});
