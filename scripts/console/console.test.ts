/** The console in a real browser: each page, a payment, a dead letter, a killed function, and requests from elsewhere. */
import { randomUUID } from "node:crypto";
import { stat } from "node:fs/promises";
import { request } from "node:http";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import axe from "axe-core";
import type { Browser, BrowserContext, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { launchBrowser } from "../process/chromium.ts";
import { skipWithoutChromium } from "../testing/chromium.ts";
import {
  killFunction,
  meanwhile,
  newUser,
  relayNow,
  settled,
  startTestLotus,
  type TestLotus,
} from "../testing/lotus.ts";
import { bundlePage } from "./assets.ts";
import { IMAGE_BYTES_MAX, IMAGE_NAMES, IMAGES } from "./screenshots.ts";

const PAGES = [
  "overview",
  "events",
  "events?tab=outbox",
  "events?tab=dead-letters",
  "events?tab=traces",
  "ledger",
  "try",
  "try/order-pay",
  "break",
  "logs",
];
const PAYMENT = ["POST /order/pay", "order.place", "send notification-requested", "deliver", "notification.store"];
const BUNDLE_BYTES_MAX = 150 * 1024;
const APPEARS_MILLISECONDS_MAX = 1_000;
/** Before the relay's next run, whose request also makes the page read the ledger again. */
const LEDGER_MILLISECONDS_MAX = 20_000;
const WCAG = { tags: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"] };
const ALL_RULES = { tags: [...WCAG.tags, "best-practice"] };
const WAIT_MILLISECONDS_MAX = 60_000;
const FAULT_MILLISECONDS = 1_500;
/** A killed function leaves events that the relay publishes after a minute. */
const FAULT_MILLISECONDS_MAX = 180_000;
const RELAY_PAUSE_MILLISECONDS = 1_000;
const DESKTOP = { width: 1280, height: 900 };
const PHONE = { width: 360, height: 740 };
const WIDE = { width: 1920, height: 1080 };

/** A part of the page, as the code in the page sees it. */
interface Part {
  readonly textContent: string;
}

let lotus: TestLotus;
beforeAll(async () => {
  lotus = await startTestLotus({ console: true, otel: true, faultMilliseconds: FAULT_MILLISECONDS });
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

  it("has four pictures for the README, each below 200 KiB", async () => {
    for (const name of IMAGE_NAMES) {
      const { size } = await stat(join(IMAGES, `${name}.png`));
      expect([name, size > 0 && size <= IMAGE_BYTES_MAX]).toEqual([name, true]);
    }
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
  const kept: BrowserContext[] = [];
  const complaints: string[] = [];
  beforeAll(async () => {
    browser = await launchBrowser();
  });
  afterAll(() => browser?.close());
  afterEach(async () => {
    await Promise.all(contexts.splice(0).map((context) => context.close()));
    expect(complaints.splice(0)).toEqual([]);
  });

  /** Opens a page. Errors of its console fail the test, unless they are expected. */
  async function open(path: string, options: { colorScheme?: "dark" | "light" } = {}, expected = /^$/): Promise<Page> {
    const context = await browser.newContext({ viewport: DESKTOP, ...options });
    context.setDefaultTimeout(WAIT_MILLISECONDS_MAX);
    contexts.push(context);
    const page = await context.newPage();
    page.on("console", (message) => {
      const isComplaint = message.type() === "error" || message.type() === "warning";
      if (isComplaint && !expected.test(message.text())) complaints.push(message.text());
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

  async function expectDisabled(page: Page, name: string, reason: string): Promise<void> {
    const button = page.getByRole("button", { name: `${name} (${reason})` });
    expect(await button.isDisabled()).toBe(true);
  }

  /** Returns the violations that axe-core finds. The page's policy forbids other scripts, so it runs through the debugger. */
  async function violations(page: Page, only: { tags: readonly string[] } | { rules: readonly string[] } = ALL_RULES) {
    if ((await page.evaluate("typeof axe")) === "undefined") await page.evaluate(axe.source);
    const [type, values] = "tags" in only ? ["tag", only.tags] : ["rule", only.rules];
    const result = await page.evaluate(`axe.run(document, { runOnly: ${JSON.stringify({ type, values })} })`);
    return (result as axe.AxeResults).violations.map(
      ({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html.slice(0, 120)).join(" | ")}`,
    );
  }

  const overflow = (page: Page) =>
    page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth");

  /** Expects that a phone and a desktop show the page without a violation and without horizontal scrolling. */
  async function expectUsable(page: Page, rules?: Parameters<typeof violations>[1]): Promise<void> {
    for (const viewport of [PHONE, DESKTOP]) {
      await page.setViewportSize(viewport);
      expect([viewport.width, await overflow(page), await violations(page, rules)]).toEqual([viewport.width, 0, []]);
    }
  }

  /** Expects that the focus is at a button; prints the element that has it otherwise. */
  const expectFocus = async (page: Page, text: RegExp) =>
    expect(await page.evaluate("document.activeElement.outerHTML.slice(0, 200)")).toMatch(text);

  describe("in both themes", () => {
    const pages = new Map<"light" | "dark", Page>();
    beforeAll(async () => {
      const user = await newUser(lotus, 5);
      await user.call("POST /order/pay?idSubscription=1");
      for (const colorScheme of ["light", "dark"] as const) {
        const page = await open("/", { colorScheme });
        await live(page);
        pages.set(colorScheme, page);
      }
      // They stay open for all tests of this block.
      kept.push(...contexts.splice(0));
    });
    afterAll(() => Promise.all(kept.splice(0).map((context) => context.close())));

    it.each(PAGES)("shows the page %s without an error, a violation or an overflow at three widths", async (path) => {
      for (const [theme, page] of pages) {
        await page.evaluate(`location.hash = "#/${path}"`);
        await page.getByRole("heading", { level: 1 }).waitFor();
        for (const viewport of [PHONE, DESKTOP, WIDE]) {
          await page.setViewportSize(viewport);
          const where = [path, theme, viewport.width];
          expect([...where, await overflow(page)]).toEqual([...where, 0]);
          // The theme changes only colours, and the widest layout has the elements of the desktop.
          if (viewport === WIDE) continue;
          const found = await violations(page, theme === "light" ? ALL_RULES : { rules: ["color-contrast"] });
          expect([...where, found]).toEqual([...where, []]);
        }
      }
    });
  });

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

  it("shows a request as one trace from the gateway to the stored notification", async () => {
    const user = await newUser(lotus, 100);
    const { headers } = await user.call("POST /order/pay?idSubscription=1");
    const trace = headers.get("traceresponse")?.split("-")[1] ?? "";
    const page = await open(`/#/logs?trace=${trace}`);
    await live(page);
    await page
      .getByRole("button", { name: trace.slice(0, 8) })
      .first()
      .click();
    const tree = page.locator("table.tree");
    for (const name of PAYMENT) await tree.locator(".step").getByText(name, { exact: true }).waitFor();
    const rows = await tree.locator("tbody th").evaluateAll((cells: { querySelector(selector: string): Part }[]) =>
      cells.map((cell) => {
        const [level, step, who] = [".hidden", ".step", "div > small"].map(
          (part) => cell.querySelector(part).textContent,
        );
        return `${level}${step} (${who})`;
      }),
    );
    // A function that had no process has a cold start as well.
    expect(rows.filter((row) => !row.includes("cold start"))).toEqual([
      "level 1 gateway (order-pay)",
      "level 2 POST /order/pay (order-pay, server)",
      "level 3 create notification-requested (order-pay, producer)",
      "level 4 send notification-requested (order-pay, client)",
      "level 4 deliver (notification-store, event bus)",
      "level 5 process notification-requested (notification-store, consumer)",
      "level 6 notification.store (notification-store, client)",
      "level 3 order.place (order-pay, client)",
    ]);
    await tree.locator(".step").getByText("order.place", { exact: true }).click();
    await tree.getByText("postgresql").filter({ visible: true }).waitFor();
    await expectUsable(page);
  });

  it("makes a payment with one button, opens its event, and shows it without a violation", async () => {
    const page = await open("/");
    await live(page);
    await page.getByRole("button", { name: "Make a payment" }).click();
    await page.waitForURL(/#\/events\/./);
    await page.locator("table.waterfall").getByText("request", { exact: true }).waitFor();
    await page.reload();
    await page.locator("table.waterfall").getByText("effect", { exact: true }).waitFor();
    await expectUsable(page);
  });

  it("shows that a killed function starts again", async () => {
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
    await page.getByRole("button", { name: "Stop billing-balance" }).press("Enter");
    await row.getByText("zero").waitFor();
    await expectFocus(page, /^<a [^>]*>billing-balance</);
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
    // The event may arrive after the page has asked for it.
    const page = await open("/#/events?tab=dead-letters", {}, /the server responded with a status of 404/);
    await live(page);
    await page.getByText("a reason").click();
    await page.getByRole("button", { name: `Replay dead letter ${rows[0]?.id}` }).click();
    await page.waitForURL(/#\/events\/./);
    await page.locator("table.waterfall").getByText("settle", { exact: true }).waitFor();
    await settled(lotus);
    const { rows: stored } = await lotus.database.query(
      "select from notification.notifications where message = 'again'",
    );
    expect(stored.length).toBe(1);
  });

  it("shows the accounts and the entries of an account, and verifies the ledger", async () => {
    const user = await newUser(lotus, 20);
    await user.call("POST /order/pay?idSubscription=1");
    const page = await open(`/#/ledger?filter=${user.email}`);
    await live(page);
    await page.getByText("balanced", { exact: true }).waitFor();
    await page.getByRole("button", { name: "Verify the ledger" }).press("Enter");
    await page.getByText(/The ledger is right: \d+ entries/).waitFor();
    await expectFocus(page, /^<button [^>]*>Verify the ledger</);
    await page.getByRole("link", { name: user.id }).click();
    const entries = page.getByRole("table");
    await entries.getByText("deposit").waitFor();
    await entries.getByText("charge").waitFor();
    await user.call("POST /billing/add-money?money=7.25");
    await entries.getByText("7.25", { exact: true }).waitFor({ timeout: LEDGER_MILLISECONDS_MAX });
    await expectUsable(page);
  });

  it("sends a call of the OpenAPI document as the demo user, and explains a refusal", async () => {
    // Chromium reports each refused request in its console.
    const page = await open("/#/try/order-pay", {}, /the server responded with a status of 4/);
    await live(page);
    const send = page.getByRole("button", { name: "Send" });
    await send.click();
    await page.getByRole("heading", { name: /Answer (400|409) in/ }).waitFor();
    await page.getByText(/(insufficient-funds|account-not-open): /).waitFor();
    await page.evaluate(`location.hash = "#/try/billing-add-money"`);
    await page.getByRole("heading", { name: "/billing/add-money" }).waitFor();
    await page.getByText(/as demo-/).waitFor();
    await settled(lotus);
    await send.click();
    await page.getByRole("heading", { name: /Answer 200 in/ }).waitFor();
    await page.getByText(/^Headers/).click();
    await page.getByText("The same call with curl").click();
    await page.getByText(/curl -i -X POST 'http:.*money=100'/).waitFor();
    await page.reload();
    await page.getByText(/as demo-/).waitFor();
    await expectUsable(page);
  });

  it.each(["light", "dark"] as const)(
    "serves the API reference without a violation of WCAG in the theme %s",
    async (colorScheme) => {
      const page = await open("/docs", { colorScheme });
      await page.getByText("/order/pay", { exact: true }).waitFor();
      await expectUsable(page, WCAG);
    },
  );

  it(
    "shows the effect of a fault under load, and that no cent is missing",
    async () => {
      const page = await open("/#/break");
      await live(page);
      await page.getByRole("button", { name: "Kill a function" }).click();
      const proof = page.getByText(/(\d+) of \1 payments answered.*The outbox was empty .*Trial balance 0\.00\./);
      // The relay publishes overdue events after a minute; the test need not wait that long.
      let relaying: Promise<void> = Promise.resolve();
      const relay = () => {
        relaying = relayNow(lotus);
      };
      await meanwhile(RELAY_PAUSE_MILLISECONDS, relay, () => proof.waitFor({ timeout: FAULT_MILLISECONDS_MAX }));
      await relaying;
      await page.locator("canvas").waitFor();
      await expectUsable(page);
    },
    FAULT_MILLISECONDS_MAX + WAIT_MILLISECONDS_MAX,
  );

  it("shows a poison event as a dead letter with its reason", async () => {
    const page = await open("/#/break");
    await live(page);
    await page.getByRole("button", { name: "Publish a poison event" }).click();
    await page.getByRole("link", { name: "dead letters 1" }).click();
    await page.getByText(/The data is not that of notification-requested/).click();
    await expectUsable(page);
    await lotus.database.query("delete from events.dead_letters");
    await page.getByText("The list of dead letters is empty.").waitFor();
  });

  it("keeps the focus at a button while it sends, while its job runs and afterwards", async () => {
    const page = await open("/#/break");
    await live(page);
    let answer: () => void = () => undefined;
    const answered = new Promise<void>((resolve) => {
      answer = resolve;
    });
    await page.route("**/console/api/load?*", async (route) => {
      await answered;
      await route.continue();
    });
    await page.getByLabel("Payments/s").fill("1");
    await page.getByLabel("Seconds").fill("1");
    const button = page.getByRole("button", { name: "Run the load" });
    await button.press("Enter");
    await button.and(page.locator("[data-busy]")).waitFor();
    await expectFocus(page, /^<button [^>]*data-busy[^>]*>Run the load/);
    answer();
    await page.getByRole("button", { name: "Run the load (another job is running)", disabled: true }).waitFor();
    await expectFocus(page, /^<button [^>]*>Run the load/);
    // A second press has no effect: the server would refuse it.
    await page.keyboard.press("Enter");
    await page.getByText(/1 payments\/s for 1 s: .*Trial balance 0\.00/).waitFor();
    await expectFocus(page, /^<button [^>]*>Run the load/);
    expect(await page.getByRole("alert").allTextContents()).toEqual([""]);
  });

  it("states why a fault is not possible in this run", async () => {
    const page = await open("/#/break");
    await live(page);
    await expectDisabled(page, "Cut the database", "needs the Postgres that Lotus starts");
    await expectDisabled(page, "Stop Kafka", "needs --kafka");
  });
});
