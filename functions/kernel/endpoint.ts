/** An HTTP endpoint: what it takes, what it answers, and the handler between. Everything else about HTTP happens here. */
import { createHash } from "node:crypto";
import type { IncomingMessage, ServerResponse } from "node:http";
import { parse as parseJson } from "lossless-json";
import * as v from "valibot";
import type { Repetition } from "./database.ts";
import { failure, log, type Trace, traceFrom, traceparent } from "./log.ts";
import { type Envelope, publishLater } from "./outbox.ts";
import { type CodeOf, type FieldError, fieldErrors, invalid, Problem, type ProblemCode } from "./problem.ts";
import {
  CURSOR_LENGTH_MAX,
  IDEMPOTENCY_KEY_LENGTH_MAX,
  PAGE_ROWS_DEFAULT,
  PAGE_ROWS_MAX,
  REQUEST_BODY_BYTES_MAX,
} from "./settings.ts";
import { authenticate, type User } from "./token.ts";

// Schemas of any input and output: `unknown` would refuse those that transform.
// biome-ignore lint/suspicious/noExplicitAny: see above
type Schema = v.GenericSchema<any, any>;

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

/** How a statement keeps a repeated request from having its effect twice. */
export interface Idempotency {
  /** The client's Idempotency-Key; null when it sent none. */
  readonly key: string | null;
  /** What the key was used for: the function and its validated input, hashed. */
  readonly fingerprint: string | null;
  /** A keyed statement may be sent again when its connection is lost. */
  readonly repetition: Repetition;
}

/** The page that a client asks for. */
export interface Page<Position> {
  readonly limit: number;
  /** The position of the last row of the page before; undefined for the first page. */
  readonly after: Position | undefined;
  /** Answers with up to `limit` of `rows`, of which there should be `limit + 1`, and a link to the next page. */
  answer<Row, Body>(
    rows: readonly Row[],
    positionOf: (row: Row) => Position,
    present: (row: Row) => Body,
  ): Success<200, Body[]>;
}

type OutputOf<S> = S extends Schema ? v.InferOutput<S> : undefined;

/** Who may call: only a user with a valid token, or anyone. */
type Caller = "user" | "anyone";

/** What a handler is given: of what its description does not ask for, nothing. */
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
  /** Where the call comes from, as far as the proxies in between can be believed. */
  readonly address: string;
  /** The function's name, and its place in the trace: what an event records of its origin. */
  readonly source: string;
  readonly traceparent: string;
  /** Publishes events that the database has recorded, once the answer has been sent. */
  publish(envelopes: readonly Envelope[]): void;
}

/** What a function is given: its service's database role, the public keys, the private key. */
export type Use = "database" | "public-keys" | "signing-key";

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
  readonly query?: Q;
  readonly body?: B;
  /** The schema of a row's position, for an endpoint that answers page by page. */
  readonly page?: P;
  /** Takes an Idempotency-Key. */
  readonly idempotent?: I;
  /** What it is given, when that is not the database and, for users, the public keys. */
  readonly uses?: readonly Use[];
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

const PageLimit = v.pipe(
  v.string(),
  v.regex(/^[0-9]{1,3}$/, `must be a whole number from 1 to ${PAGE_ROWS_MAX}`),
  v.transform(Number),
  v.minValue(1, `must be a whole number from 1 to ${PAGE_ROWS_MAX}`),
  v.maxValue(PAGE_ROWS_MAX, `must be a whole number from 1 to ${PAGE_ROWS_MAX}`),
);

/** Checks a value against a schema; every field that is wrong is named. */
function check<S extends Schema>(schema: S, value: unknown): v.InferOutput<S> {
  // One error a field: the first thing that is wrong with it.
  const result = v.safeParse(schema, value, { abortPipeEarly: true });
  if (result.success) return result.output;
  throw invalid(fieldErrors(result.issues, "body"));
}

function readQuery(search: string): Record<string, string> {
  // Without a prototype: no parameter's name means anything.
  const given: Record<string, string> = Object.create(null);
  const repeated: FieldError[] = [];
  for (const [name, value] of new URLSearchParams(search)) {
    if (Object.hasOwn(given, name)) repeated.push({ field: name, detail: "must be given once" });
    given[name] = value;
  }
  if (repeated.length > 0) throw invalid(repeated);
  return given;
}

const utf8 = new TextDecoder("utf-8", { fatal: true });

