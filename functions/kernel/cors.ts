/** Requests of pages from other origins (CORS, Fetch Standard §3.2). Off unless CORS_ORIGINS names the origins. */
import type { IncomingMessage, ServerResponse } from "node:http";
import { settings } from "./settings.ts";

const METHODS = "GET, HEAD, POST";
const REQUEST_HEADERS = "Authorization, Content-Type, Idempotency-Key, Prefer, Traceparent";
/** Headers that a page may read besides the safelisted ones, such as Content-Type. */
const RESPONSE_HEADERS = "Allow, Link, Location, Retry-After, Traceresponse, WWW-Authenticate";
/** How long a browser keeps the answer to a preflight. */
const PREFLIGHT_SECONDS_MAX = 600;

/**
 * Sets the headers that let a page of an allowed origin read the response. No cookie is involved: tokens are in a header.
 * @param origins the allowed origins, exactly as browsers write them
 */
export function allowOrigin(
  { method, headers }: IncomingMessage,
  response: ServerResponse,
  origins: readonly string[] | undefined = settings().CORS_ORIGINS,
): void {
  if (origins === undefined) return;
  // A cache must not give the answer for one origin to another.
  response.setHeader("vary", "Origin");
  const { origin } = headers;
  if (origin === undefined || !origins.includes(origin)) return;
  response.setHeader("access-control-allow-origin", origin);
  response.setHeader("access-control-expose-headers", RESPONSE_HEADERS);
  if (method !== "OPTIONS" || headers["access-control-request-method"] === undefined) return;
  response.setHeader("access-control-allow-methods", METHODS);
  response.setHeader("access-control-allow-headers", REQUEST_HEADERS);
  response.setHeader("access-control-max-age", PREFLIGHT_SECONDS_MAX);
}
