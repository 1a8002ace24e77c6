/** The work of the browser for one new event in the console, when its list has 10 000. */
import type { AddressInfo } from "node:net";
import type { Page } from "playwright-core";
import { REQUEST_HEADER_BYTES_MAX } from "#kernel/limits";
import { createHttpServer } from "#kernel/listener";
import { Assets, CONSOLE_PATH, pageHtml } from "../console/assets.ts";
import type { Batch, EventSummary, Snapshot } from "../console/protocol.ts";
import { launchBrowser } from "../process/chromium.ts";
import type { BenchOptions } from "./flags.ts";
import type { Figure } from "./report.ts";

export const about =
  "the work of Chromium for one new event in the console's list of 10 000, and the rows in the document";

const EVENTS = 10_000;
const APPENDS_EACH_ROUND = 40;
const APPEND_MILLISECONDS_MAX = 15;
const ROWS_MAX = 60;
const VIEWPORT = { width: 1280, height: 900 };

const eventOf = (number: number): EventSummary => ({
  id: `0190b2c0-0000-7000-8000-${String(number).padStart(12, "0")}`,
  type: "lotus.notification-requested.v1",
  topic: "notification-requested",
  source: "order-pay",
  subject: "0190b2c0-1111-7000-8000-000000000000",
  at: 1_750_000_000_000_000 + number * 1_000,
  trace: String(number).padStart(32, "0"),
  state: "settled",
  attempts: 1,
  microseconds: 12_345,
});

const snapshot: Snapshot = {
  run: "bench",
  topology: { endpoints: [], topics: [], triggers: [], others: [] },
  kafka: "none",
  ownPostgres: true,
  spanTarget: "nowhere",
};

/** Replaces the stream of the page by a function that the bench calls: `push(kind, text)`. */
const STREAM = `
delete globalThis.SharedWorker;
globalThis.EventSource = class {
  static CLOSED = 2;
  readyState = 1;
  addEventListener(kind, listener) {
    globalThis.listeners ??= new Map();
    globalThis.listeners.set(kind, listener);
    if (globalThis.listeners.size === 2) queueMicrotask(() => this.onopen());
  }
  close() {}
};
globalThis.push = (kind, data) => globalThis.listeners.get(kind)({ data });
`;

/** Serves the files of the page, without a Lotus. */
async function servePage(): Promise<{ readonly url: string; stop(): Promise<void> }> {
  const assets = new Assets();
  const server = createHttpServer(REQUEST_HEADER_BYTES_MAX, async ({ url = "/" }, response) => {
    if (url === "/") return void response.writeHead(200, { "content-type": "text/html" }).end(pageHtml(""));
    const asset = await assets.get(url.slice(CONSOLE_PATH.length));
    if (asset === undefined) return void response.writeHead(404).end();
    response.writeHead(200, { "content-type": asset.type }).end(asset.body);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    async stop() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

const push = (page: Page, kind: "reset" | "batch", content: Snapshot | Batch) =>
  page.evaluate(`push(${JSON.stringify(kind)}, ${JSON.stringify(JSON.stringify(content))})`);

export default async function consoleList({ rounds }: BenchOptions): Promise<Figure[]> {
  const site = await servePage();
  const browser = await launchBrowser();
  try {
    const page = await browser.newPage({ viewport: VIEWPORT });
    await page.addInitScript(STREAM);
    await page.goto(`${site.url}/#/events`);
    await page.locator("header.frame").getByText("live", { exact: true }).waitFor();
    await push(page, "reset", { ...snapshot, events: [] });
    await push(page, "batch", { events: Array.from({ length: EVENTS }, (_, number) => eventOf(number)) });
    await page.getByText(`${EVENTS.toLocaleString("en-GB").replace(",", " ")} events`).waitFor();
    const debug = await page.context().newCDPSession(page);
    await debug.send("Performance.enable");
    /** The time of the page's main thread in tasks: script, style, layout, paint. */
    const workMilliseconds = async () => {
      const { metrics } = await debug.send("Performance.getMetrics");
      return (metrics.find(({ name }) => name === "TaskDuration")?.value ?? Number.NaN) * 1_000;
    };
    const frame = () =>
      page.evaluate("new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))");
    const appends: number[] = [];
    let next = EVENTS;
    for (let round = 0; round < rounds; round++) {
      const before = await workMilliseconds();
      for (let append = 0; append < APPENDS_EACH_ROUND; append++) {
        await push(page, "batch", { events: [eventOf(next++)] });
        await frame();
      }
      appends.push(((await workMilliseconds()) - before) / APPENDS_EACH_ROUND);
    }
    const rows = await page.locator("[aria-rowindex]").count();
    return [
      {
        what: "work of the page for one event in a list of 10 000, ms",
        lotus: appends,
        digits: 1,
        targets: [{ of: "lotus", max: APPEND_MILLISECONDS_MAX }],
      },
      { what: "rows of this list in the document", lotus: [rows], targets: [{ of: "lotus", max: ROWS_MAX }] },
    ];
  } finally {
    await browser.close();
    await site.stop();
  }
}
