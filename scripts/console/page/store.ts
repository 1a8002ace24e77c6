/** The state of the page, filled by the stream. Signals update the parts that read them. */
import { computed, signal } from "@preact/signals";
import type { LogEvent, ProcessStatus } from "../../local/control-messages.ts";
import type {
  Batch,
  DatabaseFigures,
  EventSummary,
  FunctionFigures,
  Job,
  KafkaOrigin,
  Snapshot,
  SpanTarget,
  Topology,
} from "../protocol.ts";

const EVENTS_MAX = 10_000;
const LINES_MAX = 20_000;
const JOBS_MAX = 20;
const AGAIN_MILLISECONDS = 1_000;

/** A log line with the fields that the page filters by. */
export interface ParsedLine extends LogEvent {
  readonly level: string;
  readonly trace: string;
  readonly message: string;
}

export type ConnectionState = "connecting" | "live" | "reconnecting";
export const connection = signal<ConnectionState>("connecting");
/** Counts the returns of the stream. Data that failed to load meanwhile is read again. */
export const reconnections = signal(0);
/** The moment of the last message, in microseconds since 1970 by the clock of the browser. */
export const lastMessageAt = signal(0);
export const run = signal("");
export const dropped = signal(0);
export const topology = signal<Topology>({ endpoints: [], topics: [], triggers: [], others: [] });
export const kafkaOrigin = signal<KafkaOrigin>("none");
export const ownPostgres = signal(false);
export const spanTarget = signal<SpanTarget>("nowhere");
/** Counts the spans that Lotus has received. */
export const spansReceived = signal(0);
export const processes = signal<readonly ProcessStatus[]>([]);
export const figures = signal<ReadonlyMap<string, FunctionFigures>>(new Map());
export const database = signal<DatabaseFigures | string>("");
export const jobs = signal<readonly Job[]>([]);
/** Counts the changes of the events and of the lines, which are too many to copy. */
export const eventsVersion = signal(0);
export const linesVersion = signal(0);
/** Functions and topics that the last batch touched. */
export const touched = signal<ReadonlySet<string>>(new Set());

export const events = new Map<string, EventSummary>();
export const lines: ParsedLine[] = [];

/** The figures of the database; undefined while it does not answer. */
export const databaseFigures = computed(() => (typeof database.value === "string" ? undefined : database.value));

/** The figures come once a second and may lie a second apart from the counts: a request is in one of these. */
const RECENT_SECONDS = 3;

/** Returns the requests of a function in the last seconds. */
export const recentRequests = (name: string): number =>
  (figures.value.get(name)?.perSecond ?? []).slice(-RECENT_SECONDS).reduce((sum, count) => sum + count, 0);

/** Requests of the last ten seconds, divided by ten. */
export const requestsPerSecond = computed(() => {
  let sum = 0;
  for (const { perSecond } of figures.value.values()) for (const count of perSecond.slice(-11, -1)) sum += count;
  return sum / 10;
});

function parse(line: LogEvent): ParsedLine {
  if (line.kind === "line" && line.text.startsWith("{")) {
    try {
      const fields = JSON.parse(line.text) as Record<string, string | number | undefined>;
      const { level, trace_id: trace, message, method, path, status, milliseconds, reason } = fields;
      const what = method === undefined ? String(message ?? "") : `${status} ${method} ${path}`;
      const took = milliseconds === undefined ? "" : `  ${milliseconds} ms`;
      const because = reason === undefined ? "" : `  ${reason}`;
      return { ...line, level: String(level ?? "info"), trace: String(trace ?? ""), message: what + took + because };
    } catch {
      // A line that only begins like JSON stays text.
    }
  }
  return { ...line, level: line.kind === "news" ? "news" : "text", trace: "", message: line.text };
}

function addEvents(changed: readonly EventSummary[]): void {
  for (const event of changed) events.set(event.id, event);
  for (const id of events.keys()) {
    if (events.size <= EVENTS_MAX) break;
    events.delete(id);
  }
  eventsVersion.value++;
}

