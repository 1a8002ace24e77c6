/** Describes an HTTP endpoint: its inputs, its answers and its handler. */
import type { IncomingMessage, ServerResponse } from "node:http";
import type * as v from "valibot";
import { failure, log } from "./log.ts";
import { type Envelope, publishLater } from "./outbox.ts";
import { type CodeOf, Problem, type ProblemCode, quoted, writeProblem } from "./problem.ts";
import {
  addressOf,
  check,
  type Idempotency,
  type Page,
  readBody,
  readIdempotency,
  readPage,
  readQuery,
  type Schema,
  splitTarget,
} from "./request.ts";
import { REQUEST_MILLISECONDS_MAX } from "./settings.ts";
import {
  beginSpan,
  isRecording,
  measure,
  readTraceparent,
  recordColdStart,
  type Span,
  writeTraceparent,
} from "./telemetry.ts";
import { authenticate, type User } from "./token.ts";

/** By status: the schema of a success, or the codes of the refusals that are this endpoint's own. */
export interface Answers {
  readonly 200?: Schema;
  readonly 201?: Schema;
  readonly 400?: readonly CodeOf<400>[];
  readonly 401?: readonly CodeOf<401>[];
  readonly 404?: readonly CodeOf<404>[];
  readonly 409?: readonly CodeOf<409>[];
  readonly 429?: readonly CodeOf<429>[];
}

/** A success on its way to the client. */
export interface Success<Status extends number, Body> {
  readonly status: Status;
  readonly body: Body;
  readonly headers?: Readonly<Record<string, string>>;
}

type SuccessOf<A extends Answers> =
  | (A[200] extends Schema ? Success<200, v.InferInput<A[200]>> : never)
  | (A[201] extends Schema ? Success<201, v.InferInput<A[201]>> : never);

type OutputOf<S> = S extends Schema ? v.InferOutput<S> : undefined;

/** Names the callers that an endpoint accepts: only a user with a valid token, or anyone. */
type Caller = "user" | "anyone";

/** Contains the input of a handler. An input that the endpoint does not declare is `undefined`. */
export interface EndpointRequest<
  C extends Caller = "user",
  Q extends Schema | undefined = undefined,
  B extends Schema | undefined = undefined,
  P extends Schema | undefined = undefined,
  I extends boolean = true,
> {
  readonly user: C extends "user" ? User : undefined;
  readonly query: OutputOf<Q>;
  readonly body: OutputOf<B>;
  readonly page: P extends Schema ? Page<v.InferOutput<P>> : undefined;
  readonly idempotency: I extends true ? Idempotency : undefined;
  /** The client's address, by which limits count: see `addressOf`. */
  readonly address: string;
  /** When the request must be answered, on the clock of `performance.now()`. */
  readonly deadline: number;
  /** The function's name, which an event records as its origin. */
  readonly source: string;
  /** The span of the request. Statements that the handler sends become spans below it. */
  readonly span: Span;
  /** The context of the span that creates the events of this request; their outbox rows contain it. */
  readonly traceparent: string;
  /** Publishes events that the database has recorded, once the answer has been sent. */
  publish(envelopes: readonly Envelope[]): void;
}

/** Names a secret of a function: its service's database role, the public keys, or the private key. */
export type Use = "database" | "public-keys" | "signing-key";

/** How a function scales in a cluster. An environment may override each field. */
export interface Scale {
  /** Requests in flight at which another pod starts. The default is 50. */
  readonly target?: number;
  /** Requests in flight that one pod accepts; further ones wait in front of it. The default is 0: no limit. */
  readonly limit?: number;
  /** Pods that stay without requests. The default is 0. */
  readonly minPods?: number;
  readonly maxPods?: number;
  /** Database connections of one pod at most. */
  readonly connections?: number;
  /** Memory limit of one pod, in MiB. */
  readonly memoryMebibytes?: number;
  /** CPU limit of one pod, such as "500m" or "1". */
  readonly cpu?: string;
}

/** Describes a function that answers HTTP requests. Its file exports the description by default. */
export interface Endpoint<
  A extends Answers = Answers,
  C extends Caller = Caller,
  Q extends Schema | undefined = Schema | undefined,
  B extends Schema | undefined = Schema | undefined,
  P extends Schema | undefined = Schema | undefined,
  I extends boolean = boolean,
> {
  readonly method: "GET" | "POST";
  readonly caller: C;
  /** States in one sentence with a verb what the endpoint does. OpenAPI shows it. */
  readonly summary: string;
  /** Adds sentences for clients to OpenAPI. */
  readonly description?: string;
  readonly query?: Q;
  readonly body?: B;
  /** The schema of a row's position, for an endpoint that answers page by page. */
  readonly page?: P;
  /** Takes an Idempotency-Key. */
  readonly idempotent?: I;
  /** Lists its secrets. The default is the database and, for callers with a token, the public keys. */
  readonly uses?: readonly Use[];
  readonly scale?: Scale;
  readonly answers: A;
  handle(request: EndpointRequest<C, Q, B, P, I>): Promise<SuccessOf<A> | Problem>;
}