/** Numbers stay text, so that an amount is read exactly as it was written. Two values for one key are an error. */
function readBody(request: IncomingMessage & { rawBody?: Buffer }): unknown {
  const mediaType = request.headers["content-type"]?.split(";")[0]?.trim().toLowerCase();
  if (mediaType !== "application/json") {
    throw new Problem(
      "unsupported-media-type",
      "Send the body as JSON, with the header content-type: application/json.",
    );
  }
  const raw = request.rawBody ?? Buffer.alloc(0);
  // Under the framework's own command line nobody has looked at the size before.
  if (raw.length > REQUEST_BODY_BYTES_MAX) throw bodyTooLarge();
  let value: unknown;
  try {
    value = parseJson(utf8.decode(raw), undefined, { parseNumber: (text) => new JsonNumber(text) });
  } catch (error) {
    // The parser calls itself for what is nested; out of stack, it says so in words of the engine's.
    const reason = error instanceof RangeError ? "it is nested too deeply" : (error as Error).message;
    throw new Problem("malformed-body", `The body is not JSON in UTF-8: ${reason}.`);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value) || value instanceof JsonNumber) {
    throw new Problem("malformed-body", "The body must be a JSON object.");
  }
  return value;
}

/** A number of a JSON body, as it was written. */
class JsonNumber {
  readonly text: string;
  constructor(text: string) {
    this.text = text;
  }
}

/** In a body: a JSON number or a string, handed on as the text that was sent, to a schema that reads text. */
export function textOrNumber<S extends Schema>(schema: S) {
  return v.pipe(
    v.unknown(),
    v.metadata({ type: ["string", "number"], ...v.getMetadata(schema) }),
    v.transform((value) => (value instanceof JsonNumber ? value.text : value)),
    schema,
  );
}

/** The refusal of a body over the limit. */
export function bodyTooLarge(): Problem {
  return new Problem("body-too-large", `A body may have at most ${REQUEST_BODY_BYTES_MAX} bytes.`);
}

function readIdempotency(request: IncomingMessage, source: string, input: unknown): Idempotency {
  const key = request.headers["idempotency-key"];
  if (key === undefined) return { key: null, fingerprint: null, repetition: "once" };
  if (typeof key !== "string" || !/^[\x21-\x7e]+$/.test(key) || key.length > IDEMPOTENCY_KEY_LENGTH_MAX) {
    const detail = `must be 1 to ${IDEMPOTENCY_KEY_LENGTH_MAX} visible ASCII characters`;
    throw invalid([{ field: "Idempotency-Key", detail }]);
  }
  const text = JSON.stringify([source, input], (_, value) => (typeof value === "bigint" ? String(value) : value));
  return { key, fingerprint: createHash("sha256").update(text).digest("base64url"), repetition: "keyed" };
}

function readPage<Position>(schema: Schema, path: string, query: Record<string, string>): Page<Position> {
  const limit = query.limit === undefined ? PAGE_ROWS_DEFAULT : check(v.object({ limit: PageLimit }), query).limit;
  let after: Position | undefined;
  if (query.cursor !== undefined) {
    try {
      if (query.cursor.length > CURSOR_LENGTH_MAX) throw new RangeError("too long");
      after = v.parse(schema, JSON.parse(Buffer.from(query.cursor, "base64url").toString("utf8"))) as Position;
    } catch {
      throw invalid([{ field: "cursor", detail: "must be the cursor of a next link, unchanged" }]);
    }
  }
  return {
    limit,
    after,
    answer(rows, positionOf, present) {
      const shown = rows.slice(0, limit);
      const last = shown.at(-1);
      if (rows.length <= limit || last === undefined) return ok(shown.map(present));
      const cursor = Buffer.from(JSON.stringify(positionOf(last))).toString("base64url");
      return ok(shown.map(present), { link: `<${path}?limit=${limit}&cursor=${cursor}>; rel="next"` });
    },
  };
}

/** An IPv6 address with a zone fits; what a client makes up is cut. */
const ADDRESS_LENGTH_MAX = 64;

/** Addresses of a cluster's own network, such as those of its proxies. Not loopback: whoever came from there is a client. */
const CLUSTER_ADDRESS =
  /^(?:::ffff:)?(?:10\.|192\.168\.|172\.(?:1[6-9]|2\d|3[01])\.|100\.(?:6[4-9]|[7-9]\d|1[01]\d|12[0-7])\.|f[cd])/i;

