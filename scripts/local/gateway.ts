/** The way in: leads a request to its function's process, which it starts when there is none, as Kourier and Knative would. */
import {
  createServer,
  request as httpRequest,
  type IncomingMessage,
  type Server,
  type ServerResponse,
} from "node:http";
import type { AddressInfo } from "node:net";
import { refuseBroken, writeProblem } from "#kernel/endpoint";
import { Problem } from "#kernel/problem";
import { originForm } from "#kernel/request";
import type { FunctionProcess, Running } from "./function-process.ts";
import type { Manifests } from "./manifests.ts";

/** Requests on their way through; one more is answered 503. Knative's activator has such a limit as well. */
const REQUESTS_IN_FLIGHT_MAX = 2_000;

const unavailable = (detail: string) => new Problem("unavailable", detail, { headers: { "retry-after": "1" } });

/** Headers that speak of one connection, not of the request (RFC 9110 §7.6.1). */
const HOP_BY_HOP = ["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];

function forwardedHeaders(incoming: IncomingMessage): Record<string, string | string[]> {
  const headers: Record<string, string | string[]> = {};
  for (const [name, value] of Object.entries(incoming.headers)) {
    if (value !== undefined && !HOP_BY_HOP.includes(name)) headers[name] = value;
  }
  // A body of unknown length goes on in chunks.
  if (incoming.headers["transfer-encoding"] !== undefined) headers["transfer-encoding"] = "chunked";
  const before = incoming.headers["x-forwarded-for"];
  headers["x-forwarded-for"] = [before, incoming.socket.remoteAddress].filter(Boolean).join(", ");
  return headers;
}

/** Sends a request to a process. False: the process was gone, and the request has not left. */
function send(
  { port, agent }: Running,
  incoming: IncomingMessage,
  outgoing: ServerResponse,
  path: string,
): Promise<boolean> {
  return new Promise((resolve) => {
    // Gone while the process started: its end has been told already.
    if (outgoing.destroyed) return resolve(true);
    const upstream = httpRequest(
      { host: "127.0.0.1", port, agent, path, method: incoming.method ?? "GET", headers: forwardedHeaders(incoming) },
      (answer) => {
        const { connection: _, "keep-alive": __, ...headers } = answer.headers;
        outgoing.writeHead(answer.statusCode ?? 502, headers);
        answer.pipe(outgoing);
        answer.once("error", () => outgoing.destroy());
      },
    );
    // The body is let go only once somebody is there to take it, so that it can be sent to the next process instead.
    upstream.once("socket", (socket) => {
      if (socket.connecting) socket.once("connect", () => incoming.pipe(upstream));
      else incoming.pipe(upstream);
    });
    upstream.once("error", (error: NodeJS.ErrnoException) => {
      if (error.code === "ECONNREFUSED") return resolve(false);
      const detail =
        "The function ended in the middle of this request. Look whether it had its effect before you repeat it; with an Idempotency-Key you could simply repeat it.";
      if (outgoing.headersSent) outgoing.destroy();
      else writeProblem(outgoing, new Problem("outcome-unknown", detail));
    });
    outgoing.once("close", () => {
      upstream.destroy();
      // An answer may come before the body has been sent: the rest of it must not stand before the next request.
      incoming.unpipe().resume();
      resolve(true);
    });
  });
}

/** Sends a request on to a function and its answer back. Resolves when the answer has ended, however it ended. */
export async function forward(
  fn: FunctionProcess,
  incoming: IncomingMessage,
  outgoing: ServerResponse,
  path: string,
): Promise<void> {
  try {
    for (;;) {
      const running = await fn.acquire();
      try {
        if (await send(running, incoming, outgoing, path)) return;
        fn.discard(running);
      } finally {
        fn.release();
      }
    }
  } catch (error) {
    if (!outgoing.headersSent) writeProblem(outgoing, unavailable((error as Error).message));
  }
}

/** A server that listens, and how to end it: what is in flight finishes first. */
export interface Listening {
  readonly port: number;
  stop(): Promise<void>;
}

/** Listens, or rejects with the system's error. */
export async function listen(server: Server, port: number, host?: string): Promise<Listening> {
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, host, resolve);
  });
  return {
    port: (server.address() as AddressInfo).port,
    async stop() {
      const closed = new Promise((resolve) => server.close(resolve));
      server.closeIdleConnections();
      await closed;
    },
  };
}

/**
 * The public entrance.
 * @param routes a path's beginning leads to a function, the longest beginning first
 */
export function createGateway(routes: Manifests["routes"], functions: ReadonlyMap<string, FunctionProcess>): Server {
  let inFlight = 0;
  let closing = false;
  const server = createServer((incoming, outgoing) => {
    if (closing) outgoing.setHeader("connection", "close");
    const target = originForm(incoming.url);
    const path = target.split("?")[0] ?? "/";
    const name = routes.find((route) => path.startsWith(route.path))?.name;
    const fn = name === undefined ? undefined : functions.get(name);
    if (path === "/healthz") return void outgoing.writeHead(200).end();
    if (fn === undefined) {
      incoming.resume();
      return writeProblem(outgoing, new Problem("not-found", `There is nothing at ${path}.`));
    }
    if (inFlight >= REQUESTS_IN_FLIGHT_MAX) {
      return writeProblem(outgoing, unavailable(`There are ${REQUESTS_IN_FLIGHT_MAX} requests in progress already.`));
    }
    inFlight++;
    void forward(fn, incoming, outgoing, target).finally(() => {
      inFlight--;
      if (closing) closeUnused();
    });
  });
  server.on("clientError", refuseBroken);
  /** Node takes a connection on which nothing has been asked yet, such as browsers open in advance, for a busy one. */
  const closeUnused = () => (inFlight === 0 ? server.closeAllConnections() : server.closeIdleConnections());
  const close = server.close.bind(server);
  server.close = (callback) => {
    closing = true;
    const closed = close(callback);
    closeUnused();
    return closed;
  };
  return server;
}