function addLines(added: readonly LogEvent[]): void {
  for (const line of added) lines.push(parse(line));
  if (lines.length > LINES_MAX) lines.splice(0, lines.length - LINES_MAX);
  linesVersion.value++;
}

function apply(batch: Batch): void {
  if (batch.events) {
    addEvents(batch.events);
    touched.value = new Set(batch.events.flatMap(({ source, topic }) => [source, topic]));
  }
  if (batch.lines) addLines(batch.lines);
  if (batch.processes) processes.value = batch.processes;
  if (batch.figures) figures.value = new Map(batch.figures.map((each) => [each.name, each]));
  if (batch.database !== undefined) database.value = batch.database;
  if (batch.spansReceived !== undefined) spansReceived.value = batch.spansReceived;
  if (batch.jobs) {
    const all = new Map([...jobs.value, ...batch.jobs].map((job) => [job.id, job]));
    jobs.value = [...all.values()].sort((a, b) => b.id - a.id).slice(0, JOBS_MAX);
  }
  if (batch.dropped) dropped.value += batch.dropped;
}

function reset(snapshot: Snapshot): void {
  const isOther = run.value !== snapshot.run;
  run.value = snapshot.run;
  topology.value = snapshot.topology;
  kafkaOrigin.value = snapshot.kafka;
  ownPostgres.value = snapshot.ownPostgres;
  spanTarget.value = snapshot.spanTarget;
  if (isOther) {
    events.clear();
    lines.length = 0;
    jobs.value = [];
  }
  const known = new Set(lines.map(({ id }) => id));
  apply({
    ...snapshot,
    // The snapshot begins with the newest event, the store with the oldest.
    events: [...(snapshot.events ?? [])].reverse(),
    lines: (snapshot.lines ?? []).filter(({ id }) => !known.has(id)),
  });
  touched.value = new Set();
}

function receive(kind: string, text: string): void {
  lastMessageAt.value = Date.now() * 1_000;
  if (kind === "reset") reset(JSON.parse(text) as Snapshot);
  else apply(JSON.parse(text) as Batch);
}

interface TrustedTypes {
  createPolicy(
    name: string,
    rules: { createScriptURL(text: string): string },
  ): { createScriptURL(text: string): string };
}

/** The policy of the page allows one script address to be made by the page: that of the worker. */
function workerUrl(): string {
  const url = "/console/worker.js";
  const { trustedTypes } = globalThis as { trustedTypes?: TrustedTypes };
  if (trustedTypes === undefined) return url;
  const policy = trustedTypes.createPolicy("lotus", {
    createScriptURL(text) {
      if (text !== url) throw new TypeError("The page loads no other script.");
      return text;
    },
  });
  return policy.createScriptURL(url);
}

function setConnection(state: ConnectionState): void {
  if (state === "live" && connection.value === "reconnecting") reconnections.value++;
  connection.value = state;
}

/** One stream for a tab that is visible, for browsers without SharedWorker. */
function connectAlone(): void {
  let source: EventSource | undefined;
  const open = () => {
    source?.close();
    if (document.hidden) return;
    const opened = new EventSource("/console/stream");
    source = opened;
    opened.onopen = () => setConnection("live");
    opened.onerror = () => {
      setConnection("reconnecting");
      if (opened.readyState === EventSource.CLOSED) setTimeout(() => source === opened && open(), AGAIN_MILLISECONDS);
    };
    for (const kind of ["reset", "batch"])
      opened.addEventListener(kind, (event) => receive(kind, (event as MessageEvent<string>).data));
  };
  document.addEventListener("visibilitychange", open);
  open();
}

/** Connects the store to the stream. */
export function connect(): void {
  if (!("SharedWorker" in globalThis)) {
    connectAlone();
    return;
  }
  const { port } = new SharedWorker(workerUrl(), { name: "lotus" });
  port.onmessage = ({ data }: MessageEvent<{ kind: string; text?: string; state?: ConnectionState }>) => {
    if (data.state !== undefined) setConnection(data.state);
    else receive(data.kind, data.text ?? "");
  };
  addEventListener("pagehide", (event) => {
    if (!event.persisted) port.postMessage("bye");
  });
}
