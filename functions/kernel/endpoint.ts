/** Describes an HTTP endpoint: its inputs, its answers and its handler. */
import type { IncomingMessage, ServerResponse } from "node:http";
import type * as v from "valibot";
import { REQUEST_MILLISECONDS_MAX } from "./limits.ts";
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
import {
  type Attributes,
  beginSpan,
  isRecording,
  measure,
  readTraceparent,
  recordColdStart,
  type Span,
  writeTraceparent,
} from "./telemetry.ts";
import { authenticate, type User } from "./token.ts";

/** Describes the answers by status: the schema of a success, or the codes of the refusals that not every endpoint has. */
export interface Answers {
  readonly 200?: Schema;
  readonly 201?: Schema;
  readonly 400?: readonly CodeOf<400>[];
  readonly 401?: readonly CodeOf<401>[];
  readonly 404?: readonly CodeOf<404>[];
  readonly 409?: readonly CodeOf<409>[];
  readonly 429?: readonly CodeOf<429>[];
}

/** Contains a successful answer, which `writeSuccess` sends. */
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
  /** The client's address. Limits count clients by it: see `addressOf`. */
  readonly address: string;
  /** The time by which the request must be answered, in milliseconds on the clock of `performance.now()`. */
  readonly deadline: number;
  /** The function's name, which an event records as its origin. */
  readonly source: string;
  /** The span of the request. It is the parent of the spans of the handler's statements. */
  readonly span: Span;
  /** The trace context for the events of this request. The handler writes it into their outbox rows. */
  readonly traceparent: string;
  /** Publishes events after the answer has been sent. The outbox must contain them already. */
  publish(envelopes: readonly Envelope[]): void;
}

/** The parts of a request that a call in a shared statement needs. */
export type CallRequest = Pick<
  EndpointRequest,
  "user" | "idempotency" | "deadline" | "source" | "span" | "traceparent" | "publish"
>;

/** Names a secret of a function: its service's database role, the public keys, or the private key. */
export type Use = "database" | "public-keys" | "signing-key";

/** Sets how a function scales in a cluster. An environment file may override each field. */
export interface Scale {
  /** Requests in flight for each pod at which Knative starts another pod. The default is 50. */
  readonly target?: number;
  /** Requests in flight that one pod accepts; Knative queues further ones. The default is 0: no limit. */
  readonly limit?: number;
  /** The fewest pods, even without requests. The default is 0. */
  readonly minPods?: number;
  /** The most pods. */
  readonly maxPods?: number;
  /** The most database connections of one pod. */
  readonly connections?: number;
  /** Memory limit of one pod, in MiB. */
  readonly memoryMebibytes?: number;
  /** CPU limit of one pod, such as "500m" or "1". */
  readonly cpu?: string;
}

/** Describes a function that answers HTTP requests. The description is the default export of the function's file. */
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
  /** Contains further sentences for clients. OpenAPI shows them. */
  readonly description?: string;
  readonly query?: Q;
  readonly body?: B;
  /** The schema of a row's position. An endpoint with it answers page by page. */
  readonly page?: P;
  /** Whether the endpoint accepts an `Idempotency-Key`. */
  readonly idempotent?: I;
  /** Lists the secrets that the function reads. The default is the database and, when `caller` is `user`, the public keys. */
  readonly uses?: readonly Use[];
  readonly scale?: Scale;
  readonly answers: A;
  handle(request: EndpointRequest<C, Q, B, P, I>): Promise<SuccessOf<A> | Problem>;
}

/** Returns the description of an endpoint. It has no side effect, because generators import the file too. server.ts serves it. */
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

/** Returns a success with the status 200 and a body. */
export function ok<Body>(body: Body, headers: Readonly<Record<string, string>> = {}): Success<200, Body> {
  return { status: 200, body, headers };
}

/** Returns a success with the status 201 and a body. */
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

/** Contains the result of the checks before the body is received: the user, or the answer that ends the request. */
export interface Admission {
  readonly user?: User;
  readonly answer?: Success<number, unknown> | Problem;
  /** The time at which the head of the request arrived, on the clock of `performance.now()`. */
  readonly arrivedAt: number;
  /** Called once when the work on the request has ended, even if the client has closed the connection. The request then counts no longer. */
  end?: () => void;
}
/** `server.ts` calls `admit` before it receives the body, and `answer` reads the same result later. */
const admissions = new WeakMap<IncomingMessage, Admission>();

