import { type ChildProcess, fork, spawn } from "node:child_process";
import { once } from "node:events";
import {
  Agent,
  createServer,
  type IncomingMessage,
  type RequestOptions,
  request,
  type ServerResponse,
} from "node:http";
import { type AddressInfo, connect, type Socket } from "node:net";
import { join } from "node:path";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import * as v from "valibot";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { bundleOf } from "../../scripts/build/bundles.ts";
import { ROOT } from "../../scripts/project/paths.ts";
import {
  call,
  eventually,
  holdAccount,
  newUser,
  settled,
  startTestLotus,
  type TestLotus,
} from "../../scripts/testing/lotus.ts";
import { endpoint, ok } from "./endpoint.ts";
import { REQUEST_BODY_BYTES_MAX, REQUESTS_INCOMPLETE_MAX } from "./limits.ts";
import { createFunctionServer } from "./server.ts";

let lotus: TestLotus;
const endings: (() => Promise<unknown>)[] = [];
beforeAll(async () => {
  lotus = await startTestLotus();
});
afterEach(async () => {
  for (const end of endings.splice(0).reverse()) await end();
});
afterAll(() => lotus.stop());

const EMPTY = endpoint({
  method: "GET",
  caller: "anyone",
  summary: "Answers 200.",
  answers: { 200: v.object({}) },
  handle: async () => ok({}),
});

interface Program {
  readonly child: ChildProcess;
  readonly url: string;
  readonly port: number;
  output(): string;
  readonly ended: Promise<unknown[]>;
}

/** The bundle of a function, as its container runs it, without a gateway. */
async function start(name: string, environment: Record<string, string> = {}): Promise<Program> {
  const child = fork(bundleOf(name), [], {
    // Without a gateway in front, which shows the secret.
    env: { ...lotus.manifests.functions.get(name), RUN_SECRET_FILE: "", ...environment, PORT: "0" },
    execArgv: [],
    stdio: ["ignore", "pipe", "pipe", "ipc"],
  });
  let text = "";
  for (const stream of [child.stdout, child.stderr]) stream?.on("data", (chunk: Buffer) => (text += chunk));
  // A child whose channel this process closed never emits "close".
  const ended = once(child, "exit");
  endings.push(async () => {
    child.kill("SIGKILL");
    await ended;
  });
  const [message] = (await once(child, "message")) as [{ port: number }];
  return { child, url: `http://127.0.0.1:${message.port}`, port: message.port, output: () => text, ended };
}

/** Sends one request over an agent's connections. Returns the answer with its body. */
async function send(url: string, options: RequestOptions): Promise<{ answer: IncomingMessage; body: string }> {
  const outgoing = request(url, options).end();
  const [answer] = (await once(outgoing, "response")) as [IncomingMessage];
  let body = "";
  for await (const chunk of answer) body += chunk;
  return { answer, body };
}

describe("an incomplete request", () => {
  it("is answered 408, and its connection closed, also when the client keeps its half open", async () => {
    const description = endpoint({
      method: "POST",
      caller: "anyone",
      summary: "Answers 200.",
      body: v.object({}),
      answers: { 200: v.object({}) },
      handle: async () => ok({}),
    });
    const { server } = createFunctionServer("slow-body", description);
    const patience = { requestTimeout: 300, headersTimeout: 300, connectionsCheckingInterval: 50 };
    Object.assign(server, patience).listen(0, "127.0.0.1");
    endings.push(async () => server.closeAllConnections());
    endings.push(async () => server.close());
    await once(server, "listening");
    const socket = connect({ port: (server.address() as AddressInfo).port, host: "127.0.0.1", allowHalfOpen: true });
    socket.write(
      "POST /slow/body HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{",
    );
    let text = "";
    socket.setEncoding("utf8").on("data", (chunk) => {
      text += chunk;
    });
    // A read loop would end this side as well.
    await once(socket, "end");
    expect(text).toMatch(/^HTTP\/1\.1 408 Request Timeout\r\n/);
    expect(JSON.parse(text.split("\r\n\r\n")[1] ?? "")).toMatchObject({ status: 408, code: "request-timeout" });
    await eventually(
      "its connection is closed",
      () => new Promise<boolean>((resolve) => server.getConnections((_, count) => resolve(count === 0))),
    );
    socket.destroy();
  });
});

