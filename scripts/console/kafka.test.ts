/** The buttons of the console that stop and start Kafka, in a real browser. */
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { readInstallation } from "../database/installation.ts";
import type { Kafka } from "../kafka/cluster.ts";
import { launchBrowser } from "../process/chromium.ts";
import { skipWithoutChromium } from "../testing/chromium.ts";
import { asAdmin, canStartKafka, startTestKafka } from "../testing/kafka.ts";
import { eventually, meanwhile, relayNow, startTestLotus, type TestLotus } from "../testing/lotus.ts";

/** The brokers need a few seconds more until they serve again. */
const FAULT_MILLISECONDS = 1_000;
const RELAY_PAUSE_MILLISECONDS = 1_000;
const WAIT_MILLISECONDS_MAX = 100_000;

describe.skipIf(skipWithoutChromium || !canStartKafka)("the page Break it, with Kafka", () => {
  let kafka: Kafka;
  let browser: Browser;
  let lotus: TestLotus | undefined;
  beforeAll(async () => {
    [kafka, browser] = await Promise.all([startTestKafka(), launchBrowser()]);
  });
  afterAll(async () => {
    await browser?.close();
    await lotus?.stop();
    await kafka?.stop();
  });

  /** Opens the page of a Lotus. */
  async function open({ url }: TestLotus): Promise<Page> {
    const page = await browser.newPage();
    page.setDefaultTimeout(WAIT_MILLISECONDS_MAX);
    await page.goto(`${url}/#/break`);
    await page.locator("header.frame").getByText("live", { exact: true }).waitFor();
    return page;
  }

  it("stops the brokers under a load, and every payment is answered and settled", async () => {
    const running = await startTestLotus({ kafka, console: true, faultMilliseconds: FAULT_MILLISECONDS });
    lotus = running;
    const page = await open(running);
    await page.getByRole("button", { name: "Start Kafka (Kafka is running)", disabled: true }).waitFor();
    await page.getByRole("button", { name: "Stop Kafka", exact: true }).click();
    await page.getByRole("button", { name: "Stop Kafka (Kafka is stopped)", disabled: true }).waitFor();
    expect(kafka.running).toBe(false);
    const proof = page.getByText(
      /Stop Kafka: ([1-9]\d*) of \1 payments answered.*Outbox at most [1-9].*The outbox was empty .*Trial balance 0\.00\./,
    );
    let relaying: Promise<void> = Promise.resolve();
    const relay = () => {
      relaying = relayNow(running);
    };
    await meanwhile(RELAY_PAUSE_MILLISECONDS, relay, () => proof.waitFor());
    await relaying;
    expect(kafka.running).toBe(true);
    await page.getByRole("button", { name: "Stop Kafka", exact: true, disabled: false }).waitFor();
  });

  it("starts brokers that were killed", async () => {
    if (lotus === undefined) throw new Error("The test before did not start Lotus.");
    kafka.kill(0);
    const page = await open(lotus);
    await page.getByRole("button", { name: "Start Kafka", exact: true, disabled: false }).click();
    await page.getByText(/Start Kafka: Kafka is running/).waitFor();
    expect(kafka.running).toBe(true);
    await lotus.stop();
    lotus = undefined;
  });

  it("does not offer to stop the brokers of KAFKA_BROKERS, and reads them in a consumer group of the installation", async () => {
    vi.stubEnv("KAFKA_BROKERS", kafka.bootstrap.join(","));
    try {
      lotus = await startTestLotus({ kafka: true, console: true });
    } finally {
      vi.unstubAllEnvs();
    }
    const page = await open(lotus);
    for (const name of ["Stop Kafka", "Start Kafka"])
      await page.getByRole("button", { name: `${name} (Lotus did not start these brokers)`, disabled: true }).waitFor();
    const token = await page.locator('meta[name="lotus-token"]').getAttribute("content");
    for (const call of ["faults/stop-kafka", "faults/start-kafka", "processes/kafka/kill"]) {
      const { status } = await fetch(`${lotus.url}/console/api/${call}`, {
        method: "POST",
        headers: { "lotus-console": token ?? "" },
      });
      expect([call, status]).toEqual([call, 400]);
    }
    expect(kafka.running).toBe(true);
    // Other installations may read the same topics.
    const group = `notification-store.${await readInstallation(lotus.adminUrl)}`;
    await eventually(`the consumer group ${group} exists`, async () => {
      const { groups } = await asAdmin(kafka.bootstrap, (admin) => admin.listGroups());
      return groups.some(({ groupId }) => groupId === group);
    });
  });
});
