/** Records what the local run knows about requests and events: log lines, publications, deliveries, starts. Bounded by count and bytes. */

import type { LogEvent } from "../local/control-messages.ts";
import type { Observer } from "../local/observer.ts";
import type { EventDetail, EventState, EventSummary, FunctionFigures, Span } from "./protocol.ts";
import type { TracedDelivery, Traces } from "./traces.ts";

const EVENTS_MAX = 10_000;
const TRACES_MAX = 10_000;
const SPANS_PER_TRACE_MAX = 200;
const CONTENT_BYTES_MAX = 48 * 1024 * 1024;
/** The page shows this much of a content. */
export const CONTENT_SHOWN_BYTES_MAX = 64 * 1024;
const RELATED_EVENTS_MAX = 20;
const LINES_PER_EVENT_MAX = 200;
const FIGURES_SECONDS = 60;
const DURATIONS_PER_FUNCTION_MAX = 5_000;
/** A cold start belongs to a request or a delivery that began at most this long before it. */
const START_BEFORE_MICROSECONDS_MAX = 50_000;

/** The moment, in microseconds since 1970. */
export const nowMicroseconds = (): number => Math.round((performance.timeOrigin + performance.now()) * 1000);

interface EventRecord {
  readonly id: string;
  readonly attributes: Record<string, string>;
  readonly topic: string;
  readonly trace: string;
  readonly at: number;
  body: Buffer;
  bodyBytes: number;
  state: EventState;
  reason?: string;
  attempts: number;
  effectAt?: number;
  readonly spans: Span[];
}

/** A log line of a function, as far as the recorder reads it. */
interface ParsedLine {
  readonly time?: string;
  readonly level?: string;
  readonly message?: string;
  readonly trace_id?: string;
  readonly method?: string;
  readonly path?: string;
  readonly status?: number;
  readonly milliseconds?: number;
  readonly event?: string;
  readonly reason?: string;
}

interface Durations {
  readonly perSecond: Map<number, number>;
  readonly recent: { second: number; milliseconds: number; failed: boolean }[];
}

const traceOf = (traceparent: string | undefined) => traceparent?.split("-")[1] ?? "";
/** lotus.user-registered.v1 -> user-registered */
const topicOf = (type: string) => /^lotus\.(.+)\.v\d+$/.exec(type)?.[1] ?? type;

/** Returns the microseconds of a time in RFC 3339, with its digits below a millisecond. */
function microsecondsOf(time: string): number {
  const milliseconds = Date.parse(time);
  if (Number.isNaN(milliseconds)) return nowMicroseconds();
  const digits = /\.(\d+)/.exec(time)?.[1]?.padEnd(6, "0").slice(3, 6) ?? "0";
  return milliseconds * 1000 + Number(digits);
}

const quantile = (sorted: readonly number[], share: number) =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0;

/** Keeps the events, the traces and the figures of a run. `onEvent` is called with each event that is new or has changed. */
export class Recorder implements Observer {
  readonly #events = new Map<string, EventRecord>();
  readonly #traces = new Map<string, Span[]>();
  readonly #byTrace = new Map<string, string[]>();
  readonly #figures = new Map<string, Durations>();
  readonly #onEvent: (event: EventSummary) => void;
  readonly #lines: () => readonly LogEvent[];
  readonly #spans: Traces;
  #contentBytes = 0;

  constructor(lines: () => readonly LogEvent[], spans: Traces, onEvent: (event: EventSummary) => void) {
    this.#spans = spans;
    this.#lines = lines;
    this.#onEvent = onEvent;
  }

