/** Writes one JSON line for each event to standard output. */

/** The fields of a line. They never contain a token, a password, a body or an email address. */
export interface LogFields {
  /** The ids by which a tracing backend finds the span (OpenTelemetry, "Trace Context in non-OTLP Log Formats"). */
  trace_id?: string;
  span_id?: string;
  /** The trace of the client's `traceparent`. A public endpoint begins a new trace. */
  client_trace_id?: string;
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

/** Names the severity of a log line. */
export type LogLevel = "info" | "warning" | "error";

let functionName: string | undefined;

/** Names the function whose lines these are. From then on, the end of the process writes the lines that wait. */
export function logAs(name: string): void {
  if (functionName === undefined) process.once("exit", flush);
  functionName = name;
}

/** Lines of this turn of the event loop. One write of many lines costs as much CPU as a write of one line. */
let pending = "";

function flush(): void {
  const lines = pending;
  pending = "";
  if (lines !== "") process.stdout.write(lines);
}

/** Writes one line: an `info` at the end of this turn of the event loop, and a warning or an error at once. */
export function log(level: LogLevel, message: string, fields: LogFields = {}): void {
  const isFirst = pending === "";
  pending += `${JSON.stringify({ time: new Date().toISOString(), level, function: functionName, message, ...fields })}\n`;
  if (level !== "info") flush();
  else if (isFirst) setImmediate(flush);
}

/** Returns the fields of a failure: its message as the reason, and its stack. */
export function failure(error: unknown): Pick<LogFields, "reason" | "stack"> {
  if (!(error instanceof Error)) return { reason: String(error) };
  return { reason: error.message || error.name, ...(error.stack === undefined ? {} : { stack: error.stack }) };
}
