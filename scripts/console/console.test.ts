/** The console in a real browser: each page, a payment, a dead letter, a killed function, and requests from elsewhere. */
import { randomUUID } from "node:crypto";
import { request } from "node:http";
import { gzipSync } from "node:zlib";
import axe from "axe-core";
import type { Browser, BrowserContext, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { launchBrowser, skipWithoutChromium } from "../testing/chromium.ts";
import { killFunction, newUser, settled, startTestLotus, type TestLotus } from "../testing/lotus.ts";
import { startNetwork } from "../testing/network.ts";
import { bundlePage } from "./assets.ts";

const PAGES = ["overview", "events", "events?tab=outbox", "events?tab=dead-letters", "logs"];
const BUNDLE_BYTES_MAX = 150 * 1024;
const APPEARS_MILLISECONDS_MAX = 1_000;
const DESKTOP = { width: 1280, height: 900 };
const PHONE = { width: 360, height: 740 };

let lotus: TestLotus;
beforeAll(async () => {
  lotus = await startTestLotus({ console: true });
});
afterAll(() => lotus?.stop());

/** Sends a request with any Host, which fetch does not allow. Resolves to the status and the body. */
function send(
  path: string,
  headers: Record<string, string>,
  method = "GET",
): Promise<{ status: number; text: string; headers: Record<string, unknown> }> {
  return new Promise((resolve, reject) => {
    const outgoing = request(lotus.url + path, { method, headers }, (answer) => {
      let text = "";
      answer.setEncoding("utf8").on("data", (chunk: string) => (text += chunk));
      answer.once("end", () => resolve({ status: answer.statusCode ?? 0, text, headers: answer.headers }));
    });
    outgoing.once("error", reject).end();
  });
}

describe("the console", () => {
  it("refuses requests of other origins and of other host names", async () => {
    const { port } = new URL(lotus.url);
    const refused: Record<string, string>[] = [
      { origin: "http://evil.example" },
      { origin: "null" },
      { origin: "http://localhost:1" },
      { host: `evil.example:${port}` },
      { host: `127.0.0.1.evil.example:${port}` },
      { "sec-fetch-site": "cross-site" },
      { "sec-fetch-site": "same-site" },
    ];
    for (const headers of refused) {
      for (const path of ["/", "/docs", "/openapi.json", "/console/page.js", "/console/stream", "/console/api/outbox"])
        expect([path, headers, (await send(path, headers)).status]).toEqual([path, headers, 403]);
      expect((await send("/console/api/dead-letters/all/replay", headers, "POST")).status).toBe(403);
    }
    for (const host of [`localhost:${port}`, `127.0.0.1:${port}`])
      expect((await send("/", { host, "sec-fetch-site": "none" })).status).toBe(200);
  });

  it("refuses a changing call without the token of the page", async () => {
    const path = "/console/api/dead-letters/all/replay";
    expect((await send(path, {}, "POST")).status).toBe(403);
    expect((await send(path, { "lotus-console": "wrong" }, "POST")).status).toBe(403);
    const token = /name="lotus-token" content="([^"]+)"/.exec((await send("/", {})).text)?.[1] ?? "";
    const answer = await send(path, { "lotus-console": token }, "POST");
    expect([answer.status, answer.text]).toEqual([200, JSON.stringify({ count: 0, failures: [] })]);
  });

  it("confines its page and sends no header for other origins", async () => {
    const { headers } = await send("/", {});
    expect(headers["content-security-policy"]).toMatch(
      /default-src 'none'.*frame-ancestors 'none'.*require-trusted-types-for 'script'/,
    );
    expect(headers["access-control-allow-origin"]).toBeUndefined();
    expect(headers["content-type"]).toBe("text/html; charset=utf-8");
  });

  it("has its own origin as the first server of the OpenAPI document", async () => {
    const { text } = await send("/openapi.json", {});
    const { servers, paths } = JSON.parse(text);
    expect(servers[0]).toEqual({ url: lotus.url });
    expect(Object.keys(paths)).toContain("/order/pay");
  });

  it("answers unknown addresses and methods with a problem", async () => {
    expect((await send("/console/nothing.js", {})).status).toBe(404);
    expect((await send("/console/api/nothing", {})).status).toBe(404);
    expect((await send("/", {}, "POST")).status).toBe(405);
  });

  it("has at most 150 KiB of compressed files without the API reference", async () => {
    const files = await bundlePage();
    const bytes = [...files].map(([name, { body }]) => (name.startsWith("docs") ? 0 : gzipSync(body).length));
    expect(bytes.reduce((a, b) => a + b, 0)).toBeLessThan(BUNDLE_BYTES_MAX);
  });
});