  /** Reads one event of the control channel. */
  line(event: LogEvent): void {
    if (event.kind === "news") {
      const started = /^started in (\d+) ms$/.exec(event.text)?.[1];
      if (started !== undefined) this.#started(event.name, Number(started));
      return;
    }
    if (!event.text.startsWith("{") || !event.text.includes('"trace_id"')) return;
    let line: ParsedLine;
    try {
      line = JSON.parse(event.text) as ParsedLine;
    } catch {
      // Text of a library that begins like JSON.
      return;
    }
    const { trace_id: trace, time, milliseconds = 0, level, status, reason } = line;
    if (trace === undefined || time === undefined) return;
    const microseconds = Math.round(milliseconds * 1000);
    const at = microsecondsOf(time) - microseconds;
    if (line.method !== undefined) {
      const span = { name: "request", who: event.name, at, microseconds, failed: (status ?? 0) >= 500 };
      this.#addSpan(trace, { ...span, note: `${line.method} ${line.path} answered ${status}` });
      return;
    }
    const record = line.event === undefined ? undefined : this.#events.get(line.event);
    if (record === undefined) return;
    const failed = level === "error";
    const note = reason ?? (level === "info" ? undefined : line.message);
    record.spans.push({
      name: "effect",
      who: event.name,
      at,
      microseconds,
      failed,
      ...(note !== undefined && { note }),
    });
    if (level === "warning" && reason !== undefined && event.name !== "events-dead-letter") {
      record.state = "dead letter";
      record.reason = reason;
    }
    if (level === "info") {
      record.state = "settled";
      delete record.reason;
      record.effectAt = at + microseconds;
      record.spans.push({ name: "settle", who: event.name, at: at + microseconds, microseconds: 0, failed: false });
    }
    this.#changed(record);
  }