describe("the checks of a request before its body", () => {
  /** Sends a head, and its body after `sendBody`; collects the answer. */
  async function announce(port: number, line: string, headers: string) {
    const socket = connect(port, "127.0.0.1");
    endings.push(async () => socket.destroy());
    let text = "";
    socket.on("error", () => undefined).setEncoding("latin1");
    socket.on("data", (chunk) => (text += chunk));
    await once(socket, "connect");
    socket.write(`${line} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n${headers}\r\n`);
    const status = () => /^HTTP\/1\.1 (\d+) /.exec(text)?.[1];
    return {
      socket,
      status,
      answered: () => eventually(`${line} is answered`, status),
    };
  }
  const FRAMES = ["Content-Length: 12\r\n", "Transfer-Encoding: chunked\r\n"];

  it.each(FRAMES)("answer for path, method and token while the body is missing: %j", async (frame) => {
    const { port, url } = await start("order-create");
    // The process loads what it needs to verify tokens before the time of the first body runs.
    await call({ url }, "POST /order/create", { token: "x.y.z" });
    const expected = [
      ["POST /order/nothing", "", "404"],
      ["POST /order/create/", "", "404"],
      ["PUT /order/create", "", "405"],
      ["GET /order/create", "", "405"],
      ["OPTIONS /order/create", "", "204"],
      ["POST /order/create", "", "401"],
      ["POST /order/create", "Authorization: Bearer x.y.z\r\n", "401"],
    ] as const;
    for (const [line, header, status] of expected) {
      const { answered } = await announce(port, line, header + frame);
      expect([line, await answered()]).toEqual([line, status]);
    }
  });

  it("answer for a body that is announced too long while it is missing", async () => {
    const { port } = await start("profile-register");
    const length = `Content-Length: ${REQUEST_BODY_BYTES_MAX + 1}\r\n`;
    expect(await (await announce(port, "POST /profile/register", length)).answered()).toBe("413");
  });

  it("let a valid token wait for its body, and then count it", async () => {
    const user = await newUser(lotus, 100);
    const { port } = await start("order-create");
    const token = `Authorization: Bearer ${user.token}\r\n`;
    const { socket, status, answered } = await announce(port, "POST /order/create", `${token}${FRAMES[0]}`);
    // The same process answers a later request first.
    expect(await (await announce(port, "POST /order/create", FRAMES[0] ?? "")).answered()).toBe("401");
    expect(status()).toBeUndefined();
    socket.write('{"price": 5}');
    expect(await answered()).toBe("201");
    await settled(lotus);
  });

  it("are the gateway's for a path without a function; it receives the body for all others", async () => {
    const port = Number(new URL(lotus.url).port);
    for (const frame of FRAMES) expect(await (await announce(port, "POST /nothing", frame)).answered()).toBe("404");
    const { socket, status, answered } = await announce(port, "POST /order/create", FRAMES[0] ?? "");
    expect(await (await announce(port, "POST /nothing", FRAMES[0] ?? "")).answered()).toBe("404");
    expect(status()).toBeUndefined();
    socket.write('{"price": 5}');
    expect(await answered()).toBe("401");
  });
});

describe("a function's server", () => {
  it("lets pages of the origins in CORS_ORIGINS read its answers, because a cluster has no gateway of Lotus", async () => {
    const program = await start("order-subscriptions", { CORS_ORIGINS: "https://shop.example" });
    const allowed = async (request: string, origin: string) =>
      (await call(program, request, { headers: { origin } })).headers.get("access-control-allow-origin");
    for (const request of ["GET /order/subscriptions", "GET /nothing", "OPTIONS /order/subscriptions"])
      expect([request, await allowed(request, "https://shop.example")]).toEqual([request, "https://shop.example"]);
    expect(await allowed("GET /order/subscriptions", "https://evil.example")).toBeNull();
  });

  it("limits the time of a whole request", () => {
    const { server } = createFunctionServer("limited-time", EMPTY);
    expect([server.requestTimeout, server.headersTimeout]).toEqual([5_000, 5_000]);
    expect(server.maxHeadersCount).toBe(0);
  });
});