/** Describes an endpoint. No side effects: the description is served by server.ts and read by the generators. */
export function endpoint<
  const A extends Answers,
  const C extends Caller,
  Q extends Schema | undefined = undefined,
  B extends Schema | undefined = undefined,
  P extends Schema | undefined = undefined,
  const I extends boolean = false,
>(description: Endpoint<A, C, Q, B, P, I>): Endpoint<A, C, Q, B, P, I> & { readonly kind: "endpoint" } {
  return { kind: "endpoint", ...description };
}

/** 200 with a body. */
export function ok<Body>(body: Body, headers: Readonly<Record<string, string>> = {}): Success<200, Body> {
  return { status: 200, body, headers };
}

/** 201 with a body. */
export function created<Body>(body: Body): Success<201, Body> {
  return { status: 201, body };
}

function writeSuccess(response: ServerResponse, { status, body, headers }: Success<number, unknown>): void {
  if (body === undefined) {
    response.writeHead(status, { ...headers });
    response.end();
    return;
  }
  const text = JSON.stringify(body);
  response.writeHead(status, {
    "content-type": "application/json",
    "content-length": Buffer.byteLength(text),
    "cache-control": "no-store",
    ...headers,
  });
  response.end(text);
}

/** The outcome of the checks that need no body: the caller, or the answer that ends the request. */
export interface Admission {
  readonly user?: User;
  readonly answer?: Success<number, unknown> | Problem;
  /** When the head arrived, as `performance.now()` gives it. */
  readonly arrivedAt: number;
  /** Is called once when the work on the request has ended, even if its client has left. */
  end?: () => void;
}
const admissions = new WeakMap<IncomingMessage, Admission>();

/** Returns the methods of an endpoint, as `Allow` names them. */
function methodsOf({ method }: Endpoint): string[] {
  return method === "GET" ? ["GET", "HEAD", "OPTIONS"] : ["POST", "OPTIONS"];
}

async function judge(
  description: Endpoint,
  source: string,
  request: IncomingMessage,
): Promise<Pick<Admission, "user" | "answer">> {
  const path = pathOf(source);
  const [requested] = splitTarget(request);
  if (requested !== path) {
    const detail = `The address ${quoted(requested)} does not exist; this function serves ${path}.`;
    return { answer: new Problem("not-found", detail) };
  }
  const methods = methodsOf(description);
  const headers = { allow: methods.join(", ") };
  if (request.method === "OPTIONS") return { answer: { status: 204, body: undefined, headers } };
  if (!methods.includes(request.method ?? ""))
    return { answer: new Problem("method-not-allowed", `${path} accepts ${headers.allow}.`, { headers }) };
  if (description.caller !== "user") return {};
  try {
    return { user: await authenticate(request.headers.authorization) };
  } catch (error) {
    if (error instanceof Problem) return { answer: error };
    throw error;
  }
}

/**
 * Checks path, method and token of a request, before its body is received.
 * @param source the function's name, such as order-pay
 */
export async function admit(description: Endpoint, source: string, request: IncomingMessage): Promise<Admission> {
  const known = admissions.get(request);
  if (known !== undefined) return known;
  const arrivedAt = performance.now();
  const admission = { arrivedAt, ...(await judge(description, source, request)) };
  admissions.set(request, admission);
  return admission;
}

async function answer(
  description: Endpoint,
  source: string,
  request: IncomingMessage,
  span: Span,
  outcome: { user?: User; emitted: Envelope[] },
): Promise<Success<number, unknown> | Problem> {
  const admission = await admit(description, source, request);
  if (admission.answer !== undefined) return admission.answer;
  if (admission.user !== undefined) outcome.user = admission.user;
  const path = pathOf(source);
  const [, search] = splitTarget(request);
  const given = readQuery(search);
  const query = description.query === undefined ? undefined : check(description.query, given);
  const body = description.body === undefined ? undefined : check(description.body, readBody(request));
  const creating = span.child("create", "producer");
  return description.handle({
    user: admission.user,
    query,
    body,
    page: description.page && readPage(description.page, path, given),
    idempotency: description.idempotent ? readIdempotency(request, source, [query, body]) : undefined,
    address: addressOf(request),
    deadline: admission.arrivedAt + REQUEST_MILLISECONDS_MAX,
    source,
    span,
    traceparent: writeTraceparent(creating),
    publish(envelopes) {
      outcome.emitted.push(...envelopes);
      endCreating(creating, envelopes);
    },
  });
}

/** order-pay -> /order/pay. Where a name and a path come from: the place of the file. */
export function pathOf(name: string): string {
  return `/${name.replace("-", "/")}`;
}

