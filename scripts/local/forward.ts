/** Forwards a complete request to a function's process, and its answer back. */
import { request as httpRequest, type IncomingMessage, type OutgoingHttpHeaders, type ServerResponse } from "node:http";
import { RUN_HEADER } from "#kernel/local-access";
import { Problem, writeProblem } from "#kernel/problem";
import { addressOf } from "#kernel/request";
import { hasBody, type Receiver } from "#kernel/request-body";
import type { FunctionProcess, Running } from "./function-process.ts";

/** Creates the refusal of a request that never reached a function. */
const unavailable = (detail: string) => new Problem("unavailable", detail, { headers: { "retry-after": "1" } });

/** Headers of one connection, not of the request (RFC 9110 §7.6.1); `expect` is over once the body is complete. */
const HOP_BY_HOP = [
  "connection",
  "keep-alive",
  "proxy-connection",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade",
  "expect",
];
/** Headers that the gateway writes itself: the frame of the body, the client's address (RFC 7239), the secret of the run. */
const REPLACED = ["content-length", "x-forwarded-for", "forwarded", RUN_HEADER];

/** Returns headers without those of the connection and those that `Connection` names. */
function endToEnd({ headers }: IncomingMessage): OutgoingHttpHeaders {
  const named = (headers.connection ?? "").toLowerCase().split(/[\s,]+/);
  return Object.fromEntries(
    Object.entries(headers).filter(([name]) => !HOP_BY_HOP.includes(name) && !named.includes(name)),
  );
}

/** Returns the headers of the request to the function. The length is counted, never copied. */
function requestHeaders(
  incoming: IncomingMessage,
  body: Buffer | undefined,
  secret: string | undefined,
): OutgoingHttpHeaders {
  const headers = endToEnd(incoming);
  for (const name of REPLACED) delete headers[name];
  headers["x-forwarded-for"] = addressOf(incoming, 0);
  if (body !== undefined) headers["content-length"] = body.length;
  if (secret !== undefined) headers[RUN_HEADER] = secret;
  return headers;
}

/** Returns the header of an answer of older code, which runs because the code on disk does not compile. */
const marksOf = (fn: FunctionProcess): OutgoingHttpHeaders => (fn.outdated ? { "lotus-code": "outdated" } : {});

/** Sends a request to a process. False: the process had ended, and the request was not sent. */
function send(
  { port, agent, secret }: Running,
  incoming: IncomingMessage,
  outgoing: ServerResponse,
  path: string,
  body: Buffer | undefined,
  marks: OutgoingHttpHeaders,
  onAnswer: ((answer: IncomingMessage) => void) | undefined,
): Promise<boolean> {
  return new Promise((resolve) => {
    // The client left while the process started.
    if (outgoing.destroyed) return resolve(true);
    const upstream = httpRequest(
      {
        host: "127.0.0.1",
        port,
        agent,
        path,
        method: incoming.method ?? "GET",
        headers: requestHeaders(incoming, body, secret),
      },
      (answer) => {
        onAnswer?.(answer);
        outgoing.writeHead(answer.statusCode ?? 502, { ...endToEnd(answer), ...marks });
        answer.pipe(outgoing);
        answer.once("error", () => outgoing.destroy());
      },
    );
    upstream.maxHeadersCount = 0;
    upstream.once("error", (error: NodeJS.ErrnoException) => {
      if (error.code === "ECONNREFUSED") return resolve(false);
      const detail =
        "The function ended during this request. Check whether the request had its effect before you repeat it. With an Idempotency-Key a repeat is safe.";
      if (outgoing.headersSent) outgoing.destroy();
      else writeProblem(outgoing, new Problem("outcome-unknown", detail));
    });
    outgoing.once("close", () => {
      upstream.destroy();
      resolve(true);
    });
    upstream.end(body);
  });
}

/**
 * Receives the body of a request, or answers with a refusal.
 * @returns undefined when the request was refused, or its client has closed the connection
 */
export async function receive(
  receiver: Receiver,
  incoming: IncomingMessage,
  outgoing: ServerResponse,
): Promise<{ body: Buffer | undefined } | undefined> {
  if (!hasBody(incoming)) return { body: undefined };
  try {
    const body = await receiver.receive(incoming, addressOf(incoming, 0));
    if (!(body instanceof Problem)) return { body };
    writeProblem(outgoing, body);
  } catch {
    // The client has closed its connection.
    outgoing.destroy();
  }
  return undefined;
}

/**
 * Forwards a request to a function, which starts when it has no process.
 * @param body the complete body; undefined when the request has none
 * @param onAnswer is called with the function's answer before it is forwarded
 * @returns when the answer has ended or failed
 */
export async function forward(
  fn: FunctionProcess,
  incoming: IncomingMessage,
  outgoing: ServerResponse,
  path: string,
  body: Buffer | undefined,
  onAnswer?: (answer: IncomingMessage) => void,
): Promise<void> {
  try {
    for (;;) {
      const running = await fn.acquire();
      try {
        if (await send(running, incoming, outgoing, path, body, marksOf(fn), onAnswer)) return;
        fn.discard(running);
      } finally {
        fn.release();
      }
    }
  } catch (error) {
    if (!outgoing.headersSent) writeProblem(outgoing, unavailable((error as Error).message));
  }
}
