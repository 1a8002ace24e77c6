/** The messages between the gateway and the page of the console. Times are integer microseconds since 1970, by the gateway's clock. */

import type { LogEvent, ProcessStatus } from "../local/control-messages.ts";

/** The state of an event. `dead letter` and `lost` are ends; `published` is the end of an event without subscriber. */
export type EventState = "in the outbox" | "published" | "delivering" | "settled" | "dead letter" | "lost";

/** One line of the list of events. */
export interface EventSummary {
  readonly id: string;
  readonly type: string;
  readonly topic: string;
  readonly source: string;
  /** The user. */
  readonly subject: string;
  /** The commit. */
  readonly at: number;
  readonly trace: string;
  readonly state: EventState;
  /** From the start of the request, or from the commit, to the last effect. */
  readonly microseconds?: number;
  /** Deliveries that were tried. */
  readonly attempts: number;
  readonly reason?: string;
}

/** A step of an event or of a request. A step without a duration is a moment. */
export interface Span {
  readonly name: "request" | "cold start" | "commit" | "publish" | "deliver" | "effect" | "settle" | (string & {});
  /** The function. */
  readonly who: string;
  readonly at: number;
  readonly microseconds: number;
  readonly failed: boolean;
  /** One sentence or fact, such as a status. */
  readonly note?: string;
}

/** An event with its steps, its content and the log lines of its trace. */
export interface EventDetail {
  readonly event: EventSummary;
  readonly spans: readonly Span[];
  readonly attributes: Readonly<Record<string, string>>;
  /** At most 64 KiB of the content. */
  readonly body: string;
  readonly bodyBytes: number;
  /** Other events of the same trace. */
  readonly related: readonly EventSummary[];
  readonly lines: readonly LogEvent[];
}

/** A step of a trace in the order of its tree: a span that a function exported, or a step that the gateway or the event bus saw. */
export interface TraceStep extends Omit<Span, "note"> {
  readonly depth: number;
  readonly kind: "gateway" | "event bus" | "internal" | "server" | "client" | "producer" | "consumer";
  readonly attributes: Readonly<Record<string, string | number | boolean>>;
  /** The other traces that the span links to. */
  readonly links: readonly string[];
}

/** A line of the list of traces. */
export interface TraceSummary {
  readonly id: string;
  /** The first span. */
  readonly name: string;
  readonly who: string;
  readonly at: number;
  /** The duration of the first span. */
  readonly microseconds: number;
  /** From the first start to the last end. */
  readonly wholeMicroseconds: number;
  readonly spans: number;
  readonly failed: boolean;
}

/** A trace with its steps and its events. */
export interface TraceDetail {
  /** Empty: no span has arrived. */
  readonly steps: readonly TraceStep[];
  readonly events: readonly EventSummary[];
}

/** The destination of the spans of a run: the memory of the console, another collector, or none. */
export type SpanTarget = "console" | "elsewhere" | "nowhere";

/** The requests of one function in the last minute. */
export interface FunctionFigures {
  readonly name: string;
  /** Requests of each of the last 60 seconds, oldest first. */
  readonly perSecond: readonly number[];
  readonly p50Milliseconds: number;
  readonly p99Milliseconds: number;
  /** Answers from 500 on. */
  readonly errors: number;
}

/** Figures of the database. */
export interface DatabaseFigures {
  readonly outboxDepth: number;
  /** Age of the oldest row. 0: the outbox is empty. */
  readonly outboxAgeMilliseconds: number;
  readonly deadLetters: number;
  /** The sum of all balances in minor units, as decimal text. It is 0 when the ledger is right. */
  readonly trialBalance: string;
}

/** A node of the diagram. */
export interface Topology {
  readonly endpoints: readonly { readonly name: string; readonly call: string; readonly topics: readonly string[] }[];
  readonly topics: readonly string[];
  readonly triggers: readonly { readonly name: string; readonly topic: string }[];
  /** Triggers of a schedule and of dead letters, with the topics that they publish. */
  readonly others: readonly { readonly name: string; readonly call: string; readonly topics: readonly string[] }[];
}

/** The changes since the message before. */
export interface Batch {
  readonly events?: readonly EventSummary[];
  readonly lines?: readonly LogEvent[];
  readonly processes?: readonly ProcessStatus[];
  readonly figures?: readonly FunctionFigures[];
  /** A sentence: the database does not answer. */
  readonly database?: DatabaseFigures | string;
  /** Counts the spans that have arrived since the start of the run. */
  readonly spansReceived?: number;
  /** Jobs that began or changed. */
  readonly jobs?: readonly Job[];
  /** Rows that this client did not receive since the message before, because it reads too slowly or there are too many. */
  readonly dropped?: number;
}

/** The starter of the brokers: this run, or another program (`given`). With `none` the event bus carries the events. */
export type KafkaOrigin = "none" | "given" | "started";

/** The whole state, for a client that begins or has missed too much. */
export interface Snapshot extends Batch {
  /** Identifies the run. Ids of the stream begin with it. */
  readonly run: string;
  readonly topology: Topology;
  readonly kafka: KafkaOrigin;
  /** Whether Lotus started the Postgres, so that faults may be injected. */
  readonly ownPostgres: boolean;
  readonly spanTarget: SpanTarget;
}

/** A fault, a scenario or a load in progress. */
export interface Job {
  readonly id: number;
  readonly name: string;
  readonly state: "running" | "done" | "failed";
  readonly began: number;
  /** A sentence: the progress, and at the end the proof. */
  readonly text: string;
  /** Steps that are done, and all steps. */
  readonly done?: number;
  readonly of?: number;
  /** Figures of a load, one a second. */
  readonly points?: readonly LoadPoint[];
}

/** The ledger in figures. Amounts are minor units as decimal text. */
export interface LedgerSummary {
  readonly kinds: readonly { readonly kind: string; readonly accounts: string; readonly balance: string }[];
  readonly transfers: string;
  readonly entries: string;
  readonly seal: { readonly moment: string; readonly hash: string; readonly accounts: string } | null;
}

/** A user's account. */
export interface AccountRow {
  readonly id: string;
  readonly email: string | null;
  readonly balance: string;
  readonly entries: string;
  readonly lastHash: string;
  readonly openedAt: string;
}

/** An entry with its transfer. */
export interface EntryRow {
  readonly number: string;
  readonly transfer: string;
  readonly kind: string;
  readonly counterpart: string;
  readonly reference: string;
  readonly amount: string;
  readonly balanceAfter: string;
  readonly hash: string;
  readonly at: string;
}

/** An account with a page of its entries, newest first. */
export interface AccountDetail {
  readonly account: AccountRow;
  readonly entries: readonly EntryRow[];
}

/** One second of a load. */
export interface LoadPoint {
  readonly second: number;
  readonly answered: number;
  readonly failed: number;
  readonly outboxDepth: number;
}

/** A row of the outbox. */
export interface OutboxRow {
  readonly id: string;
  readonly topic: string;
  readonly subject: string;
  readonly time: string;
  readonly attempts: number;
  readonly awaiting: readonly string[];
}

/** A dead letter. */
export interface DeadLetterRow {
  readonly id: string;
  readonly event: string;
  readonly subscriber: string;
  readonly reason: string;
  readonly movedAt: string;
  readonly attributes: Readonly<Record<string, string>>;
  readonly body: string;
  readonly bodyBytes: number;
}