/** Ends the span that creates events, when the database has recorded some. */
function endCreating(creating: Span, envelopes: readonly Envelope[]): void {
  const [first] = envelopes;
  if (first === undefined || !creating.sampled) return;
  creating
    .rename(`create ${first.topic}`)
    .set({
      "messaging.system": "kafka",
      "messaging.operation.name": "create",
      "messaging.operation.type": "create",
      "messaging.destination.name": first.topic,
      ...(envelopes.length === 1
        ? { "messaging.message.id": first.event.id }
        : { "messaging.batch.message_count": envelopes.length }),
    })
    .end();
}

const METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
const spans = new WeakMap<IncomingMessage, Span>();

/** Returns the method and the route of a request as spans and metrics name them. A path outside the routes can contain anything. */
function routeOf(request: IncomingMessage, source: string): { method: string; route: string | undefined } {
  const { method = "" } = request;
  const route = pathOf(source);
  return {
    method: METHODS.includes(method) ? method : "_OTHER",
    route: splitTarget(request)[0] === route ? route : undefined,
  };
}

/**
 * Returns the span of a request. A client can set any `traceparent`, so the span begins a trace and links to the client's.
 * @param source the function's name, such as order-pay
 */
export function spanOf(request: IncomingMessage, source: string): Span {
  const known = spans.get(request);
  if (known !== undefined) return known;
  if (!isRecording()) {
    const ids = beginSpan("", "server", undefined, 0);
    spans.set(request, ids);
    return ids;
  }
  const { method, route } = routeOf(request, source);
  const span = beginSpan(route === undefined ? method : `${method} ${route}`, "server", undefined, performance.now());
  spans.set(request, span);
  recordColdStart(span);
  return span
    .set({
      "http.request.method": method,
      "http.route": route,
      "url.path": route,
      "url.scheme": "http",
      "faas.trigger": "http",
    })
    .link(readTraceparent(request.headers.traceparent));
}

/** Ends the span of a request, and measures its duration. */
export function endSpan(request: IncomingMessage, response: ServerResponse, source: string, beganAt: number): void {
  if (!isRecording()) return;
  const { method, route } = routeOf(request, source);
  const status = response.statusCode;
  const errorType = status < 500 ? undefined : String(status);
  measure("http.server.request.duration", (performance.now() - beganAt) / 1000, {
    "http.request.method": method,
    "url.scheme": "http",
    "http.response.status_code": status,
    ...(route && { "http.route": route }),
    ...(errorType && { "error.type": errorType }),
  });
  spanOf(request, source).set({ "http.response.status_code": status }).end(errorType);
}

/** The HTTP function that the functions framework runs. `source` is the function's name, such as order-pay. */
export function toHttpFunction(source: string, description: Endpoint) {
  return async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const began = admissions.get(request)?.arrivedAt ?? performance.now();
    const span = spanOf(request, source);
    // A client finds its trace and its log lines by this header (W3C Trace Context Level 2, draft of `traceresponse`).
    response.setHeader("traceresponse", writeTraceparent(span));
    const clientTrace = readTraceparent(request.headers.traceparent)?.traceId;
    const outcome: { user?: User; emitted: Envelope[] } = { emitted: [] };
    let code: ProblemCode | undefined;
    let failed = {};
    const late = setTimeout(
      () => {
        const detail = `The request was not complete after ${REQUEST_MILLISECONDS_MAX / 1000} s and may still have its effect. With an Idempotency-Key a repeat is safe.`;
        code = "outcome-unknown";
        writeProblem(response, new Problem(code, detail));
      },
      REQUEST_MILLISECONDS_MAX - (performance.now() - began),
    );
    try {
      const answered = await answer(description, source, request, span, outcome);
      if (answered instanceof Problem) throw answered;
      clearTimeout(late);
      if (!response.headersSent) writeSuccess(response, answered);
    } catch (error) {
      clearTimeout(late);
      const known = error instanceof Problem;
      if (!known) failed = failure(error);
      const problem = known
        ? error
        : new Problem("internal", `The log contains the cause under the trace ${span.traceId}. Report this trace.`, {
            members: { traceId: span.traceId },
          });
      if (!response.headersSent) {
        code = problem.code;
        writeProblem(response, problem);
      }
    } finally {
      admissions.get(request)?.end?.();
    }
    // After the answer: the caller waits for no broker.
    if (outcome.emitted.length > 0) setImmediate(publishLater, outcome.emitted);
    log(response.statusCode < 500 ? "info" : "error", "answered", {
      trace_id: span.traceId,
      span_id: span.spanId,
      ...(clientTrace === undefined ? {} : { client_trace_id: clientTrace }),
      ...(outcome.user === undefined ? {} : { caller: outcome.user.id }),
      method: request.method ?? "",
      path: splitTarget(request)[0],
      status: response.statusCode,
      ...(code === undefined ? {} : { code }),
      milliseconds: Math.round((performance.now() - began) * 10) / 10,
      ...failed,
    });
  };
}
