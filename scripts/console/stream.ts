/** The stream of server-sent events for the pages: batches each 100 ms, bounded buffers, a snapshot for clients that missed too much. */
import type { IncomingMessage, ServerResponse } from "node:http";
import type { LogEvent } from "../local/control-messages.ts";
import type { Batch, EventSummary, Job, Snapshot } from "./protocol.ts";

const BATCH_MILLISECONDS = 100;
/** A client with more unsent bytes receives no further batch until it has read them. */
const UNSENT_BYTES_MAX = 1024 * 1024;
/** Batches that a client may ask for again with Last-Event-ID, and their bytes. */
const KEPT_BATCHES_MAX = 600;
const KEPT_BYTES_MAX = 8 * 1024 * 1024;
const EVENTS_PER_BATCH_MAX = 500;
const LINES_PER_BATCH_MAX = 500;
const CLIENTS_MAX = 50;
/** A message in this interval reveals a lost connection to both sides. */
const COMMENT_MILLISECONDS = 15_000;
/** How soon a browser connects again after a cut. */
const RETRY_MILLISECONDS = 1_000;

/** The parts of a batch of which only the last value counts. */
type Change = Pick<Batch, "processes" | "figures" | "database" | "spansReceived">;

interface Client {
  readonly response: ServerResponse;
  /** Rows in the batches that the client did not receive. */
  dropped: number;
}

interface Kept {
  readonly number: number;
  readonly text: string;
  readonly rows: number;
}

/** Collects changes and sends them to every client. */
export class Stream {
  readonly #run: string;
  readonly #snapshot: () => Snapshot;
  readonly #clients = new Set<Client>();
  readonly #kept: Kept[] = [];
  readonly #events = new Map<string, EventSummary>();
  #lines: LogEvent[] = [];
  #changes: Change = {};
  readonly #jobs = new Map<number, Job>();
  #dropped = 0;
  #keptBytes = 0;
  #number = 0;
  #stopped = false;
  #timer: NodeJS.Timeout | undefined;
  readonly #comments: NodeJS.Timeout;

  /** @param snapshot returns the whole state */
  constructor(run: string, snapshot: () => Snapshot) {
    this.#run = run;
    this.#snapshot = snapshot;
    this.#comments = setInterval(() => {
      for (const { response } of this.#clients) response.write(": alive\n\n");
    }, COMMENT_MILLISECONDS).unref();
  }

  /** Whether a page is connected. */
  get watched(): boolean {
    return this.#clients.size > 0;
  }

  /** Adds an event that is new or has changed. */
  event(event: EventSummary): void {
    if (this.#events.size >= EVENTS_PER_BATCH_MAX && !this.#events.has(event.id)) this.#dropped++;
    else this.#events.set(event.id, event);
    this.#soon();
  }

  /** Adds a log line. */
  line(line: LogEvent): void {
    if (this.#lines.length >= LINES_PER_BATCH_MAX) this.#dropped++;
    else this.#lines.push(line);
    this.#soon();
  }

  /** Adds other changes; a later one replaces an earlier one. */
  change(change: Change): void {
    this.#changes = { ...this.#changes, ...change };
    this.#soon();
  }

  /** Adds a job that began or changed. */
  job(job: Job): void {
    this.#jobs.set(job.id, job);
    this.#soon();
  }

  /** Connects a client. It receives what it missed, or a snapshot. False: there are too many clients, or Lotus stops. */
  connect(request: IncomingMessage, response: ServerResponse): boolean {
    if (this.#stopped || this.#clients.size >= CLIENTS_MAX) return false;
    response.writeHead(200, {
      "content-type": "text/event-stream; charset=utf-8",
      "cache-control": "no-store",
      "x-content-type-options": "nosniff",
    });
    response.write(`retry: ${RETRY_MILLISECONDS}\n\n`);
    this.#flush();
    const [run, number] = String(request.headers["last-event-id"] ?? "").split(":");
    const seen = run === this.#run && number !== undefined ? Number(number) : Number.NaN;
    const missed = this.#kept.filter((kept) => kept.number > seen);
    const complete = seen === this.#number || missed[0]?.number === seen + 1;
    const client: Client = { response, dropped: 0 };
    if (complete) for (const { text } of missed) response.write(text);
    else this.#sendSnapshot(client);
    this.#clients.add(client);
    response.once("close", () => this.#clients.delete(client));
    return true;
  }

  /** Ends every connection. */
  stop(): void {
    this.#stopped = true;
    clearInterval(this.#comments);
    clearTimeout(this.#timer);
    for (const { response } of this.#clients) response.end();
    this.#clients.clear();
  }

  #soon(): void {
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      this.#flush();
    }, BATCH_MILLISECONDS).unref();
  }

  #flush(): void {
    const events = [...this.#events.values()];
    const jobs = [...this.#jobs.values()];
    const batch: Batch = {
      ...(events.length > 0 && { events }),
      ...(this.#lines.length > 0 && { lines: this.#lines }),
      ...this.#changes,
      ...(jobs.length > 0 && { jobs }),
      ...(this.#dropped > 0 && { dropped: this.#dropped }),
    };
    const rows = events.length + this.#lines.length;
    this.#events.clear();
    this.#jobs.clear();
    this.#lines = [];
    this.#changes = {};
    this.#dropped = 0;
    if (Object.keys(batch).length === 0) return;
    const number = ++this.#number;
    const text = `id: ${this.#run}:${number}\nevent: batch\ndata: ${JSON.stringify(batch)}\n\n`;
    this.#kept.push({ number, text, rows });
    this.#keptBytes += text.length;
    while (this.#kept.length > KEPT_BATCHES_MAX || this.#keptBytes > KEPT_BYTES_MAX)
      this.#keptBytes -= this.#kept.shift()?.text.length ?? this.#keptBytes;
    for (const client of this.#clients) {
      if (client.response.writableLength > UNSENT_BYTES_MAX) client.dropped += rows;
      else if (client.dropped > 0) this.#sendSnapshot(client);
      else client.response.write(text);
    }
  }

  #sendSnapshot(client: Client): void {
    const snapshot: Snapshot = { ...this.#snapshot(), ...(client.dropped > 0 && { dropped: client.dropped }) };
    client.dropped = 0;
    client.response.write(`id: ${this.#run}:${this.#number}\nevent: reset\ndata: ${JSON.stringify(snapshot)}\n\n`);
  }
}
