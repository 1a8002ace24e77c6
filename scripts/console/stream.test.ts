/** The stream of the console in a real browser: the page and the real Stream, on a server that the test cuts, refuses and restarts. */
import { createServer, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { Browser, BrowserContext, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { LogEvent } from "../local/control-messages.ts";
import { launchBrowser } from "../process/chromium.ts";
import { skipWithoutChromium } from "../testing/chromium.ts";
import { Assets, CONSOLE_PATH, pageHtml } from "./assets.ts";
import type { EventSummary } from "./protocol.ts";
import { Stream } from "./stream.ts";

const TABS = 12;
const WAIT_MILLISECONDS_MAX = 60_000;
const assets = new Assets();

const eventOf = (number: number): EventSummary => ({
  id: `event-${number}`,
  type: "lotus.notification-requested.v1",
  topic: `topic-${number}`,
  source: "order-pay",
  subject: "a user",
  at: 1_750_000_000_000_000 + number * 1_000,
  trace: String(number).padStart(32, "0"),
  state: "settled",
  attempts: 1,
});
const lineOf = (id: number): LogEvent => ({
  id,
  kind: "line",
  time: "2026-01-01T00:00:00.000Z",
  name: "order-pay",
  text: `line ${id}`,
});

/** One run of Lotus, as its pages see it. */
class Run {
  readonly #events: EventSummary[] = [];
  readonly #lines: LogEvent[] = [];
  readonly token: string;
  readonly stream: Stream;

  constructor(name: string) {
    this.token = `token of ${name}`;
    this.stream = new Stream(name, () => ({
      run: name,
      topology: { endpoints: [], topics: [], triggers: [], others: [] },
      kafka: "none",
      ownPostgres: true,
      spanTarget: "nowhere",
      events: [...this.#events].reverse(),
      lines: this.#lines,
    }));
  }

  /** Records events with these numbers, and a log line for each. */
  record(...numbers: readonly number[]): void {
    for (const number of numbers) {
      this.#events.push(eventOf(number));
      this.stream.event(eventOf(number));
      this.#lines.push(lineOf(number));
      this.stream.line(lineOf(number));
    }
  }
}

describe.skipIf(skipWithoutChromium)("the stream of the page", () => {
  let browser: Browser;
  let server: Server;
  let url: string;
  let run: Run;
  let refusals: number;
  let posts: { readonly token: unknown; readonly status: number }[];
  const streams = new Set<ServerResponse>();
  const contexts: BrowserContext[] = [];

  beforeAll(async () => {
    browser = await launchBrowser();
  });
  afterAll(() => browser?.close());
  beforeEach(async () => {
    [run, refusals, posts] = [new Run("one"), 0, []];
    server = createServer(async (request, response) => {
      const path = request.url ?? "/";
      if (path === "/") return void response.writeHead(200, { "content-type": "text/html" }).end(pageHtml(run.token));
      if (path === `${CONSOLE_PATH}stream`) {
        if (refusals > 0) {
          refusals--;
          return void response.writeHead(503).end();
        }
        streams.add(response);
        response.once("close", () => streams.delete(response));
        return void run.stream.connect(request, response);
      }
      if (request.method === "POST") {
        const { "lotus-console": token } = request.headers;
        const status = token === run.token ? 200 : 403;
        posts.push({ token, status });
        return void response.writeHead(status, { "content-type": "application/json" }).end("{}");
      }
      const asset = await assets.get(path.slice(CONSOLE_PATH.length));
      if (asset === undefined) return void response.writeHead(404).end("{}");
      response.writeHead(200, { "content-type": asset.type }).end(asset.body);
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  });
  afterEach(async () => {
    await Promise.all(contexts.splice(0).map((context) => context.close()));
    run.stream.stop();
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  });

  async function newContext(): Promise<BrowserContext> {
    const context = await browser.newContext();
    context.setDefaultTimeout(WAIT_MILLISECONDS_MAX);
    contexts.push(context);
    return context;
  }
  const live = (page: Page) => page.locator("header.frame").getByText("live", { exact: true }).waitFor();
  const cut = () => {
    for (const response of streams) response.socket?.destroy();
  };

  /** Expects exactly these events and log lines, the newest first, each once. */
  async function expectRows(page: Page, numbers: readonly number[]): Promise<void> {
    const newestFirst = [...numbers].reverse();
    const rows = page.locator("[role=table] [role=row]:not(.head)");
    for (const [hash, column, texts] of [
      ["#/logs", 3, newestFirst.map((number) => `line ${number}`)],
      ["#/events", 1, newestFirst.map((number) => `topic-${number}`)],
    ] as const) {
      await page.evaluate(`location.hash = "${hash}"`);
      await page.getByRole("heading", { level: 1, name: hash === "#/logs" ? "Logs" : "Events" }).waitFor();
      await rows.nth(numbers.length - 1).waitFor();
      expect(await rows.locator(`[role=cell]:nth-child(${column + 1})`).allTextContents()).toEqual(texts);
    }
  }

  it("shows every event once after a cut, an answer of 503 and a restart, also without a shared worker", async () => {
    const shared = await (await newContext()).newPage();
    const alone = await (await newContext()).newPage();
    await alone.addInitScript("delete globalThis.SharedWorker");
    const pages = [shared, alone];
    const each = (work: (page: Page) => Promise<unknown>) => Promise.all(pages.map(work));
    await each((page) => page.goto(`${url}/#/events`));
    await each(live);
    run.record(1, 2);
    await each((page) => expectRows(page, [1, 2]));

    // The browser connects again and names the last batch that it has.
    cut();
    run.record(3);
    await each((page) => page.getByText("reconnecting").first().waitFor());
    await each(live);
    run.record(4);
    await each((page) => expectRows(page, [1, 2, 3, 4]));

    // The browser stops for good after a 503, so the page makes a new stream, which begins with a snapshot.
    refusals = pages.length;
    cut();
    run.record(5);
    await each((page) => page.getByText("reconnecting").first().waitFor());
    await each(live);
    run.record(6);
    await each((page) => expectRows(page, [1, 2, 3, 4, 5, 6]));
    expect(refusals).toBe(0);

    // The second run has other events, lines and another token.
    run.stream.stop();
    run = new Run("two");
    run.record(7);
    cut();
    await each((page) => page.getByText("reconnecting").first().waitFor());
    await each(live);
    run.record(8);
    await each((page) => expectRows(page, [7, 8]));
    await shared.evaluate(`location.hash = "#/break"`);
    await shared.getByRole("button", { name: "Publish a poison event" }).click();
    await shared.locator("button:not([data-busy])", { hasText: "Publish a poison event" }).waitFor();
    expect(posts).toEqual([
      { token: "token of one", status: 403 },
      { token: "token of two", status: 200 },
    ]);
  });

  it("is one for twelve tabs", async () => {
    const context = await newContext();
    const tabs = await Promise.all(
      Array.from({ length: TABS }, async () => {
        const page = await context.newPage();
        await page.goto(`${url}/#/events`);
        return page;
      }),
    );
    await Promise.all(tabs.map(live));
    run.record(1);
    await Promise.all(tabs.map((page) => page.getByText("topic-1").waitFor()));
    // The server learns a moment later that the browser has replaced a stream.
    await expect.poll(() => streams.size).toBe(1);
    for (const page of tabs) expect(await page.getByText("topic-1").count()).toBe(1);
  });
});
