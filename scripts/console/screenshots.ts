/** Takes the pictures of the console for the README, from a run that it is given. */
import { mkdir, stat } from "node:fs/promises";
import { join } from "node:path";
import type { Browser, Page } from "playwright-core";
import { Refusal } from "../cli/errors.ts";
import { ROOT } from "../project/paths.ts";

/** The folder of the pictures. */
export const IMAGES = join(ROOT, "docs", "images");
/** A larger picture makes the README slow. */
export const IMAGE_BYTES_MAX = 200 * 1024;
const VIEWPORT = { width: 1280, height: 800 };
const LOAD = { rate: "40", seconds: "8" };
const WAIT_MILLISECONDS_MAX = 60_000;
/** A delivery that a frozen function did not answer may wait for the relay, which runs each minute. */
const FAULT_MILLISECONDS_MAX = 180_000;
/** Near the end of the fault, which lasts 5 s under 20 payments/s. */
const OUTBOX_IS_FULL = /Outbox (?:[6-9]\d|\d{3})\./;
/** The figures of the overview need a few seconds of requests. */
const SECONDS_BEFORE_OVERVIEW = 3;

/** The pictures by their names. */
export const IMAGE_NAMES = ["overview", "event", "break", "ledger"] as const;

async function take(page: Page, name: (typeof IMAGE_NAMES)[number]): Promise<void> {
  const path = join(IMAGES, `${name}.png`);
  await page.screenshot({ path });
  const { size } = await stat(path);
  if (size > IMAGE_BYTES_MAX)
    throw new Refusal(`${path} has ${size} bytes; at most ${IMAGE_BYTES_MAX} are allowed. Show less on the page.`);
}

/**
 * Makes a payment and a load on the pages of a run, and takes a picture of each page.
 * @param url the address of a run with the console
 * @throws {Refusal} when a picture is too large
 */
export async function takeScreenshots(browser: Browser, url: string): Promise<void> {
  await mkdir(IMAGES, { recursive: true });
  const open = async (path: string, colorScheme: "light" | "dark") => {
    const context = await browser.newContext({ viewport: VIEWPORT, colorScheme });
    context.setDefaultTimeout(WAIT_MILLISECONDS_MAX);
    const page = await context.newPage();
    await page.goto(`${url}/#/${path}`);
    await page.locator("header.frame").getByText("live", { exact: true }).waitFor();
    return page;
  };
  const payment = await open("overview", "light");
  await payment.getByRole("button", { name: "Make a payment" }).click();
  await payment.locator("table.waterfall").getByText("settle", { exact: true }).waitFor();
  await take(payment, "event");

  const load = await open("break", "dark");
  await load.getByLabel("Payments/s").fill(LOAD.rate);
  await load.getByLabel("Seconds").fill(LOAD.seconds);
  await load.getByRole("button", { name: "Run the load" }).click();
  await load.getByText(/[1-9]\d* payments answered/).waitFor();
  await payment.evaluate(`location.hash = "#/overview"`);
  await payment.waitForTimeout(SECONDS_BEFORE_OVERVIEW * 1000);
  await take(payment, "overview");
  await load.getByText(/Trial balance 0\.00/).waitFor();
  // The frozen trigger stores nothing, so the outbox fills while every payment is answered.
  await load.getByLabel("Function").nth(1).selectOption("notification-store");
  await load.getByRole("button", { name: "Freeze a function" }).click();
  const frozen = load.locator("p.job").filter({ hasText: "Freeze notification-store" });
  await frozen.filter({ hasText: OUTBOX_IS_FULL }).waitFor();
  await take(load, "break");
  await frozen.filter({ hasText: /Trial balance 0\.00/ }).waitFor({ timeout: FAULT_MILLISECONDS_MAX });

  const ledger = await open("ledger", "light");
  await ledger.getByRole("button", { name: "Verify the ledger" }).click();
  await ledger.getByText(/The ledger is right/).waitFor();
  await take(ledger, "ledger");
}
