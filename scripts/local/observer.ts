/** The hooks through which the console sees requests and events pass. */
import type { IncomingMessage, ServerResponse } from "node:http";

/** Is called by the gateway and the event bus. A hook returns at once and never throws. */
export interface Observer {
  /**
   * A request to a function has ended.
   * @param milliseconds from its arrival to the end of its answer, a cold start included
   * @param traceresponse the header of the answer that names its trace; undefined without an answer of the function
   */
  answered(name: string, status: number, milliseconds: number, traceresponse: string | undefined): void;
  /** The event bus has accepted an event. */
  published(headers: Readonly<Record<string, string>>, body: Buffer): void;
  /** A delivery of an event to a function has ended. Status 0: no answer came. */
  attempted(
    name: string,
    headers: IncomingMessage["headers"],
    body: Buffer | undefined,
    status: number,
    milliseconds: number,
  ): void;
}

/** A page that the gateway serves beside the functions. */
export interface Page {
  /** Whether a path belongs to the page. */
  has(path: string): boolean;
  /** Answers a request for such a path. */
  serve(incoming: IncomingMessage, outgoing: ServerResponse): void;
}