/**
 * The last address in X-Forwarded-For that is not the cluster's: what stands before it the client may have made up. It is to be
 * believed when the outermost proxy adds the address it sees, and when clients do not come from within such a network.
 */
function addressOf(request: IncomingMessage): string {
  const forwarded = String(request.headers["x-forwarded-for"] ?? "")
    .split(",")
    .map((entry) => entry.trim())
    .filter(Boolean);
  const address =
    forwarded.findLast((entry) => !CLUSTER_ADDRESS.test(entry)) ?? forwarded[0] ?? request.socket.remoteAddress;
  return (address ?? "unknown").slice(0, ADDRESS_LENGTH_MAX);
}

/** Writes a refusal as application/problem+json. */
export function writeProblem(response: ServerResponse, problem: Problem): void {
  const text = JSON.stringify(problem);
  response.writeHead(problem.status, {
    "content-type": "application/problem+json",
    "content-length": Buffer.byteLength(text),
    "cache-control": "no-store",
    ...problem.headers,
  });
  response.end(text);
}

function writeSuccess(response: ServerResponse, { status, body, headers }: Success<number, unknown>): void {
  const text = JSON.stringify(body);
  response.writeHead(status, {
    "content-type": "application/json",
    "content-length": Buffer.byteLength(text),
    "cache-control": "no-store",
    ...headers,
  });
  response.end(text);
}

async function answer(
  description: Endpoint,
  source: string,
  request: IncomingMessage,
  trace: Trace,
  outcome: { user?: User; emitted: Envelope[] },
): Promise<Success<number, unknown> | Problem> {
  const path = pathOf(source);
  const [requested, search] = splitTarget(request);
  if (requested !== path)
    throw new Problem("not-found", `There is nothing at ${requested}; this function serves ${path}.`);
  const allowed = description.method === "GET" ? ["GET", "HEAD"] : ["POST"];
  if (!allowed.includes(request.method ?? "")) {
    const allow = allowed.join(", ");
    throw new Problem("method-not-allowed", `${path} takes ${allow}.`, { headers: { allow } });
  }
  if (description.caller === "user") outcome.user = await authenticate(request.headers.authorization);
  const given = readQuery(search);
  const query = description.query === undefined ? undefined : check(description.query, given);
  const body = description.body === undefined ? undefined : check(description.body, readBody(request));
  return description.handle({
    user: outcome.user,
    query,
    body,
    page: description.page && readPage(description.page, path, given),
    idempotency: description.idempotent ? readIdempotency(request, source, [query, body]) : undefined,
    address: addressOf(request),
    source,
    traceparent: traceparent(trace),
    publish: (envelopes) => outcome.emitted.push(...envelopes),
  });
}

/** The path and the query of a request, as they were sent. The framework keeps them in `originalUrl`. */
function splitTarget(request: IncomingMessage & { originalUrl?: string }): [path: string, search: string] {
  const target = request.originalUrl ?? request.url ?? "/";
  const mark = target.indexOf("?");
  return mark < 0 ? [target, ""] : [target.slice(0, mark), target.slice(mark + 1)];
}

/** order-pay -> /order/pay. Where a name and a path come from: the place of the file. */
export function pathOf(name: string): string {
  return `/${name.replace("-", "/")}`;
}

/** The HTTP function that the functions framework runs. `source` is the function's name, such as order-pay. */
export function toHttpFunction(source: string, description: Endpoint) {
  return async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const began = performance.now();
    const trace = traceFrom(request.headers.traceparent as string | undefined);
    const outcome: { user?: User; emitted: Envelope[] } = { emitted: [] };
    let code: ProblemCode | undefined;
    let failed = {};
    try {
      const answered = await answer(description, source, request, trace, outcome);
      if (answered instanceof Problem) throw answered;
      writeSuccess(response, answered);
    } catch (error) {
      const known = error instanceof Problem;
      if (!known) failed = failure(error);
      const problem = known
        ? error
        : new Problem("internal", `Tell us the trace ${trace.traceId}, and we can find what it was.`, {
            members: { traceId: trace.traceId },
          });
      code = problem.code;
      writeProblem(response, problem);
    }
    // After the answer: the caller waits for no broker.
    if (outcome.emitted.length > 0) setImmediate(publishLater, outcome.emitted);
    log(response.statusCode < 500 ? "info" : "error", "answered", {
      trace: trace.traceId,
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