  #addSpan(trace: string, span: Span): void {
    let spans = this.#traces.get(trace);
    if (spans === undefined) {
      spans = [];
      this.#traces.set(trace, spans);
      if (this.#traces.size > TRACES_MAX) this.#traces.delete(this.#traces.keys().next().value ?? "");
    }
    if (spans.push(span) > SPANS_PER_TRACE_MAX) spans.shift();
    for (const record of this.#recordsOf(trace)) this.#changed(record);
  }

  answered(name: string, status: number, milliseconds: number, traceresponse: string | undefined): void {
    const failed = status >= 500;
    this.#count(name, milliseconds, failed);
    const trace = traceOf(traceresponse);
    const microseconds = Math.round(milliseconds * 1000);
    const at = nowMicroseconds() - microseconds;
    if (trace !== "") this.#spans.answered(trace, { name: "gateway", who: name, at, microseconds, failed });
  }

  published(headers: Readonly<Record<string, string>>, body: Buffer): void {
    const record = this.#record(headers, body);
    record.spans.push({ name: "publish", who: "event bus", at: nowMicroseconds(), microseconds: 0, failed: false });
    if (record.state === "in the outbox") record.state = "published";
    this.#changed(record);
  }

  attempted(
    name: string,
    headers: Readonly<Record<string, string | string[] | undefined>>,
    body: Buffer | undefined,
    status: number,
    milliseconds: number,
  ): void {
    const delivered = status >= 200 && status < 300;
    this.#count(name, milliseconds, !delivered);
    if (typeof headers["ce-id"] !== "string" || headers["ce-type"] === "dev.knative.sources.ping") return;
    const texts = Object.entries(headers).filter((entry): entry is [string, string] => typeof entry[1] === "string");
    const record = this.#record(Object.fromEntries(texts), body ?? Buffer.alloc(0));
    const microseconds = Math.round(milliseconds * 1000);
    const failure = status === 0 ? "The function ended before it answered." : `The function answered ${status}.`;
    const note = delivered ? {} : { note: failure };
    const at = nowMicroseconds() - microseconds;
    record.spans.push({ name: "deliver", who: name, at, microseconds, failed: !delivered, ...note });
    record.attempts++;
    const isDeadLetter = headers["ce-knativeerrordest"] !== undefined;
    // The log line of the function says that it moved the event to the dead letters; its answer is a success as well.
    if (isDeadLetter) record.state = delivered ? "dead letter" : record.state;
    else if (!(delivered && record.state === "dead letter")) record.state = delivered ? "settled" : "delivering";
    this.#changed(record);
  }

  /** Records that an event became a dead letter or was lost. */
  ended(id: string | undefined, state: "dead letter" | "lost", reason: string | undefined): void {
    const record = this.#events.get(id ?? "");
    if (record === undefined) return;
    record.state = state;
    if (reason !== undefined) record.reason = reason;
    this.#changed(record);
  }

  /** Records an event that only the outbox contains. */
  waiting(headers: Readonly<Record<string, string>>, body: Buffer): void {
    if (!this.#events.has(headers["ce-id"] ?? "")) this.#changed(this.#record(headers, body));
  }

  /** Returns the newest events, newest first. */
  newest(count: number): EventSummary[] {
    return [...this.#events.values()]
      .slice(-count)
      .reverse()
      .map((record) => this.#summary(record));
  }

  /** Returns an event with its steps; undefined when the recorder has forgotten it. */
  detail(id: string): EventDetail | undefined {
    const record = this.#events.get(id);
    if (record === undefined) return undefined;
    const related = this.#recordsOf(record.trace);
    return {
      event: this.#summary(record),
      spans: this.#spansOf(record),
      attributes: record.attributes,
      body: record.body.subarray(0, CONTENT_SHOWN_BYTES_MAX).toString("utf8"),
      bodyBytes: record.bodyBytes,
      related: related
        .filter((other) => other !== record)
        .slice(0, RELATED_EVENTS_MAX)
        .map((other) => this.#summary(other)),
      lines: this.#linesOf(record),
    };
  }

  /** Returns the events of a trace, the oldest first. */
  eventsOfTrace(trace: string): EventSummary[] {
    return this.#recordsOf(trace).map((record) => this.#summary(record));
  }

  /** Returns the deliveries of the events of a trace. */
  deliveriesOfTrace(trace: string): TracedDelivery[] {
    return this.#recordsOf(trace).flatMap(({ id, spans }) =>
      spans.flatMap((span) => (span.name === "deliver" ? [{ event: id, span }] : [])),
    );
  }

  #recordsOf(trace: string): EventRecord[] {
    return (this.#byTrace.get(trace) ?? []).flatMap((id) => this.#events.get(id) ?? []);
  }

  /** Returns the figures of each function that had a request in the last minute. */
  figures(): FunctionFigures[] {
    const now = Math.floor(Date.now() / 1000);
    return [...this.#figures].flatMap(([name, { perSecond, recent }]) => {
      for (const second of perSecond.keys()) if (second <= now - FIGURES_SECONDS) perSecond.delete(second);
      while (recent[0] !== undefined && recent[0].second <= now - FIGURES_SECONDS) recent.shift();
      const sorted = recent.map(({ milliseconds }) => milliseconds).sort((a, b) => a - b);
      return {
        name,
        perSecond: Array.from({ length: FIGURES_SECONDS }, (_, i) => perSecond.get(now - FIGURES_SECONDS + 1 + i) ?? 0),
        p50Milliseconds: quantile(sorted, 0.5),
        p99Milliseconds: quantile(sorted, 0.99),
        errors: recent.filter(({ failed }) => failed).length,
      };
    });
  }

  /** Adds a cold start to the requests and deliveries that waited for it: the trace of those that end after it contains it. */
  readonly #starts: { name: string; at: number; microseconds: number }[] = [];

  #started(name: string, milliseconds: number): void {
    const microseconds = milliseconds * 1000;
    this.#starts.push({ name, at: nowMicroseconds() - microseconds, microseconds });
    if (this.#starts.length > SPANS_PER_TRACE_MAX) this.#starts.shift();
  }

  #spansOf(record: EventRecord): Span[] {
    const requests = this.#traces.get(record.trace) ?? [];
    // The request that caused the event: the last of its trace that began before the commit.
    const cause = requests.filter(({ name, at }) => name === "request" && at <= record.at + 1000).at(-1);
    const others = requests.filter((span) => span.name !== "request");
    const spans = [...(cause ? [cause] : []), ...others, ...record.spans];
    spans.push({ name: "commit", who: this.#causeOf(record), at: record.at, microseconds: 0, failed: false });
    const starts = this.#starts.filter(({ name, at, microseconds }) =>
      spans.some(
        (span) =>
          span.who === name &&
          ((span.name === "deliver" &&
            span.at - START_BEFORE_MICROSECONDS_MAX < at &&
            span.at + span.microseconds > at) ||
            (span.name === "request" && Math.abs(span.at - (at + microseconds)) < START_BEFORE_MICROSECONDS_MAX)),
      ),
    );
    for (const { name, at, microseconds } of starts)
      spans.push({ name: "cold start", who: name, at, microseconds, failed: false });
    return spans.sort((a, b) => a.at - b.at || b.microseconds - a.microseconds);
  }

  /** The function that caused an event: the last part of its source. */
  #causeOf({ attributes }: EventRecord): string {
    return attributes.source?.split("/").at(-1) ?? "";
  }

  #linesOf(record: EventRecord): LogEvent[] {
    const wanted = [record.id, record.trace].filter((text) => text !== "");
    return this.#lines()
      .filter(({ text }) => wanted.some((part) => text.includes(part)))
      .slice(-LINES_PER_EVENT_MAX);
  }

  #record(headers: Readonly<Record<string, string>>, body: Buffer): EventRecord {
    const id = headers["ce-id"] ?? "";
    const known = this.#events.get(id);
    if (known !== undefined) return known;
    const attributes = Object.fromEntries(
      Object.entries(headers).flatMap(([name, value]) => (name.startsWith("ce-") ? [[name.slice(3), value]] : [])),
    );
    const record: EventRecord = {
      id,
      attributes,
      topic: headers["lotus-topic"] ?? topicOf(attributes.type ?? ""),
      trace: traceOf(attributes.traceparent),
      at: attributes.time === undefined ? nowMicroseconds() : microsecondsOf(attributes.time),
      body: body.subarray(0, CONTENT_SHOWN_BYTES_MAX),
      bodyBytes: body.length,
      state: "in the outbox",
      attempts: 0,
      spans: [],
    };
    this.#events.set(id, record);
    this.#contentBytes += record.body.length;
    const ids = this.#byTrace.get(record.trace);
    if (ids === undefined) this.#byTrace.set(record.trace, [id]);
    else ids.push(id);
    while (this.#events.size > EVENTS_MAX || this.#contentBytes > CONTENT_BYTES_MAX) this.#forgetOldest();
    return record;
  }

  #forgetOldest(): void {
    const oldest = this.#events.values().next().value;
    if (oldest === undefined) return;
    this.#events.delete(oldest.id);
    this.#contentBytes -= oldest.body.length;
    const ids = this.#byTrace.get(oldest.trace)?.filter((id) => id !== oldest.id) ?? [];
    if (ids.length === 0) this.#byTrace.delete(oldest.trace);
    else this.#byTrace.set(oldest.trace, ids);
  }

