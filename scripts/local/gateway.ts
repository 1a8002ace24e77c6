/** The gateway: forwards a request to its function's process, which it starts when none runs, as Kourier and Knative would. */
import type { IncomingMessage, Server, ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { allowOrigin } from "#kernel/cors";
import {
  CONNECTIONS_WAITING_MAX,
  DRAIN_REQUESTS_MILLISECONDS_MAX,
  REQUEST_BODY_BYTES_MAX,
  REQUEST_HEADER_BYTES_MAX,
  REQUESTS_INCOMPLETE_MAX,
} from "#kernel/limits";
import { createHttpServer } from "#kernel/listener";
import { Problem, quoted, writeProblem } from "#kernel/problem";
import { addressOf, originForm } from "#kernel/request";
import { Receiver } from "#kernel/request-body";
import { RequestsInProgress } from "#kernel/requests-in-progress";
import { forward, receive } from "./forward.ts";
import type { FunctionProcess } from "./function-process.ts";
import type { Manifests } from "./manifests.ts";
import type { Observer, Page } from "./observer.ts";

/** Limits the complete requests in progress. One more is answered 503. Knative's activator has such a limit as well. */
const REQUESTS_IN_FLIGHT_MAX = 2_000;
/** Limits the requests of one address among them. One connection can carry as many: Node reads pipelined requests at once. */
export const REQUESTS_OF_ADDRESS_MAX = 1_500;

/** A listening server. `stop` finishes requests in flight first, for at most DRAIN_REQUESTS_MILLISECONDS_MAX. */
export interface Listening {
  readonly port: number;
  stop(): Promise<void>;
}

/** Listens, or rejects with the system's error. */
export async function listen(server: Server, port: number, host?: string): Promise<Listening> {
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen({ port, host, backlog: CONNECTIONS_WAITING_MAX }, resolve);
  });
  return {
    port: (server.address() as AddressInfo).port,
    async stop() {
      const closed = new Promise((resolve) => server.close(resolve));
      server.closeIdleConnections();
      const late = setTimeout(() => server.closeAllConnections(), DRAIN_REQUESTS_MILLISECONDS_MAX);
      await closed;
      clearTimeout(late);
    },
  };
}

/**
 * Creates the gateway's server.
 * @param routes path prefixes and their functions, the longest prefix first
 * @param corsOrigins the origins whose pages may read the answers
 * @param page is served beside the functions
 * @param observer is notified of each request that has ended
 */
export function createGateway(
  routes: Manifests["routes"],
  functions: ReadonlyMap<string, FunctionProcess>,
  corsOrigins?: readonly string[],
  page?: Page,
  observer?: Observer,
): Server {
  const receiver = new Receiver(REQUESTS_INCOMPLETE_MAX, REQUEST_BODY_BYTES_MAX);
  const unfinished = new Set<ServerResponse>();
  const inProgress = new RequestsInProgress(REQUESTS_IN_FLIGHT_MAX);
  let closing = false;
  const serve = async (incoming: IncomingMessage, outgoing: ServerResponse): Promise<void> => {
    const began = performance.now();
    // For the refusals of the gateway itself.
    if (corsOrigins !== undefined) allowOrigin(incoming, outgoing, corsOrigins);
    const target = originForm(incoming.url);
    const path = target.split("?")[0] ?? "/";
    if (page?.has(path)) return page.serve(incoming, outgoing);
    const name = routes.find((route) => path.startsWith(route.path))?.name;
    const fn = name === undefined ? undefined : functions.get(name);
    if (path === "/healthz") return void outgoing.writeHead(200).end();
    if (fn === undefined) {
      incoming.resume();
      return writeProblem(outgoing, new Problem("not-found", `The address ${quoted(path)} does not exist.`));
    }
    const received = await receive(receiver, incoming, outgoing);
    if (received === undefined) return;
    const end = inProgress.begin(addressOf(incoming, 0), REQUESTS_OF_ADDRESS_MAX);
    if (end instanceof Problem) return writeProblem(outgoing, end);
    let trace: string | undefined;
    const readTrace = ({ headers }: IncomingMessage) => {
      const { traceresponse } = headers;
      if (typeof traceresponse === "string") trace = traceresponse;
    };
    await forward(fn, incoming, outgoing, target, received.body, readTrace).finally(end);
    observer?.answered(name ?? "", outgoing.statusCode, performance.now() - began, trace);
  };
  const server = createHttpServer(REQUEST_HEADER_BYTES_MAX, (incoming, outgoing) => {
    if (closing) outgoing.setHeader("connection", "close");
    unfinished.add(outgoing);
    outgoing.once("close", () => {
      unfinished.delete(outgoing);
      if (closing) closeUnused();
    });
    void serve(incoming, outgoing);
  });
  /** Node counts a connection without a request, such as browsers open in advance, as busy. */
  const closeUnused = () => (unfinished.size === 0 ? server.closeAllConnections() : server.closeIdleConnections());
  const close = server.close.bind(server);
  server.close = (callback) => {
    closing = true;
    const closed = close(callback);
    closeUnused();
    return closed;
  };
  return server;
}
