/** Reads and checks the parts of a request, and refuses wrong ones by name. */
import { createHash } from "node:crypto";
import type { IncomingMessage } from "node:http";
import { isIPv4, isIPv6 } from "node:net";
import { parse as parseJson } from "lossless-json";
import * as v from "valibot";
import type { Repetition } from "./database.ts";
import {
  CURSOR_LENGTH_MAX,
  IDEMPOTENCY_KEY_DAYS,
  IDEMPOTENCY_KEY_LENGTH_MAX,
  IDEMPOTENCY_KEY_PATTERN,
  PAGE_ROWS_DEFAULT,
  PAGE_ROWS_MAX,
  REQUEST_BODY_BYTES_MAX,
} from "./limits.ts";
import { fieldErrors, invalid, Problem, quoted } from "./problem.ts";
import { bodyTooLarge } from "./request-body.ts";
import { settings } from "./settings.ts";

/** Accepts a schema of any input and output. */
// biome-ignore lint/suspicious/noExplicitAny: `unknown` would refuse schemas that transform
export type Schema = v.GenericSchema<any, any>;

/** How a statement keeps a repeated request from having its effect twice. */
export interface Idempotency {
  /** The client's Idempotency-Key; null when it sent none. */
  readonly key: string | null;
  /** The hash of the function and its validated input, which a key belongs to. */
  readonly fingerprint: string | null;
  /** A keyed statement may be sent again when its connection is lost. */
  readonly repetition: Repetition;
}

/** 200 with a page's rows, and a link to the next page when there is one. */
interface PageAnswer<Body> {
  readonly status: 200;
  readonly body: Body[];
  readonly headers: Readonly<Record<string, string>>;
}

/** The page that a client asks for. */
export interface Page<Position> {
  readonly limit: number;
  /** The position of the last row of the page before; undefined for the first page. */
  readonly after: Position | undefined;
  /** Answers with at most `limit` of `rows`, and with a link to the next page when `rows` contains one more. */
  answer<Row, Body>(
    rows: readonly Row[],
    positionOf: (row: Row) => Position,
    present: (row: Row) => Body,
  ): PageAnswer<Body>;
}

/** A target in the form that names a path alone, also when it came with a host, as to a proxy (RFC 9112 §3.2). */
export function originForm(target = "/"): string {
  return target.replace(/^https?:\/\/[^/?#]*\/?/i, "/");
}

/** The path and the query of a request, as they were sent. The framework keeps them in `originalUrl`. */
export function splitTarget(request: IncomingMessage & { originalUrl?: string }): [path: string, search: string] {
  const target = originForm(request.originalUrl ?? request.url);
  const mark = target.indexOf("?");
  return mark < 0 ? [target, ""] : [target.slice(0, mark), target.slice(mark + 1)];
}

const PageLimit = v.pipe(
  v.string(),
  v.regex(/^[0-9]{1,3}$/, `must be a whole number from 1 to ${PAGE_ROWS_MAX}`),
  v.transform(Number),
  v.minValue(1, `must be a whole number from 1 to ${PAGE_ROWS_MAX}`),
  v.maxValue(PAGE_ROWS_MAX, `must be a whole number from 1 to ${PAGE_ROWS_MAX}`),
);

/** Checks a value against a schema; every field that is wrong is named. */
export function check<S extends Schema>(schema: S, value: unknown): v.InferOutput<S> {
  // One error a field: the first thing that is wrong with it.
  const result = v.safeParse(schema, value, { abortPipeEarly: true });
  if (result.success) return result.output;
  throw invalid(fieldErrors(result.issues, "body"));
}

/** Reads a query string. @throws {Problem} `invalid-request`, which names each repeated parameter once */
export function readQuery(search: string): Record<string, string> {
  // Without a prototype, a parameter may have any name.
  const given: Record<string, string> = Object.create(null);
  const repeated = new Set<string>();
  for (const [name, value] of new URLSearchParams(search)) {
    if (Object.hasOwn(given, name)) repeated.add(name);
    given[name] = value;
  }
  if (repeated.size === 0) return given;
  throw invalid([...repeated].map((name) => ({ field: quoted(name), detail: "must be given once" })));
}

const utf8 = new TextDecoder("utf-8", { fatal: true });

/** Numbers stay text, so that an amount is exact. Two values for one key are an error. */
export function readBody(request: IncomingMessage & { rawBody?: Buffer }): unknown {
  const mediaType = request.headers["content-type"]?.split(";")[0]?.trim().toLowerCase();
  if (mediaType !== "application/json") {
    throw new Problem(
      "unsupported-media-type",
      "Send the body as JSON, with the header content-type: application/json.",
    );
  }
  const { "content-encoding": coding = "identity" } = request.headers;
  if (coding.toLowerCase() !== "identity")
    throw new Problem("unsupported-media-type", `Send the body without this content-encoding: ${quoted(coding)}.`);
  const raw = request.rawBody ?? Buffer.alloc(0);
  // The framework's own command line does not check the size.
  if (raw.length > REQUEST_BODY_BYTES_MAX) throw bodyTooLarge(REQUEST_BODY_BYTES_MAX);
  let value: unknown;
  try {
    value = parseJson(utf8.decode(raw), undefined, { parseNumber: (text) => new JsonNumber(text) });
  } catch (error) {
    // The parser calls itself for nested values. The engine's message for a stack overflow would not help a client.
    const reason = error instanceof RangeError ? "it is nested too deeply" : (error as Error).message;
    throw new Problem("malformed-body", `The body is not JSON in UTF-8: ${reason}.`);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value) || value instanceof JsonNumber) {
    throw new Problem("malformed-body", "The body must be a JSON object.");
  }
  return value;
}

/** A number of a JSON body, with its exact text. */
class JsonNumber {
  readonly text: string;
  constructor(text: string) {
    this.text = text;
  }
}

/**
 * A JSON number or a string of a body. The schema receives its text, exactly as it was sent.
 * @param shownAs keywords of JSON Schema that OpenAPI shows beside those of the schema, such as the pattern of the text
 */
export function textOrNumber<S extends Schema>(schema: S, shownAs: Readonly<Record<string, unknown>>) {
  return v.pipe(
    v.unknown(),
    v.metadata({ ...v.getMetadata(schema), ...shownAs }),
    v.transform((value) => (value instanceof JsonNumber ? value.text : value)),
    schema,
  );
}

const IDEMPOTENCY_KEY = new RegExp(IDEMPOTENCY_KEY_PATTERN);

/**
 * Reads the header Idempotency-Key.
 * @param source the name of the function
 * @param input the validated input, which becomes part of the fingerprint
 * @throws {Problem} `invalid-input` when the key is malformed
 */
export function readIdempotency(request: IncomingMessage, source: string, input: unknown): Idempotency {
  const key = request.headers["idempotency-key"];
  if (key === undefined) return { key: null, fingerprint: null, repetition: "once" };
  if (typeof key !== "string" || !IDEMPOTENCY_KEY.test(key) || key.length > IDEMPOTENCY_KEY_LENGTH_MAX) {
    const detail = `must be 1 to ${IDEMPOTENCY_KEY_LENGTH_MAX} visible ASCII characters`;
    throw invalid([{ field: "Idempotency-Key", detail }]);
  }
  const text = JSON.stringify([source, input], (_, value) => (typeof value === "bigint" ? String(value) : value));
  return { key, fingerprint: createHash("sha256").update(text).digest("base64url"), repetition: "keyed" };
}

/** The refusal of a request whose `Idempotency-Key` moved money so long ago that the answer is deleted. */
export function expiredKey(): Problem {
  return new Problem(
    "idempotency-key-expired",
    `A request with this Idempotency-Key succeeded more than ${IDEMPOTENCY_KEY_DAYS} days ago. Its answer is deleted, and nothing was moved now. A new request needs a new key.`,
  );
}

/**
 * Reads `limit` and `cursor` of a query.
 * @param schema the schema of a position
 * @param path the path of the link to the next page
 * @throws {Problem} `invalid-input` when one of them is wrong
 */
export function readPage<Position>(schema: Schema, path: string, query: Record<string, string>): Page<Position> {
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
      const page = <Body>(body: Body[], headers = {}): PageAnswer<Body> => ({ status: 200, body, headers });
      const shown = rows.slice(0, limit);
      const last = shown.at(-1);
      if (rows.length <= limit || last === undefined) return page(shown.map(present));
      const cursor = Buffer.from(JSON.stringify(positionOf(last))).toString("base64url");
      return page(shown.map(present), { link: `<${path}?limit=${limit}&cursor=${cursor}>; rel="next"` });
    },
  };
}

