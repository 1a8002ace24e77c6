import { createHash } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { Agent, type IncomingMessage, request } from "node:http";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { REQUEST_BODY_BYTES_MAX } from "#kernel/limits";
import { call, eventually } from "../testing/lotus.ts";
import { FunctionProcess, type FunctionProcessOptions } from "./function-process.ts";
import { createGateway, listen, REQUESTS_OF_ADDRESS_MAX } from "./gateway.ts";

/** A small program of a function. It returns its process id, and the path selects its behaviour. */
const PROGRAM = `
  const { createServer } = require("node:http");
  const held = [];
  const server = createServer((request, response) => {
    const what = request.url.split("/").pop();
    response.once("close", () => {
      console.log(response.writableFinished ? "answered" : "gone");
      if (!server.listening) server.closeIdleConnections();
    });
    if (what === "crash") {
      console.error("Error: the last straw");
      process.exit(3);
    }
    if (what === "hold") {
      console.log("held");
      held.push(() => response.end("released " + process.pid));
    } else if (what === "echo") {
      response.setHeader("x-was", request.headers["x-forwarded-for"]);
      request.pipe(response);
    } else response.end(String(process.pid));
  });
  process.on("SIGUSR2", () => { for (const release of held.splice(0)) release(); });
  process.on("SIGTERM", () => { server.close(() => process.exit()); server.closeIdleConnections(); });
  process.on("disconnect", () => process.exit());
  server.listen(0, () => process.send({ port: server.address().port }));`;

let folder: string;
const endings: (() => Promise<unknown>)[] = [];
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "lotus-gateway-"));
});
afterEach(async () => {
  for (const end of endings.splice(0).reverse()) await end();
});
afterAll(() => rm(folder, { recursive: true, force: true }));

/** Listens after a pause, in which a test can act. */
const slow = (milliseconds: number) => `console.log("starting"); setTimeout(() => {${PROGRAM}}, ${milliseconds});`;

const fileOf = (program: string) => join(folder, `${createHash("sha256").update(program).digest("hex")}.cjs`);

/** A gateway with one function, at /fn. */
async function serve(program = PROGRAM, options: Partial<FunctionProcessOptions> = {}) {
  const file = fileOf(program);
  await writeFile(file, program);
  const lines: string[] = [];
  const starts: number[] = [];
  const crashes: { how: string; lines: readonly string[] }[] = [];
  const fn = new FunctionProcess({
    name: "fn",
    file,
    environment: {},
    idleMilliseconds: 60_000,
    onLine: (_, line) => void lines.push(line),
    onCrash: (_, how, last) => void crashes.push({ how, lines: [...last] }),
    onStart: (_, milliseconds) => void starts.push(milliseconds),
    ...options,
  });
  const listening = await listen(createGateway([{ path: "/fn", name: "fn" }], new Map([["fn", fn]])), 0, "127.0.0.1");
  endings.push(() => fn.close());
  endings.push(() => listening.stop());
  return { url: `http://127.0.0.1:${listening.port}`, fn, lines, starts, crashes, stop: listening.stop };
}

const alive = (pid: number): boolean => {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
};

