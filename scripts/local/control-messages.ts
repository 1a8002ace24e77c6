/** The state of a running Lotus, as the control channel and the console send it. */

/** One line of a function, or news of Lotus itself: a start, a crash, a dead letter. */
export interface LogEvent {
  /** Counts from 1. */
  readonly id: number;
  readonly kind: "line" | "news";
  /** RFC 3339, UTC. */
  readonly time: string;
  /** The function, or postgres, or kafka. */
  readonly name: string;
  readonly text: string;
}

/** A process of a running Lotus. */
export interface ProcessStatus {
  readonly name: string;
  readonly kind: "function" | "postgres" | "kafka";
  /** `zero` has no process. `outdated` runs code from before an edit that does not compile. `frozen` is halted by SIGSTOP. */
  readonly state: "zero" | "starting" | "running" | "outdated" | "frozen";
  readonly pid?: number;
  readonly port?: number;
  /** Requests in progress. */
  readonly inFlight?: number;
  /** The number of starts. */
  readonly starts?: number;
  /** Milliseconds from the last start to listening. */
  readonly startMilliseconds?: number;
  /** How the function is called: `POST /order/pay`, `topic user-registered`, `cron …`. */
  readonly call?: string;
  readonly file?: string;
}
