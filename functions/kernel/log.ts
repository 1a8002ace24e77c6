/** One JSON line an event on standard output, and the trace (W3C Trace Context) that ties lines together. */
import { randomBytes } from "node:crypto";

/** A place in a trace: 32 hex digits for the trace, 16 for the span of this function. */
export interface Trace {
  readonly traceId: string;
  readonly spanId: string;
}

const TRACEPARENT = /^[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}/;

/** Continues the trace of a `traceparent` (W3C Trace Context §3.2), or begins one when there is none that is valid. */
export function traceFrom(traceparent: string | undefined): Trace {
  const traceId = TRACEPARENT.exec(traceparent ?? "")?.[1];
  const random = randomBytes(24).toString("hex");
  const usable = traceId !== undefined && !/^0+$/.test(traceId);
  return { traceId: usable ? traceId : random.slice(0, 32), spanId: random.slice(32) };
}

/** The `traceparent` to hand on. The flag says "sampled": Lotus records every trace in its logs. */
export function traceparent(trace: Trace): string {
  return `00-${trace.traceId}-${trace.spanId}-01`;
}

/** What a line may carry. Never a token, a password, a body or an email address. */
export interface LogFields {
  trace?: string;
  caller?: string;
  method?: string;
  path?: string;
  status?: number;
  code?: string;
  milliseconds?: number;
  event?: string;
  topic?: string;
  statement?: string;
  count?: number;
  /** The moment and the SHA-256 of a seal of the ledger. */
  moment?: string;
  hash?: string;
  reason?: string;
  stack?: string;
}

export type LogLevel = "info" | "warning" | "error";

let functionName: string | undefined;

/** Names the function whose lines these are. */
export function logAs(name: string): void {
  functionName = name;
}

/** Writes one line. */
export function log(level: LogLevel, message: string, fields: LogFields = {}): void {
  process.stdout.write(
    `${JSON.stringify({ time: new Date().toISOString(), level, function: functionName, message, ...fields })}\n`,
  );
}

/** The fields that tell of a failure: its message as the reason, and where it came from. */
export function failure(error: unknown): Pick<LogFields, "reason" | "stack"> {
  if (!(error instanceof Error)) return { reason: String(error) };
  return { reason: error.message || error.name, ...(error.stack === undefined ? {} : { stack: error.stack }) };
}