/** Returns the first four groups of an IPv6 address, which is what one subscriber gets (RFC 6177), or the mapped IPv4 address. */
function ipv6Client(address: string): string {
  // URL writes an address in its shortest form: hexadecimal, with at most one `::`.
  const canonical = new URL(`http://[${address.split("%", 1)[0]}]`).hostname.slice(1, -1);
  const mapped = /^::ffff:([0-9a-f]+):([0-9a-f]+)$/.exec(canonical);
  if (mapped !== null) {
    const [high, low] = [Number.parseInt(mapped[1] ?? "", 16), Number.parseInt(mapped[2] ?? "", 16)];
    return [high >> 8, high & 255, low >> 8, low & 255].join(".");
  }
  const [front = "", back] = canonical.split("::");
  const groups = front === "" ? [] : front.split(":");
  const behind = back === undefined || back === "" ? [] : back.split(":");
  while (back !== undefined && groups.length + behind.length < 8) groups.push("0");
  return `${[...groups, ...behind].slice(0, 4).join(":")}::/64`;
}

/** Returns the client that an address stands for; undefined when the text is not an IP address. */
function clientOf(address: string): string | undefined {
  if (isIPv4(address)) return address;
  // The peer of an IPv4 connection on a dual-stack socket, in the form in which Node writes it.
  const mapped = address.startsWith("::ffff:") ? address.slice(7) : "";
  if (isIPv4(mapped)) return mapped;
  const bare = address.replace(/^\[(.*)\](?::\d+)?$/, "$1").replace(/^(\d+\.\d+\.\d+\.\d+):\d+$/, "$1");
  if (isIPv4(bare)) return bare;
  return isIPv6(bare) ? ipv6Client(bare) : undefined;
}

/**
 * Returns the address that limits count a client by: an IPv4 address, or the /64 of an IPv6 address.
 * @param trustedProxies how many proxies append to X-Forwarded-For: the client is that entry from the right. An entry further
 *   left is the client's own claim. With fewer entries, or without an address there, the peer of the connection counts.
 */
export function addressOf(request: IncomingMessage, trustedProxies = settings().TRUSTED_PROXIES): string {
  const forwarded = request.headers["x-forwarded-for"];
  const entries = typeof forwarded === "string" ? forwarded.split(",") : [];
  const entry = trustedProxies === 0 ? undefined : entries.at(-trustedProxies);
  const client = entry === undefined ? undefined : clientOf(entry.trim());
  return client ?? clientOf(request.socket.remoteAddress ?? "") ?? "unknown";
}