describe("a function's process that receives SIGTERM", () => {
  it("finishes requests in progress, announces that the connection closes, and publishes the events", async () => {
    const published: string[] = [];
    const sink = createServer(async (incoming, outgoing) => {
      let text = "";
      for await (const chunk of incoming) text += chunk;
      published.push(JSON.parse(text).kind);
      outgoing.writeHead(202).end();
    }).listen(0);
    await once(sink, "listening");
    endings.push(async () => sink.close());
    const user = await newUser(lotus, 10);
    await settled(lotus);
    const program = await start("billing-withdraw-money", {
      K_SINK: `http://127.0.0.1:${(sink.address() as AddressInfo).port}`,
    });
    const agent = new Agent({ keepAlive: true });
    endings.push(async () => agent.destroy());
    const headers = { authorization: `Bearer ${user.token}` };
    const used = connect(program.port, "127.0.0.1");
    used.write("GET / HTTP/1.1\r\nhost: x\r\n\r\n");
    await once(used, "data");
    const unused = connect(program.port, "127.0.0.1");
    await once(unused, "connect");
    const account = await holdAccount(lotus, user);
    const answers = [1, 2].map((money) =>
      send(`${program.url}/billing/withdraw-money?money=${money}`, { method: "POST", agent, headers }),
    );
    // One statement waits for the row. The second call of the user waits in the process.
    await eventually("the first one waits for the account", async () => (await account.waiting()) === 1);
    // The function answers a later connection, so it has read the two earlier ones.
    await call(program, "GET /");
    program.child.kill("SIGTERM");
    // A connection without a request in progress closes at once, and no new connection is accepted.
    await once(used, "close");
    await eventually("the function refuses connections", () =>
      call(program, "GET /").then(
        () => false,
        () => true,
      ),
    );
    await account.release();
    for (const { answer } of await Promise.all(answers))
      expect([answer.statusCode, answer.headers.connection]).toEqual([200, "close"]);
    // An unused connection does not delay the end.
    await once(unused, "close");
    expect(await program.ended).toEqual([0, null]);
    expect(published).toEqual(["withdrawal-done", "withdrawal-done"]);
    expect(program.output()).not.toContain('"level":"warning"');
    await user.call("GET /notification");
    await settled(lotus);
  });

  it("ends with the process that started it", async () => {
    const program = await start("order-subscriptions");
    program.child.disconnect();
    expect(await program.ended).toEqual([0, null]);
  });
});