describe("the gateway", () => {
  it("starts one process for two hundred first requests, which wait for it", async () => {
    const { url, starts } = await serve();
    expect(starts).toEqual([]);
    const answers = await Promise.all(Array.from({ length: 200 }, () => call({ url }, "GET /fn/pid")));
    expect(answers.filter(({ status }) => status === 200)).toHaveLength(200);
    expect(new Set(answers.map(({ body }) => body)).size).toBe(1);
    expect(starts).toHaveLength(1);
  });

  it("forwards the body, and replaces the client's headers about its address", async () => {
    const { url } = await serve();
    const body = "x".repeat(REQUEST_BODY_BYTES_MAX);
    const answer = await call({ url }, "POST /fn/echo", { body, headers: { "x-forwarded-for": "203.0.113.9" } });
    expect(answer.body).toBe(body);
    expect(answer.headers.get("x-was")).toMatch(/^(::ffff:)?127\.0\.0\.1$/);
  });

  it("answers /healthz itself, and 404 for an unknown path", async () => {
    const { url, starts } = await serve();
    expect((await call({ url }, "GET /healthz")).status).toBe(200);
    const { status, headers, body } = await call({ url }, "POST /nowhere?a=b", { body: { a: 1 } });
    expect([status, headers.get("content-type"), body.code]).toEqual([404, "application/problem+json", "not-found"]);
    expect(body.detail).toBe("The address /nowhere does not exist.");
    expect(starts).toEqual([]);
  });

  it("stops a process without requests, and starts another for the next one", async () => {
    const { url, fn, crashes } = await serve(PROGRAM, { idleMilliseconds: 50 });
    const first = Number((await call({ url }, "GET /fn/pid")).body);
    await eventually("it has ended", () => fn.running === undefined && !alive(first));
    const second = Number((await call({ url }, "GET /fn/pid")).body);
    expect(second).not.toBe(first);
    expect(crashes).toEqual([]);
  });

  it("keeps a process during a long request", async () => {
    const { url, fn, lines } = await serve(PROGRAM, { idleMilliseconds: 10 });
    const held = call({ url }, "GET /fn/hold");
    await eventually("it is held", () => lines.includes("held"));
    const pid = fn.running?.child.pid;
    // Other requests begin and end. They do not start the idle time while the first one is in progress.
    for (let times = 0; times < 5; times++) expect((await call({ url }, "GET /fn/pid")).body).toBe(String(pid));
    process.kill(pid ?? 0, "SIGUSR2");
    expect((await held).body).toBe(`released ${pid}`);
  });

  it("reports a crash with its last lines, answers 503, and starts the function again", async () => {
    const { url, crashes } = await serve();
    const { status, body } = await call({ url }, "POST /fn/crash");
    expect([status, body.code]).toEqual([503, "outcome-unknown"]);
    await eventually("the crash is reported", () => crashes.length === 1);
    expect((await call({ url }, "GET /fn/pid")).status).toBe(200);
    expect(crashes).toEqual([{ how: "with exit code 3", lines: ["Error: the last straw"] }]);
  });

  it("starts a function again that was killed between two requests", async () => {
    const { url, fn } = await serve();
    const first = (await call({ url }, "GET /fn/pid")).body;
    process.kill(Number(first), "SIGKILL");
    await eventually("its end is reported", () => fn.running === undefined);
    expect((await call({ url }, "GET /fn/pid")).body).not.toBe(first);
  });

  it.each([
    [
      "ends",
      `console.error("no such file"); process.exit(1);`,
      20_000,
      /^fn ended with exit code 1 before it listened\.$/,
    ],
    [
      "never listens",
      `console.log("thinking"); setInterval(() => {}, 1000);`,
      2_000,
      /^fn did not listen within 2 s\.$/,
    ],
  ])(
    "answers 503 with a message for a program that %s, and starts it again at the next request",
    async (_, program, startMillisecondsMax, sentence) => {
      const { url, fn, crashes } = await serve(program, { startMillisecondsMax, idleMilliseconds: 10 });
      for (const times of [1, 2]) {
        const answers = await Promise.all([call({ url }, "GET /fn/a"), call({ url }, "GET /fn/b")]);
        for (const { status, headers, body } of answers) {
          expect([status, body.code, headers.get("retry-after")]).toEqual([503, "unavailable", "1"]);
          expect(body.detail).toMatch(sentence);
        }
        expect(crashes).toHaveLength(times);
      }
      // Requests that did not reach it have ended: once it works, it stops when it is idle.
      await writeFile(fileOf(program), PROGRAM);
      const { status, body } = await call({ url }, "GET /fn/pid");
      expect(status).toBe(200);
      const pid = Number(body);
      await eventually("it is stopped when idle", () => fn.running === undefined && !alive(pid));
    },
  );

  it("continues when a client closes its connection, while the function starts and while it works", async () => {
    const { url, fn, lines } = await serve(slow(300), { idleMilliseconds: 20 });
    for (const [path, sign] of [
      ["/fn/pid", "starting"],
      ["/fn/hold", "held"],
    ]) {
      const client = request(url + path, { agent: new Agent() });
      client.on("error", () => undefined);
      client.end();
      await eventually(`the function says ${sign}`, () => lines.includes(sign ?? ""));
      client.destroy();
      await eventually("it has listened", () => fn.running !== undefined || sign === "held");
      await eventually("it is idle, and stopped", () => fn.running === undefined);
    }
    await eventually("the function has noticed", () => lines.includes("gone"));
    expect(lines).toEqual(["starting", "starting", "held", "gone"]);
  });

  it("finishes requests in progress when it stops, and ends every process", async () => {
    const { url, fn, lines, stop } = await serve();
    const held = call({ url }, "GET /fn/hold");
    await eventually("it is held", () => lines.includes("held"));
    const pid = fn.running?.child.pid ?? 0;
    // As browsers do, for a request that may come.
    const unused = connect(Number(new URL(url).port), "127.0.0.1");
    await once(unused, "connect");
    const stopped = stop();
    const closed = fn.close();
    await eventually("the gateway refuses connections", () =>
      fetch(url).then(
        () => false,
        () => true,
      ),
    );
    process.kill(pid, "SIGUSR2");
    expect((await held).body).toBe(`released ${pid}`);
    await Promise.all([stopped, closed]);
    expect(alive(pid)).toBe(false);
    await expect(fn.acquire()).rejects.toThrow("fn does not start: Lotus is stopping.");
  });

  // Other systems have no address 127.0.0.2.
  it.skipIf(process.platform !== "linux")(
    "leaves other addresses their answers while one address has many requests in progress on one connection",
    async () => {
      const { url, fn, lines } = await serve();
      const { port } = new URL(url);
      const held = () => lines.filter((line) => line === "held").length;
      const statusOf = async (localAddress: string) => {
        const sent = request(`${url}/fn/pid`, { localAddress, agent: false }).end();
        const [answer] = (await once(sent, "response")) as [IncomingMessage];
        answer.resume();
        return answer.statusCode;
      };
      const greedy = connect(Number(port), "127.0.0.1").resume();
      greedy.write("GET /fn/hold HTTP/1.1\r\nHost: x\r\n\r\n".repeat(REQUESTS_OF_ADDRESS_MAX));
      await eventually("all are in progress", () => held() === REQUESTS_OF_ADDRESS_MAX);
      expect(await statusOf("127.0.0.1")).toBe(429);
      expect(await statusOf("127.0.0.2")).toBe(200);
      process.kill(fn.running?.child.pid ?? 0, "SIGUSR2");
      await eventually("they are answered", async () => (await statusOf("127.0.0.1")) === 200);
      greedy.destroy();
    },
  );

  it("runs new code for the next request, and for those that wait for the old code to start", async () => {
    const program = slow(10_000);
    const { url, fn, lines, starts } = await serve(program);
    const first = call({ url }, "GET /fn/pid");
    await eventually("it starts", () => lines.includes("starting"));
    fn.replaceAfter(() => writeFile(fileOf(program), PROGRAM));
    const answers = await Promise.all([first, call({ url }, "GET /fn/pid")]);
    const pid = String(fn.running?.child.pid);
    expect(answers.map(({ status, body }) => [status, body])).toEqual([
      [200, pid],
      [200, pid],
    ]);
    expect(starts).toHaveLength(1);
  });

  it("continues with the old code when the new code does not compile", async () => {
    const { url, fn } = await serve();
    const first = (await call({ url }, "GET /fn/pid")).body;
    fn.replaceAfter(() => Promise.reject(new Error("a semicolon is missing")));
    expect((await call({ url }, "GET /fn/pid")).body).toBe(first);
  });
});
