import { request } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, describe, expect, it } from "vitest";
import { type Control, createControl } from "./control.ts";
import type { LogEvent } from "./control-messages.ts";

const endings: (() => void)[] = [];
afterEach(() => {
  for (const end of endings.splice(0)) end();
});

interface Started {
  readonly control: Control;
  readonly port: number;
  readonly stopped: () => number;
  readonly killed: () => number;
}

async function start(): Promise<Started> {
  let stops = 0;
  let kills = 0;
  const control = createControl({
    folder: "/run",
    functions: new Map(),
    describe: () => ({}),
    others: [
      { status: () => ({ name: "postgres", kind: "postgres", state: "running", pid: 1 }), kill: () => ++kills === 1 },
    ],
    url: () => "http://localhost:8080",
    stop: () => void stops++,
  });
  await new Promise<void>((resolve) => control.server.listen(0, "127.0.0.1", resolve));
  endings.push(() => {
    control.server.closeAllConnections();
    control.server.close();
  });
  const { port } = control.server.address() as AddressInfo;
  return { control, port, stopped: () => stops, killed: () => kills };
}

const call = async ({ control, port }: Started, method: string, path: string, headers: Record<string, string> = {}) => {
  const answer = await fetch(`http://127.0.0.1:${port}${path}`, {
    method,
    headers: { authorization: `Bearer ${control.secret}`, ...headers },
  });
  return { status: answer.status, body: (await answer.json()) as { detail?: string } };
};

/** Sends a request with a Host header, which fetch does not allow. */
function withHost({ control, port }: Started, host: string): Promise<number | undefined> {
  return new Promise((resolve, reject) => {
    const headers = { host, authorization: `Bearer ${control.secret}` };
    request({ port, host: "127.0.0.1", path: "/run", headers }, (answer) => resolve(answer.resume().statusCode))
      .once("error", reject)
      .end();
  });
}

async function readEvents(started: Started, query: string, count: number, headers = {}): Promise<LogEvent[]> {
  const { control, port } = started;
  const answer = await fetch(`http://127.0.0.1:${port}/events?${query}`, {
    headers: { authorization: `Bearer ${control.secret}`, ...headers },
  });
  expect(answer.headers.get("content-type")).toBe("text/event-stream");
  const events: LogEvent[] = [];
  let text = "";
  for await (const chunk of (answer.body ?? new ReadableStream()).pipeThrough(new TextDecoderStream())) {
    text += chunk;
    const blocks = text.split("\n\n");
    text = blocks.pop() ?? "";
    for (const block of blocks) events.push(JSON.parse(/^data: (.*)$/m.exec(block)?.[1] ?? ""));
    if (events.length >= count) break;
  }
  return events;
}

describe("the control channel", () => {
  it("answers only with the secret of the run, and only under its own host", async () => {
    const started = await start();
    for (const authorization of ["", "Bearer ", "Bearer x", `bearer ${started.control.secret}`])
      expect((await call(started, "GET", "/run", { authorization })).status).toBe(401);
    expect(await withHost(started, "evil.example")).toBe(401);
    expect(await withHost(started, `localhost:${started.port}`)).toBe(200);
    expect((await call(started, "POST", "/stop", { authorization: "Bearer x" })).status).toBe(401);
    expect(started.stopped()).toBe(0);
  });

  it("shows the run and its processes, and stops", async () => {
    const started = await start();
    expect((await call(started, "GET", "/run")).body).toMatchObject({ pid: process.pid, url: "http://localhost:8080" });
    expect((await call(started, "GET", "/processes")).body).toEqual([
      { name: "postgres", kind: "postgres", state: "running", pid: 1 },
    ]);
    expect((await call(started, "POST", "/stop")).status).toBe(202);
    expect(started.stopped()).toBe(1);
    expect((await call(started, "GET", "/nothing")).status).toBe(404);
  });

  it("kills a process, or reports why it cannot", async () => {
    const started = await start();
    expect((await call(started, "POST", "/processes/postgres/kill")).body).toEqual({ killed: "postgres" });
    expect((await call(started, "POST", "/processes/postgres/kill")).body.detail).toBe("postgres has no process now.");
    expect((await call(started, "POST", "/processes/nothing/kill")).status).toBe(404);
  });

  it("streams log lines and news, from the history or from the last received event", async () => {
    const started = await start();
    for (const text of ["one", "two", "three"]) started.control.record("line", "order-pay", text);
    started.control.record("news", "postgres", "runs again");
    const texts = (events: readonly LogEvent[]) => events.map(({ text }) => text);
    expect(texts(await readEvents(started, "history=2", 2))).toEqual(["three", "runs again"]);
    expect(texts(await readEvents(started, "history=9&name=order-pay", 3))).toEqual(["one", "two", "three"]);
    expect(texts(await readEvents(started, "", 2, { "last-event-id": "2" }))).toEqual(["three", "runs again"]);
    const later = readEvents(started, "", 1);
    const timer = setInterval(() => started.control.record("line", "order-pay", "live"), 5);
    expect(texts(await later)).toEqual(["live"]);
    clearInterval(timer);
  });
});
