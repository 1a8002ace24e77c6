/** The HTTP server that every process of Lotus listens with: its limits, and its answer to broken requests. */
import {
  createServer,
  type IncomingMessage,
  type RequestListener,
  type Server,
  type ServerOptions,
  type ServerResponse,
  STATUS_CODES,
} from "node:http";
import type { Socket } from "node:net";
import type { Duplex } from "node:stream";
import {
  ANSWER_SEND_MILLISECONDS_MAX,
  CONNECTIONS_MAX,
  KEEP_ALIVE_MILLISECONDS,
  REQUEST_RECEIVE_CHECK_MILLISECONDS,
  REQUEST_RECEIVE_MILLISECONDS_MAX,
} from "./limits.ts";
import { encodeProblem, invalid, Problem, type ProblemCode, writeProblem } from "./problem.ts";

/**
 * Creates a server that is not listening yet.
 * @param headerBytesMax the request line and all headers, in bytes; a longer request is answered 431
 * @param connectionsMax open connections; Node closes one more at once
 * @param classes the classes of requests and responses; the default is Node's
 */
export function createHttpServer(
  headerBytesMax: number,
  listener: RequestListener,
  connectionsMax = CONNECTIONS_MAX,
  classes: Pick<ServerOptions, "IncomingMessage" | "ServerResponse"> = {},
): Server {
  const server = createServer(
    {
      ...classes,
      maxHeaderSize: headerBytesMax,
      // By default Node hides the second header of a name such as `authorization`.
      joinDuplicateHeaders: true,
      keepAliveTimeout: KEEP_ALIVE_MILLISECONDS,
      headersTimeout: REQUEST_RECEIVE_MILLISECONDS_MAX,
      requestTimeout: REQUEST_RECEIVE_MILLISECONDS_MAX,
      connectionsCheckingInterval: REQUEST_RECEIVE_CHECK_MILLISECONDS,
    },
    (request, response) => {
      limitSending(response);
      const malformed = malformedHead(request);
      if (malformed === undefined) return void listener(request, response);
      request.resume();
      writeProblem(response, malformed);
    },
  );
  // By default Node shows 1 000 headers and frames the body by all of them.
  server.maxHeadersCount = 0;
  // The database's limits end a request in progress long before Knative does.
  server.timeout = 0;
  server.prependListener("request", (request: IncomingMessage) => lastRequests.set(request.socket, request));
  server.on("clientError", refuseBroken);
  server.maxConnections = connectionsMax;
  let connections = 0;
  server.on("connection", (socket) => {
    socket.once("close", () => connections--);
    // Closes idle connections at the limit, so that they cannot block others for KEEP_ALIVE_MILLISECONDS.
    if (++connections >= connectionsMax) server.closeIdleConnections();
  });
  return server;
}

/** Closes the connection of a client that does not read its answer: Node would keep both without a time limit. */
function limitSending(response: ServerResponse): void {
  // Node has handed the whole answer to the socket, after the answers to earlier requests of the connection.
  response.once("prefinish", () => {
    const late = setTimeout(() => response.destroy(), ANSWER_SEND_MILLISECONDS_MAX);
    response.once("close", () => clearTimeout(late));
  });
}

/** Headers that may occur once. Node joins several by a comma. */
const SINGLE = ["authorization", "host"] as const;

/** Returns the refusal of a head that Node accepts and HTTP forbids (RFC 9110 §5.3, RFC 9112 §2.3 and §3.2). */
function malformedHead({ headers, rawHeaders, httpVersionMajor }: IncomingMessage): Problem | undefined {
  if (httpVersionMajor !== 1) return new Problem("malformed-request", "This is not an HTTP/1.1 request.");
  for (const name of SINGLE) {
    const repeated =
      headers[name]?.includes(",") && rawHeaders.filter((text) => text.toLowerCase() === name).length > 1;
    if (repeated) return invalid([{ field: name, detail: "must be given once" }]);
  }
  return undefined;
}

/** Node error codes for malformed or incomplete requests. */
const BROKEN: Readonly<Record<string, readonly [ProblemCode, string]>> = {
  HPE_HEADER_OVERFLOW: ["headers-too-large", "The request line and the headers are too long."],
  ERR_HTTP_REQUEST_TIMEOUT: ["request-timeout", "The request did not arrive completely in time."],
};

/** The response that Node currently writes to a socket; Node's own handler of `clientError` reads it too. */
type HttpSocket = Socket & { readonly _httpMessage?: (ServerResponse & { readonly req: IncomingMessage }) | null };
type ClientError = NodeJS.ErrnoException & { readonly rawPacket?: Buffer };

/** The request that each connection carried last. */
const lastRequests = new WeakMap<Socket, IncomingMessage>();
/** Connections that close after the answers to the requests before the broken one. */
const closing = new WeakSet<Socket>();

/** Closes a connection once the answers to its complete requests are written. */
function closeAfterAnswers(socket: HttpSocket): void {
  const response = socket._httpMessage;
  if (response == null) {
    socket.destroySoon();
    return;
  }
  // Node's own listener comes first and moves the next response to the socket.
  response.once("finish", () => closeAfterAnswers(socket));
}

/** Handles `clientError`: refuses what Node cannot read as a request, and closes the connection. */
export function refuseBroken(error: ClientError, stream: Duplex): void {
  const socket = stream as HttpSocket;
  if (!socket.writable || error.code === "ECONNRESET") return void socket.destroy(error);
  if (closing.has(socket)) return;
  closing.add(socket);
  const response = socket._httpMessage;
  const brokenIsAnswered = response == null ? lastRequests.get(socket)?.complete === false : response.headersSent;
  // A complete request before the broken one keeps its own answer.
  if (response?.req.complete || brokenIsAnswered) {
    closeAfterAnswers(socket);
    return;
  }
  const [code, detail] = BROKEN[error.code ?? ""] ?? ["malformed-request", "This is not an HTTP/1.1 request."];
  const problem = new Problem(code, detail);
  const [headers, text] = encodeProblem(problem);
  const lines = Object.entries({ ...headers, connection: "close" }).map(([name, value]) => `${name}: ${value}`);
  const method = response?.req.method ?? error.rawPacket?.subarray(0, 5).toString("latin1").trim();
  const body = method === "HEAD" ? "" : text;
  socket.write(`HTTP/1.1 ${problem.status} ${STATUS_CODES[problem.status]}\r\n${lines.join("\r\n")}\r\n\r\n${body}`);
  // The client may never end its half of the connection.
  socket.destroySoon();
}