/** Returns the methods of an endpoint for the header `Allow`. */
function methodsOf({ method }: Endpoint): string[] {
  return method === "GET" ? ["GET", "HEAD", "OPTIONS"] : ["POST", "OPTIONS"];
}

/** Checks path, method and token. Returns an answer when the request ends here. */
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
 * Checks path, method and token of a request, before its body is received. A second call returns the first result.
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

/**
 * Checks the inputs of a request and calls the handler.
 * @param outcome receives the user and the published events, also when the handler throws
 */
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

/** Returns the path of a function: order-pay -> /order/pay. The place of its file gives both. */
export function pathOf(name: string): string {
  return `/${name.replace("-", "/")}`;
}

/** Ends the span that creates the events of a request. A span without events never ends, so it is not exported. */
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

/** A request in traces and metrics. An unknown path has no route: a client can send any text. */
interface Observed {
  readonly span: Span;
  readonly method: string;
  readonly route: string | undefined;
}

const observed = new WeakMap<IncomingMessage, Observed>();

function observe(request: IncomingMessage, source: string): Observed {
  const known = observed.get(request);
  if (known !== undefined) return known;
  const begun = beginObserving(request, source);
  observed.set(request, begun);
  return begun;
}

function beginObserving(request: IncomingMessage, source: string): Observed {
  // Without telemetry the span only provides the ids of the trace for log lines and events.
  if (!isRecording()) return { span: beginSpan("", "server", undefined, 0), method: "", route: undefined };
  const path = pathOf(source);
  const method = METHODS.includes(request.method ?? "") ? (request.method ?? "") : "_OTHER";
  const route = splitTarget(request)[0] === path ? path : undefined;
  const span = beginSpan(route === undefined ? method : `${method} ${route}`, "server", undefined);
  recordColdStart(span);
  if (span.sampled) {
    span
      .set({
        "http.request.method": method,
        "http.route": route,
        "url.path": route,
        "url.scheme": "http",
        "faas.trigger": "http",
      })
      .link(readTraceparent(request.headers.traceparent));
  }
  return { span, method, route };
}

/**
 * Returns the span of a request, and begins it at the first call. A client can set any `traceparent`, so the span begins a new trace
 * and links to the client's.
 * @param source the function's name, such as order-pay
 */
export function spanOf(request: IncomingMessage, source: string): Span {
  return observe(request, source).span;
}

/**
 * Ends the span of a request, and measures its duration.
 * @param beganAt when the request began, on the clock of `performance.now()`
 */
export function endSpan(request: IncomingMessage, response: ServerResponse, source: string, beganAt: number): void {
  if (!isRecording()) return;
  const { span, method, route } = observe(request, source);
  const status = response.statusCode;
  const errorType = status < 500 ? undefined : String(status);
  const attributes: Attributes = {
    "http.request.method": method,
    "url.scheme": "http",
    "http.response.status_code": status,
  };
  if (route !== undefined) attributes["http.route"] = route;
  if (errorType !== undefined) attributes["error.type"] = errorType;
  measure("http.server.request.duration", (performance.now() - beganAt) / 1000, attributes);
  if (span.sampled) span.set({ "http.response.status_code": status }).end(errorType);
}

/**
 * Returns the HTTP function that the functions framework runs. It answers, publishes the events and logs the request.
 * @param source the function's name, such as order-pay
 */
export function toHttpFunction(source: string, description: Endpoint) {
  return async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const began = admissions.get(request)?.arrivedAt ?? performance.now();
    const span = spanOf(request, source);
    // A client finds its trace and its log lines by this header (W3C Trace Context Level 2, draft of `traceresponse`).
    response.setHeader("traceresponse", writeTraceparent(span));
    const clientTrace = readTraceparent(request.headers.traceparent)?.traceId;
    const outcome: { user?: User; emitted: Envelope[] } = { emitted: [] };
    let code: ProblemCode | undefined;
    let failureFields = {};
    // At the deadline the client receives a refusal. The handler continues, and its events are still published.
    const deadlineTimer = setTimeout(
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
      clearTimeout(deadlineTimer);
      if (!response.headersSent) writeSuccess(response, answered);
    } catch (error) {
      clearTimeout(deadlineTimer);
      const isProblem = error instanceof Problem;
      if (!isProblem) failureFields = failure(error);
      const problem = isProblem
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
    // After the answer, so that the client does not wait for Kafka.
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
      ...failureFields,
    });
  };
}