  #changed(record: EventRecord): void {
    if (record.spans.length > SPANS_PER_TRACE_MAX) record.spans.splice(0, record.spans.length - SPANS_PER_TRACE_MAX);
    this.#onEvent(this.#summary(record));
  }

  #summary(record: EventRecord): EventSummary {
    const { id, attributes, topic, trace, at, state, attempts, reason, effectAt } = record;
    const cause = (this.#traces.get(trace) ?? []).find((span) => span.name === "request" && span.at <= at + 1000);
    const began = Math.min(cause?.at ?? at, at);
    return {
      id,
      type: attributes.type ?? "",
      topic,
      source: this.#causeOf(record),
      subject: attributes.subject ?? "",
      at,
      trace,
      state,
      attempts,
      ...(effectAt !== undefined && { microseconds: effectAt - began }),
      ...(reason !== undefined && { reason }),
    };
  }

  #count(name: string, milliseconds: number, failed: boolean): void {
    let durations = this.#figures.get(name);
    if (durations === undefined) {
      durations = { perSecond: new Map(), recent: [] };
      this.#figures.set(name, durations);
    }
    const second = Math.floor(Date.now() / 1000);
    durations.perSecond.set(second, (durations.perSecond.get(second) ?? 0) + 1);
    if (durations.perSecond.size > FIGURES_SECONDS * 2) {
      for (const old of durations.perSecond.keys())
        if (old <= second - FIGURES_SECONDS) durations.perSecond.delete(old);
    }
    if (durations.recent.push({ second, milliseconds, failed }) > DURATIONS_PER_FUNCTION_MAX) durations.recent.shift();
  }
}
