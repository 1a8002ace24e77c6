/** Refusals, as RFC 9457 problem details. `code` is stable: clients may switch on it. */
import type { ServerResponse } from "node:http";
import * as v from "valibot";
import { FIELD_ERRORS_MAX, QUOTE_LENGTH_MAX } from "./limits.ts";

const PROBLEMS = {
  "invalid-request": [400, "The request is not valid"],
  "malformed-request": [400, "This is not an HTTP request"],
  "malformed-body": [400, "The body cannot be read"],
  "insufficient-funds": [400, "Not enough money"],
  "balance-limit": [400, "The balance would exceed its limit"],
  unauthenticated: [401, "A valid token is needed"],
  "invalid-credentials": [401, "The email or the password is wrong"],
  forbidden: [403, "Only processes of Lotus may call this address"],
  "not-found": [404, "This address does not exist"],
  "unknown-subscription": [404, "The subscription does not exist"],
  "unknown-order": [404, "The order does not exist"],
  "unknown-recipient": [404, "The recipient does not exist"],
  "method-not-allowed": [405, "This address does not accept the method"],
  "request-timeout": [408, "The request took too long to arrive"],
  "email-taken": [409, "The email is taken"],
  "account-not-open": [409, "The account is not open"],
  "order-not-paid": [409, "The order is not paid"],
  "idempotency-key-expired": [409, "The Idempotency-Key is too old"],
  "body-too-large": [413, "The body is too large"],
  "unsupported-media-type": [415, "The media type of the body is not supported"],
  "idempotency-key-reused": [422, "The Idempotency-Key was used for another request"],
  "too-many-attempts": [429, "Too many attempts"],
  "too-many-requests": [429, "Too many requests at a time"],
  "headers-too-large": [431, "The headers are too large"],
  internal: [500, "Internal error"],
  unavailable: [503, "Temporarily unavailable"],
  "outcome-unknown": [503, "The outcome is unknown"],
} as const satisfies Record<string, readonly [number, string]>;

/** Names a kind of problem. */
export type ProblemCode = keyof typeof PROBLEMS;

/** Lists every code of a problem. */
export const PROBLEM_CODES = Object.keys(PROBLEMS) as ProblemCode[];

/** The codes that go with a status. */
export type CodeOf<Status extends number> = {
  [Code in ProblemCode]: (typeof PROBLEMS)[Code][0] extends Status ? Code : never;
}[ProblemCode];

/** The HTTP status that goes with a code. */
export function statusOf(code: ProblemCode): number {
  return PROBLEMS[code][0];
}

/** The title of a code, the same for every occurrence (RFC 9457 §3.1.3). */
export function titleOf(code: ProblemCode): string {
  return PROBLEMS[code][1];
}

/** One field that is wrong: which, and what was expected. */
export interface FieldError {
  readonly field: string;
  readonly detail: string;
}

/** Contains the additions to the status and the text of a problem. */
export interface ProblemExtras {
  /** Response headers, such as Allow and Retry-After. */
  readonly headers?: Readonly<Record<string, string>>;
  /** Extension members (RFC 9457 §3.2). */
  readonly members?: Readonly<Record<string, unknown>>;
}

/** Names the way to authenticate in every 401 (RFC 9110 §15.5.2, RFC 6750 §3). */
export const CHALLENGE = 'Bearer realm="lotus"';

/** A refusal. A handler returns it; code that a handler calls throws it. */
export class Problem extends Error {
  readonly code: ProblemCode;
  readonly detail: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly members: Readonly<Record<string, unknown>>;

  constructor(code: ProblemCode, detail = `${titleOf(code)}.`, extras: ProblemExtras = {}) {
    super(detail);
    this.code = code;
    this.detail = detail;
    this.headers = { ...(this.status === 401 && { "www-authenticate": CHALLENGE }), ...extras.headers };
    this.members = extras.members ?? {};
  }

  get status(): number {
    return statusOf(this.code);
  }

  /** The document of RFC 9457. */
  toJSON(): Record<string, unknown> {
    return {
      type: `urn:lotus:problem:${this.code}`,
      title: titleOf(this.code),
      status: this.status,
      code: this.code,
      detail: this.detail,
      ...this.members,
    };
  }
}

/** Encodes a refusal as application/problem+json: its headers and its body. */
export function encodeProblem(problem: Problem): [headers: Record<string, string | number>, text: string] {
  const text = JSON.stringify(problem);
  const headers = {
    "content-type": "application/problem+json",
    "content-length": Buffer.byteLength(text),
    "cache-control": "no-store",
    ...problem.headers,
  };
  return [headers, text];
}

/** Writes a refusal as the whole response. */
export function writeProblem(response: ServerResponse, problem: Problem): void {
  const [headers, text] = encodeProblem(problem);
  response.writeHead(problem.status, headers);
  response.end(text);
}

/** Cuts a text of the request for a refusal that quotes it, so that no refusal is much longer than its request. */
export function quoted(text: string): string {
  return text.length > QUOTE_LENGTH_MAX ? `${text.slice(0, QUOTE_LENGTH_MAX)}…` : text;
}

/** Creates the refusal of a request with wrong fields. It names the first FIELD_ERRORS_MAX of them. */
export function invalid(wrong: readonly FieldError[]): Problem {
  const errors = wrong.slice(0, FIELD_ERRORS_MAX);
  const detail = errors.map(({ field, detail }) => `${field}: ${detail}.`).join(" ");
  return new Problem("invalid-request", detail, { members: { errors } });
}

/** Returns the expectation of an issue. The messages of Lotus begin with "must"; a message of valibot names the expected type. */
function expectation(issue: v.BaseIssue<unknown>): string {
  if (issue.message.startsWith("must ")) return issue.message;
  return issue.expected === null ? "is not valid" : `must be ${issue.expected}`;
}

/**
 * Returns the faults, field by field. It omits the values: one may be a password, and faults are shown and logged.
 * @param whole the name of a value without fields
 */
export function fieldErrors(issues: readonly v.BaseIssue<unknown>[], whole: string): FieldError[] {
  return issues.map((issue) => ({
    field: v.getDotPath(issue) ?? whole,
    // Only an issue of the schema itself, not of a later check, means that the field is missing.
    detail: issue.kind === "schema" && issue.received === "undefined" ? "is missing" : expectation(issue),
  }));
}
