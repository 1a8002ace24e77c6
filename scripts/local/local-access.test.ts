import { randomUUID } from "node:crypto";
import { readdir, readFile, readlink, stat } from "node:fs/promises";
import { request } from "node:http";
import { connect } from "node:net";
import { basename, dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { DIST } from "../build/bundles.ts";
import { call, newUser, settled, startTestLotus, type TestLotus, type TestUser } from "../testing/lotus.ts";

let lotus: TestLotus;
let user: TestUser;
let secret: string;
beforeAll(async () => {
  lotus = await startTestLotus();
  user = await newUser(lotus);
  await user.call("GET /notification");
  await settled(lotus);
  secret = basename(lotus.insideUrl);
});
afterAll(() => lotus.stop());

/** Sends an event with any Host or Origin, which fetch would not send. */
function send(url: string, headers: Record<string, string>): Promise<number> {
  const event = {
    "content-type": "application/json",
    "ce-specversion": "1.0",
    "ce-id": randomUUID(),
    "ce-source": "/test",
    "ce-type": "lotus.notification-requested.v1",
  };
  return new Promise((resolve, reject) => {
    const sent = request(url, { method: "POST", headers: { ...event, ...headers } }, (answer) => {
      answer.resume().once("end", () => resolve(answer.statusCode ?? 0));
    });
    sent.once("error", reject);
    sent.end(JSON.stringify({ userId: user.id, recipient: user.email, kind: "message", message: "forged" }));
  });
}
const messages = async () => {
  const { body } = await user.call("GET /notification");
  return body.filter(({ message }: { message: string }) => message === "forged").length;
};
const deadLetters = async () => (await lotus.database.query("select from events.dead_letters")).rowCount;
const portOf = async (name: string): Promise<number> => {
  const fn = lotus.functions.get(name);
  const running = await fn?.acquire();
  fn?.release();
  return running?.port ?? 0;
};

describe("the event bus and a trigger of a local run", () => {
  const foreign: [string, (shown: string) => Record<string, string>][] = [
    ["the Origin of a page", () => ({ origin: "https://evil.example" })],
    ["the Origin of a file", () => ({ origin: "null" })],
    ["an Origin on this machine", () => ({ origin: "http://localhost:3000" })],
    ["the metadata of a browser", () => ({ "sec-fetch-site": "same-origin" })],
    ["a name that a page rebound", () => ({ host: "evil.example" })],
    ["a name that begins like this machine", () => ({ host: "localhost.evil.example" })],
    ["an address that begins like this machine", () => ({ host: "127.0.0.1.evil.example:80" })],
  ];
  it.each(foreign)("refuse %s, even with the secret of the run", async (_, headers) => {
    const bus = `${lotus.insideUrl}/notification-store`;
    const trigger = `http://127.0.0.1:${await portOf("notification-store")}/`;
    expect(await send(bus, headers(secret))).toBe(403);
    expect(await send(lotus.insideUrl, headers(secret))).toBe(403);
    expect(await send(trigger, { "lotus-run": secret, ...headers(secret) })).toBe(403);
    expect([await messages(), await deadLetters()]).toEqual([0, 0]);
  });

  it("refuse a request without the secret of the run, or with another", async () => {
    const bus = new URL(lotus.insideUrl).origin;
    const trigger = `http://127.0.0.1:${await portOf("notification-store")}/`;
    const others = [secret.slice(1), `${secret}x`, secret.toLowerCase(), "x", "", "%00", "..", "é"];
    for (const other of others)
      expect([other, await send(`${bus}/${other}/notification-store`, {})]).toEqual([other, 403]);
    for (const path of ["/", "/notification-store", "//notification-store", `/x/${secret}/notification-store`])
      expect([path, await send(bus + path, {})]).toEqual([path, 403]);
    expect(await send(trigger, {})).toBe(403);
    for (const other of others.slice(0, 4)) expect(await send(trigger, { "lotus-run": other })).toBe(403);
    expect([await messages(), await deadLetters()]).toEqual([0, 0]);
  });

  it("answer 405 to other methods than POST, without a stack in the log", async () => {
    for (const method of ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"]) {
      const { status, headers } = await fetch(`${lotus.insideUrl}/notification-store`, { method });
      expect([method, status, headers.get("allow")]).toEqual([method, 405, "POST"]);
    }
    expect((lotus.lines.get("notification-store") ?? []).join("\n")).not.toContain("    at ");
  });

  it("refuse a request without a body and without a length", async () => {
    const port = await portOf("notification-store");
    const socket = connect(port, "127.0.0.1");
    socket.write(`POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nlotus-run: ${secret}\r\nConnection: close\r\n\r\n`);
    let text = "";
    for await (const chunk of socket) text += chunk;
    expect(text).toMatch(/^HTTP\/1\.1 415 /);
    expect(await deadLetters()).toBe(0);
  });

  it("accept a request with the secret of the run", async () => {
    expect(await send(`${lotus.insideUrl}/notification-store`, {})).toBe(204);
    expect(await messages()).toBe(1);
  });
});

/** Targets that name a trigger or a file in some other way. A gateway that decodes or joins paths would reach one. */
const TARGETS = [
  "/notification-store",
  "/notification-store/",
  "//notification-store",
  "/./notification-store",
  "/../notification-store",
  "/%2e%2e/notification-store",
  "/.%2e/notification-store",
  "/..%2fnotification-store",
  "/%6eotification-store",
  "/notification%2dstore",
  "/notification-store?x=1",
  "/notification-store;x=1",
  "/notification-store%00",
  "/notification-store%20",
  "/NOTIFICATION-STORE",
  "/%5cnotification-store",
  "/\\notification-store",
  "/notification/store",
  "/notification/store/",
  "//notification/store",
  "/notification//store",
  "/notification/./store",
  "/notification/x/../store",
  "/notification%2fstore",
  "/notification%5cstore",
  "/notification\\store",
  "/notification/%73tore",
  "/notification/store%00",
  "/notification/store.ts",
  "/notification/store/index",
  "/Notification/Store",
  "/order/pay/../../notification/store",
  "/order/pay/..%2f..%2fnotification%2fstore",
  "/order/list/..;/notification/store",
  "/events/relay",
  "/events-relay",
  "/events/dead-letter",
  "/events-dead-letter",
  "/billing/open-account",
  "/billing-open-account",
  "/triggers/notification/store.ts",
  "/dist/notification-store.cjs",
  "http://notification-store.lotus.svc.cluster.local/notification-store",
  "http://127.0.0.1/notification/store",
];
/** Headers that some proxies and frameworks read as another target, method or host. */
const OVERRIDES = [
  { "x-original-url": "/notification-store" },
  { "x-rewrite-url": "/notification-store" },
  { "x-http-method-override": "POST" },
  { "x-forwarded-host": "notification-store.lotus" },
  { "x-forwarded-prefix": "/notification-store" },
  { forwarded: "for=10.0.0.1;host=notification-store.lotus" },
  { "k-original-host": "notification-store.lotus.svc.cluster.local" },
  { host: "notification-store.lotus.svc.cluster.local" },
];

/** Sends an event to the gateway with an unchanged target. */
function sendToGateway(method: string, path: string, headers: Record<string, string> = {}): Promise<number> {
  const body = JSON.stringify({ userId: user.id, recipient: user.email, kind: "message", message: "forged" });
  const { hostname, port } = new URL(lotus.url);
  const event = {
    "content-type": "application/json",
    "ce-specversion": "1.0",
    "ce-source": "/test",
    "ce-type": "sold",
  };
  return new Promise((resolve, reject) => {
    const own = { "ce-id": randomUUID(), "lotus-topic": "notification-requested", "content-length": body.length };
    const given = { ...event, ...own, ...headers };
    const sent = request({ hostname, port, method, path, headers: given, agent: false }, (answer) => {
      answer.resume().once("end", () => resolve(answer.statusCode ?? 0));
    });
    sent.once("error", reject);
    sent.end(body);
  });
}

describe("the gateway", () => {
  it.each(TARGETS)("reaches no trigger at %s", async (target) => {
    const before = [await messages(), await deadLetters()];
    for (const method of ["GET", "POST"]) expect([method, await sendToGateway(method, target)]).toEqual([method, 404]);
    expect([await messages(), await deadLetters()]).toEqual(before);
  });

  it.each(OVERRIDES)("ignores the header %j", async (headers) => {
    const before = [await messages(), await deadLetters()];
    expect(await sendToGateway("GET", "/order/subscriptions", headers)).toBe(200);
    expect(await sendToGateway("POST", "/order/subscriptions", headers)).toBe(405);
    expect(await sendToGateway("GET", "/order/pay", headers)).toBe(405);
    expect(await sendToGateway("POST", "/nothing", headers)).toBe(404);
    expect([await messages(), await deadLetters()]).toEqual(before);
  });
});

describe("an endpoint of a local run", () => {
  it("accepts requests of the gateway only", async () => {
    const port = await portOf("order-subscriptions");
    const url = `http://127.0.0.1:${port}`;
    for (const headers of [{}, { "lotus-run": "x" }])
      expect((await call({ url }, "GET /order/subscriptions", { headers })).body.code).toBe("forbidden");
    expect((await call({ url }, "GET /order/subscriptions", { headers: { "lotus-run": secret } })).status).toBe(200);
  });

  it("receives the secret from the gateway only, also when the client sends one", async () => {
    expect((await call(lotus, "GET /order/subscriptions", { headers: { "lotus-run": "x" } })).status).toBe(200);
  });
});

describe("a local run", () => {
  it.skipIf(process.platform !== "linux")("listens on 127.0.0.1 only", async () => {
    await Promise.all([...lotus.functions.keys()].map(portOf));
    const pids = [process.pid, ...[...lotus.functions.values()].map((fn) => fn.running?.child.pid)];
    const sockets = new Set<string>();
    for (const pid of pids)
      for (const fd of await readdir(`/proc/${pid}/fd`))
        sockets.add(await readlink(`/proc/${pid}/fd/${fd}`).catch(() => "closed meanwhile"));
    // The columns of proc(5): local address as hexadecimal text, state 0A for a listening socket, inode.
    const listening: string[] = [];
    for (const file of ["/proc/net/tcp", "/proc/net/tcp6"])
      for (const line of (await readFile(file, "utf8")).split("\n").slice(1)) {
        const [, local = "", , state, , , , , , inode] = line.trim().split(/\s+/);
        if (state === "0A" && sockets.has(`socket:[${inode}]`)) listening.push(local.split(":")[0] ?? "");
      }
    expect(listening.length).toBeGreaterThanOrEqual(lotus.functions.size + 2);
    expect(new Set(listening)).toEqual(new Set(["0100007F"]));
  });

  it.skipIf(process.platform !== "linux")(
    "shows no secret in a process list, an environment, a bundle or a log",
    async () => {
      await Promise.all([...lotus.functions.keys()].map(portOf));
      const folder = inject("secrets");
      const secrets: string[] = [];
      for (const file of await readdir(folder, { recursive: true })) {
        const path = join(folder, file);
        if (!(await stat(path)).isFile()) continue;
        const text = (await readFile(path, "utf8")).trim();
        // A private key has the member `d`; a public key has no secret.
        const hidden = text.startsWith("{") ? (JSON.parse(text) as { d?: string }).d : text;
        if (hidden !== undefined && !/^[a-z]+:/.test(hidden)) secrets.push(hidden);
      }
      expect(secrets.length).toBeGreaterThan(5);
      const shown: string[] = [[...lotus.lines.values()].flat().join("\n")];
      for (const pid of (await readdir("/proc")).filter((name) => /^\d+$/.test(name)))
        shown.push(await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => ""));
      for (const fn of lotus.functions.values())
        shown.push(await readFile(`/proc/${fn.running?.child.pid}/environ`, "utf8"));
      for (const file of await readdir(DIST, { recursive: true }))
        if (file.endsWith(".cjs")) shown.push(await readFile(join(DIST, file), "utf8"));
      expect(shown.filter((text) => secrets.some((hidden) => text.includes(hidden)))).toEqual([]);
    },
  );

  it("keeps its secret in a file of its user; an environment contains it only in the address of the bus", async () => {
    const file = lotus.manifests.functions.get("order-pay")?.RUN_SECRET_FILE ?? "";
    expect(await readFile(file, "utf8")).toBe(secret);
    expect((await stat(file)).mode & 0o777).toBe(0o600);
    expect((await stat(dirname(file))).mode & 0o777).toBe(0o700);
    expect(secret.length).toBeGreaterThanOrEqual(32);
    expect([...lotus.lines.values()].flat().join("\n")).not.toContain(secret);
  });
});