describe("a function's listener", () => {
  it("keeps connections longer than queue-proxy does", async () => {
    const program = await start("order-subscriptions");
    const agent = new Agent({ keepAlive: true });
    const { answer } = await send(`${program.url}/order/subscriptions`, { agent });
    agent.destroy();
    expect(answer.headers).toMatchObject({ connection: "keep-alive", "keep-alive": "timeout=95" });
  });

  it("refuses a body over the limit, with or without Content-Length, and keeps running", async () => {
    const program = await start("profile-register");
    const large = "x".repeat(REQUEST_BODY_BYTES_MAX + 1);
    const announced = await call(program, "POST /profile/register", { body: large });
    expect([announced.status, announced.body.code]).toEqual([413, "body-too-large"]);
    const chunked = await fetch(`${program.url}/profile/register`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: new Blob([large]).stream(),
      duplex: "half",
    } as RequestInit);
    expect([chunked.status, ((await chunked.json()) as { code: string }).code]).toEqual([413, "body-too-large"]);
    const fits = await call(program, "POST /profile/register", { body: "x".repeat(REQUEST_BODY_BYTES_MAX) });
    expect([fits.status, fits.body.code]).toEqual([400, "malformed-body"]);
  });

  it("answers others while it waits for as many incomplete bodies as its limit, and closes the oldest", async () => {
    const program = await start("profile-register");
    const head =
      "POST /profile/register HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n";
    const open = async () => {
      const socket: Socket = connect(program.port, "127.0.0.1");
      socket.on("error", () => undefined);
      await once(socket, "connect");
      socket.write(`${head}{`);
      return socket;
    };
    const oldest = await open();
    const answered = once(oldest, "data");
    const sockets = await Promise.all(Array.from({ length: REQUESTS_INCOMPLETE_MAX }, open));
    expect(String((await answered)[0])).toMatch(/^HTTP\/1\.1 503 Service Unavailable\r\n/);
    const answer = await call(program, "POST /profile/register", { body: "{}" });
    expect([answer.status, answer.body.code]).toEqual([400, "invalid-request"]);
    for (const socket of sockets) socket.destroy();
  });

  it("reads a token behind a thousand other headers", async () => {
    const user = await newUser(lotus);
    const program = await start("profile-me");
    const headers = `${"a:\r\n".repeat(1_000)}authorization: Bearer ${user.token}\r\nconnection: close\r\n`;
    const socket = connect(program.port, "127.0.0.1");
    socket.write(`GET /profile/me HTTP/1.1\r\nhost: x\r\n${headers}\r\n`);
    let text = "";
    for await (const chunk of socket) text += chunk;
    expect(text).toMatch(/^HTTP\/1\.1 200 OK\r\n/);
  });

  it.each(["JWKS_FILE", "DATABASE_PASSWORD_FILE"])(
    "ends with an error message when the file of %s is missing",
    async (name) => {
      const missing = join(ROOT, "missing-file");
      const child = spawn(process.execPath, [bundleOf("profile-me")], {
        env: { ...lotus.manifests.functions.get("profile-me"), [name]: missing, PORT: "0" },
      });
      let written = "";
      child.stderr.on("data", (chunk) => (written += chunk));
      expect(await once(child, "close")).toEqual([1, null]);
      expect(written).toMatch(new RegExp(`^The file that ${name} names, .*missing-file, cannot be read: `));
    },
  );

  it("names the port that is taken", async () => {
    const other = createServer().listen(0);
    await once(other, "listening");
    endings.push(async () => other.close());
    const { port } = other.address() as AddressInfo;
    const child = spawn(process.execPath, [bundleOf("order-subscriptions")], {
      env: { ...lotus.manifests.functions.get("order-subscriptions"), PORT: String(port) },
    });
    let said = "";
    child.stderr.on("data", (chunk) => (said += chunk));
    expect(await once(child, "close")).toEqual([1, null]);
    expect(said).toBe(`order-subscriptions cannot listen: Port ${port} is taken; set PORT to another.\n`);
  });
});

describe("a bundle", () => {
  it("is served by the functions framework's own command line as well", async () => {
    const free = createServer().listen(0);
    await once(free, "listening");
    const { port } = free.address() as AddressInfo;
    await new Promise((resolve) => free.close(resolve));
    const child = spawn(
      process.execPath,
      [
        "node_modules/.bin/functions-framework",
        `--source=${bundleOf("order-subscriptions")}`,
        "--target=order-subscriptions",
      ],
      { cwd: ROOT, env: { ...lotus.manifests.functions.get("order-subscriptions"), PORT: String(port) } },
    );
    const ended = once(child, "close");
    endings.push(async () => {
      child.kill("SIGKILL");
      await ended;
    });
    const url = `http://127.0.0.1:${port}`;
    const answer = await eventually("it listens", () =>
      call({ url }, "GET /order/subscriptions").catch(() => undefined),
    );
    expect([answer.status, answer.body]).toEqual([200, (await call(lotus, "GET /order/subscriptions")).body]);
  });
});

describe("the objects of a request", () => {
  it("share their hidden classes with those of other requests", async () => {
    const { server } = createFunctionServer("same-classes", EMPTY);
    const served: [IncomingMessage, ServerResponse][] = [];
    server.on("request", (incoming, outgoing) => served.push([incoming, outgoing]));
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    endings.push(async () => server.close());
    const agent = new Agent({ keepAlive: true });
    for (let count = 0; count < 8; count++) {
      const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/same/classes`;
      expect((await send(url, { agent })).answer.statusCode).toBe(200);
    }
    agent.destroy();
    setFlagsFromString("--allow-natives-syntax");
    const haveSameMap = runInNewContext("(one, other) => %HaveSameMap(one, other)");
    const sharesBoth = (at: number) =>
      served[at]?.every((object, index) => haveSameMap(object, served[at - 1]?.[index])) ?? false;
    // V8 may still change the classes during some requests.
    const sharing = [1, 2, 3, 4, 5, 6, 7].filter(sharesBoth);
    setFlagsFromString("--no-allow-natives-syntax");
    expect(sharing).not.toEqual([]);
  });
});
