/** Keeps pages and other users out of the processes that only Lotus calls. */
import { timingSafeEqual } from "node:crypto";
import type { IncomingMessage } from "node:http";
import { Problem } from "./problem.ts";

/** The header in which the gateway and the event bus of a local run show the secret of the run. */
export const RUN_HEADER = "lotus-run";

/** Compares a text of a request with a secret, in a time that does not depend on the text. */
export function isSecret(text: unknown, secret: string): boolean {
  if (typeof text !== "string") return false;
  const [given, expected] = [Buffer.from(text), Buffer.from(secret)];
  return given.length === expected.length && timingSafeEqual(given, expected);
}

/** Returns whether a browser sent the request for a page: only browsers send these headers (Fetch Standard §3.1, Fetch Metadata). */
export function isFromPage({ headers }: IncomingMessage): boolean {
  return headers.origin !== undefined || headers["sec-fetch-site"] !== undefined;
}

/** Returns whether `Host` names this machine. A page that rebinds its name in the DNS sends its own name. */
export function isForThisMachine({ headers }: IncomingMessage): boolean {
  return /^(?:localhost|127\.0\.0\.1|\[::1\])(?::\d+)?$/i.test(headers.host ?? "");
}

/** Creates the refusal of a request that is not meant to come from outside. */
export function forbidden(): Problem {
  return new Problem("forbidden");
}
