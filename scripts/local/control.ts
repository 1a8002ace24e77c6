/**
 * The control channel of a running Lotus: an HTTP server on loopback with JSON endpoints and server-sent events. `run.json` has its
 * address and its secret. The commands ps, logs, kill and stop use it. The console of the gateway calls it in the same process.
 */
import { randomBytes, timingSafeEqual } from "node:crypto";
import type { IncomingMessage, Server, ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { REQUEST_HEADER_BYTES_MAX } from "#kernel/limits";
import { createHttpServer } from "#kernel/listener";
import type { LogEvent, ProcessStatus } from "./control-messages.ts";
import type { FunctionProcess } from "./function-process.ts";

/** Limits the earlier lines that a new listener of the event stream can request. */
const HISTORY_LINES_MAX = 2_000;
const SECRET_BYTES = 32;
/** A listener that reads too slowly is disconnected; it continues with Last-Event-ID. */
const BUFFERED_BYTES_MAX = 1024 * 1024;

/** A process beside the functions that can be killed: Postgres, Kafka. */
export interface OtherProcess {
  status(): ProcessStatus;
  /** Sends SIGKILL. False: it does not run. */
  kill(): boolean;
}

/** The run that the control channel shows and commands. */
export interface Controlled {
  readonly folder: string;
  readonly functions: ReadonlyMap<string, FunctionProcess>;
  /** The call and the file of a function. */
  describe(name: string): Pick<ProcessStatus, "call" | "file">;
  readonly others: OtherProcess[];
  url(): string | undefined;
  /** Stops Lotus as Ctrl-C does. */
  stop(): void;
}

/** An action of a caller on a process. Only functions can be stopped cleanly, halted and continued. */
export type ProcessAction = "kill" | "stop" | "freeze" | "thaw";

/** The result of an action: `done`, an unknown name, or a process that is not in a state for this action. */
export type ActionResult = "done" | "unknown-process" | "not-running";

export interface Control {
  readonly server: Server;
  /** Callers send it as `authorization: Bearer SECRET`. */
  readonly secret: string;
  /** Records an event and sends it to the listeners. */
  record(kind: LogEvent["kind"], name: string, text: string): void;
  /** Returns the processes of this run. */
  processes(): ProcessStatus[];
  /** Returns the last events, at most 2000. */
  history(): readonly LogEvent[];
  /** Calls `listener` with each event from now on. Returns the function that ends it. */
  listen(listener: (event: LogEvent) => void): () => void;
  /** Acts on a process. */
  act(name: string, action: ProcessAction): ActionResult;
}

function problem(response: ServerResponse, status: number, code: string, detail: string): void {
  response.writeHead(status, { "content-type": "application/problem+json" });
  response.end(JSON.stringify({ status, code, detail }));
}

function json(response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { "content-type": "application/json", "cache-control": "no-store" });
  response.end(JSON.stringify(body));
}

/** Creates the server of the control channel. It does not listen yet. */
export function createControl(controlled: Controlled): Control {
  const secret = randomBytes(SECRET_BYTES).toString("base64url");
  const wanted = Buffer.from(`Bearer ${secret}`);
  const history: LogEvent[] = [];
  const listeners = new Set<(event: LogEvent) => void>();
  const began = new Date().toISOString();
  let last = 0;

  const statuses = (): ProcessStatus[] => [
    ...controlled.others.map((other) => other.status()),
    ...[...controlled.functions].map(
      ([name, fn]): ProcessStatus => ({ name, kind: "function", ...fn.status(), ...controlled.describe(name) }),
    ),
  ];

  const isAllowed = ({ headers, socket }: IncomingMessage): boolean => {
    const given = Buffer.from(headers.authorization ?? "");
    const { port } = socket.address() as AddressInfo;
    // The name of another host in Host means that a page reached this server by DNS rebinding.
    const ownHost = [`127.0.0.1:${port}`, `localhost:${port}`].includes(headers.host ?? "");
    return ownHost && given.length === wanted.length && timingSafeEqual(given, wanted);
  };

  const stream = (request: IncomingMessage, response: ServerResponse, query: URLSearchParams): void => {
    const name = query.get("name");
    const after = Number(request.headers["last-event-id"] ?? Number.NaN);
    const count = Math.min(Number(query.get("history") ?? 0) || 0, HISTORY_LINES_MAX);
    response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
    response.flushHeaders();
    const send = (event: LogEvent) => {
      if (name !== null && event.name !== name) return;
      response.write(`id: ${event.id}\nevent: ${event.kind}\ndata: ${JSON.stringify(event)}\n\n`);
      if (response.writableLength > BUFFERED_BYTES_MAX) response.destroy();
    };
    const own = history.filter((event) => name === null || event.name === name);
    const missed = Number.isNaN(after) ? (count === 0 ? [] : own.slice(-count)) : own.filter(({ id }) => id > after);
    for (const event of missed) send(event);
    listeners.add(send);
    response.once("close", () => listeners.delete(send));
  };

  const act = (name: string, action: ProcessAction): ActionResult => {
    const other = controlled.others.find((candidate) => candidate.status().name === name);
    const fn = controlled.functions.get(name);
    if (other === undefined && fn === undefined) return "unknown-process";
    if (other !== undefined) return action === "kill" && other.kill() ? "done" : "not-running";
    if (action === "stop") {
      if (fn?.status().pid === undefined) return "not-running";
      void fn.stop();
      return "done";
    }
    return fn?.[action]() ? "done" : "not-running";
  };

  const kill = (response: ServerResponse, name: string): void => {
    const result = act(name, "kill");
    if (result === "done") json(response, 200, { killed: name });
    else if (result === "not-running") problem(response, 409, result, `${name} has no process now.`);
    else problem(response, 404, result, `No process is called ${name}.`);
  };

  const server = createHttpServer(REQUEST_HEADER_BYTES_MAX, (request, response) => {
    if (!isAllowed(request))
      return problem(response, 401, "unauthorized", "The secret of the run is missing or wrong.");
    const { pathname, searchParams } = new URL(request.url ?? "/", "http://localhost");
    const call = `${request.method} ${pathname}`;
    const killed = /^POST \/processes\/([a-z0-9-]+)\/kill$/.exec(call)?.[1];
    if (killed !== undefined) return kill(response, killed);
    if (call === "GET /run")
      return json(response, 200, { pid: process.pid, url: controlled.url(), folder: controlled.folder, began });
    if (call === "GET /processes") return json(response, 200, statuses());
    if (call === "GET /events") return stream(request, response, searchParams);
    if (call === "POST /stop") {
      json(response, 202, { stopping: true });
      return controlled.stop();
    }
    problem(response, 404, "not-found", `The control channel has no ${call}.`);
  });

  return {
    server,
    secret,
    record(kind, name, text) {
      const event: LogEvent = { id: ++last, kind, time: new Date().toISOString(), name, text };
      if (history.push(event) > HISTORY_LINES_MAX) history.shift();
      for (const send of listeners) send(event);
    },
    processes: statuses,
    history: () => history,
    listen(listener) {
      listeners.add(listener);
      return () => void listeners.delete(listener);
    },
    act,
  };
}