describe.skipIf(skipWithoutChromium)("the console in Chromium", () => {
  let browser: Browser;
  const contexts: BrowserContext[] = [];
  const complaints: string[] = [];
  beforeAll(async () => {
    browser = await launchBrowser();
  });
  afterAll(() => browser?.close());
  afterEach(async () => {
    await Promise.all(contexts.splice(0).map((context) => context.close()));
    expect(complaints.splice(0)).toEqual([]);
  });

  /** Opens a page. Errors of its console fail the test. */
  async function open(
    path: string,
    options: { colorScheme?: "dark" | "light"; viewport?: { width: number; height: number } } = {},
  ): Promise<Page> {
    const context = await browser.newContext({ viewport: DESKTOP, ...options });
    contexts.push(context);
    const page = await context.newPage();
    page.on("console", (message) => {
      if (message.type() === "error" || message.type() === "warning") complaints.push(message.text());
    });
    page.on("pageerror", (error) => complaints.push(error.message));
    page.on("request", (sent) => {
      if (!sent.url().startsWith(lotus.url) && !/^(?:data|blob):/.test(sent.url()))
        complaints.push(`requested ${sent.url()}`);
    });
    await page.goto(lotus.url + path);
    return page;
  }

  const live = (page: Page) => page.locator("header.frame").getByText("live", { exact: true }).waitFor();

  /** Returns the violations that axe-core finds. The page's policy forbids other scripts, so it runs through the debugger. */
  async function violations(page: Page): Promise<string[]> {
    await page.evaluate(axe.source);
    const result = await page.evaluate(
      "axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice'] })",
    );
    return (result as axe.AxeResults).violations.map(
      ({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html.slice(0, 120)).join(" | ")}`,
    );
  }

  it.each(PAGES)(
    "shows the page %s without an error and without a violation in both themes and at three widths",
    async (path) => {
      const user = await newUser(lotus, 5);
      await user.call("POST /order/pay?idSubscription=1");
      for (const colorScheme of ["light", "dark"] as const) {
        const page = await open(`/#/${path}`, { colorScheme });
        await live(page);
        await page.getByRole("heading", { level: 1 }).waitFor();
        for (const viewport of [PHONE, DESKTOP, { width: 1920, height: 1080 }]) {
          await page.setViewportSize(viewport);
          expect([path, colorScheme, viewport.width, await violations(page)]).toEqual([
            path,
            colorScheme,
            viewport.width,
            [],
          ]);
          const overflow = await page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth",
          );
          expect([path, viewport.width, overflow]).toEqual([path, viewport.width, 0]);
        }
      }
    },
  );

  it("shows a payment in the events within a second, and its waterfall from the request to the effect", async () => {
    const user = await newUser(lotus, 100);
    await user.call("POST /order/pay?idSubscription=1");
    await settled(lotus);
    const page = await open(`/#/events?filter=${user.id}`);
    await live(page);
    const table = page.getByRole("table", { name: "Events" });
    const rows = table.locator("[aria-rowindex]:not(.head)");
    await rows.nth(1).waitFor();
    const before = await rows.count();
    await user.call("POST /order/pay?idSubscription=1");
    await rows.nth(before).waitFor({ timeout: APPEARS_MILLISECONDS_MAX });
    await rows.first().getByText("settled").waitFor();
    await rows.first().getByRole("link").click();
    const waterfall = page.locator("table.waterfall");
    for (const step of ["request", "commit", "publish", "deliver", "effect", "settle"])
      await waterfall.getByText(step, { exact: true }).first().waitFor();
    await waterfall.getByText("longest").waitFor();
    await page.getByText("Log lines of the trace").click();
    await page.getByRole("heading", { name: "Logs" }).waitFor();
    await page.goBack();
    await waterfall.waitFor();
  });

  it("makes a payment with one button, opens its event, and shows it without a violation", async () => {
    const page = await open("/");
    await live(page);
    await page.getByRole("button", { name: "Make a payment" }).click();
    await page.waitForURL(/#\/events\/./);
    await page.locator("table.waterfall").getByText("request", { exact: true }).waitFor();
    await page.reload();
    await page.locator("table.waterfall").getByText("effect", { exact: true }).waitFor();
    for (const viewport of [PHONE, DESKTOP]) {
      await page.setViewportSize(viewport);
      expect(await violations(page)).toEqual([]);
    }
  });

  it("shows that a killed function comes back", async () => {
    const user = await newUser(lotus, 10);
    const page = await open("/");
    await live(page);
    const row = page.getByRole("row").filter({ has: page.getByRole("link", { name: "billing-balance", exact: true }) });
    await user.call("GET /billing/balance");
    await row.getByText("running").waitFor();
    killFunction(lotus, "billing-balance");
    await row.getByText("zero").waitFor();
    await user.call("GET /billing/balance");
    await row.getByText("running").waitFor();
    await page.getByRole("button", { name: "Stop billing-balance" }).click();
    await row.getByText("zero").waitFor();
  });

  it("replays a dead letter", async () => {
    const { rows } = await lotus.database.query<{ id: string }>(
      `insert into events.dead_letters (event_key, subscriber, reason, attributes, body)
       values ($1, 'notification-store', 'a reason', $2, convert_to($3, 'UTF8')) returning id`,
      [
        randomUUID(),
        { id: randomUUID(), source: "/test", type: "lotus.notification-requested.v1" },
        JSON.stringify({ kind: "message", userId: randomUUID(), recipient: "a@example.com", message: "again" }),
      ],
    );
    const page = await open("/#/events?tab=dead-letters");
    await live(page);
    await page.getByText("a reason").click();
    await page.getByRole("button", { name: `Replay dead letter ${rows[0]?.id}` }).click();
    await page.getByText("There are no dead letters.").waitFor();
    await settled(lotus);
    const { rows: stored } = await lotus.database.query(
      "select from notification.notifications where message = 'again'",
    );
    expect(stored.length).toBe(1);
  });

  it("continues after a cut of its connections", async () => {
    const network = await startNetwork(Number(new URL(lotus.url).port));
    try {
      const user = await newUser(lotus, 1);
      const context = await browser.newContext();
      contexts.push(context);
      const page = await context.newPage();
      await page.goto(`http://localhost:${network.port}/#/events?filter=${user.id}`);
      await live(page);
      const rows = page.getByRole("table", { name: "Events" }).getByRole("link");
      await rows.nth(1).waitFor();
      network.cut();
      await page.getByText("reconnecting").first().waitFor();
      await user.call("POST /billing/add-money?money=1");
      await rows.nth(2).waitFor();
      await live(page);
    } finally {
      await network.stop();
    }
  });

  it("connects again after an answer of 503, also without a shared worker", async () => {
    const context = await browser.newContext();
    contexts.push(context);
    const page = await context.newPage();
    await page.addInitScript("delete globalThis.SharedWorker");
    let refusals = 0;
    await page.route("**/console/stream", (route) =>
      refusals++ === 0 ? route.fulfill({ status: 503, body: "" }) : route.continue(),
    );
    await page.goto(lotus.url);
    await live(page);
    expect(refusals).toBe(2);
  });

  it("serves twelve tabs with one stream", async () => {
    const context = await browser.newContext();
    contexts.push(context);
    const tabs = await Promise.all(
      Array.from({ length: 12 }, async () => {
        const page = await context.newPage();
        await page.goto(lotus.url);
        return page;
      }),
    );
    await Promise.all(tabs.map(live));
    const user = await newUser(lotus, 1);
    await Promise.all(tabs.map((page) => page.evaluate(`location.hash = "#/events?filter=${user.id}"`)));
    await Promise.all(
      tabs.map((page) => page.getByRole("table", { name: "Events" }).getByRole("link").first().waitFor()),
    );
  });
});
