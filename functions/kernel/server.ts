/**
 * The process of a function: it listens, limits and drains, and passes each request to the functions framework. The command line of
 * the framework cannot drain, accepts bodies of a gigabyte and closes idle connections after five seconds (decision 0003).
 */
import type { IncomingMessage, RequestListener, Server, ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { cloudEvent, http } from "@google-cloud/functions-framework";
// The framework exports its request handler only here. Its server accepts no listen options (decision 0003).
import { getTestServer } from "@google-cloud/functions-framework/testing";
import { allowOrigin } from "./cors.ts";
import { closeDatabase, openDatabase } from "./database.ts";
import { forbidden, isForThisMachine, isFromPage, isSecret, RUN_HEADER } from "./doors.ts";
import { admit, type Endpoint, endSpan, spanOf, toHttpFunction, type Use } from "./endpoint.ts";
import { disconnectKafka } from "./kafka.ts";
import { createHttpServer } from "./listener.ts";
import { failure, log, logAs } from "./log.ts";
import { flushQueue } from "./outbox.ts";
import { Problem, writeProblem } from "./problem.ts";
import { hasBody, Receiver } from "./receive.ts";
import { addressOf } from "./request.ts";
import {
  CONNECTIONS_WAITING_MAX,
  DRAIN_ARRIVAL_MILLISECONDS,
  DRAIN_DATABASE_MILLISECONDS_MAX,
  DRAIN_EVENTS_MILLISECONDS_MAX,
  DRAIN_REQUESTS_MILLISECONDS_MAX,
  DRAIN_TELEMETRY_MILLISECONDS_MAX,
  EVENT_HEADER_BYTES_MAX,
  FORWARDED_HEADER_BYTES_MAX,
  RECORD_BYTES_MAX,
  REQUEST_BODY_BYTES_MAX,
  REQUESTS_IN_FLIGHT_MAX,
  REQUESTS_INCOMPLETE_MAX,
  REQUESTS_OF_ADDRESS_MAX,
  REQUESTS_OF_USER_MAX,
  readSettingFile,
  required,
  SettingsError,
  settings,
} from "./settings.ts";
import { Shares } from "./shares.ts";
import { markDelivered, readDelivery, type Subscriber, toCloudEventFunction } from "./subscriber.ts";
import { closeTelemetry, loadTelemetry, markListening, prepareTelemetry, type TelemetryModule } from "./telemetry.ts";

/** Registers a description under the function's name: with the framework in this bundle, or with the one that loads it. */
export function register(name: string, description: Endpoint | Subscriber, framework = { http, cloudEvent }): void {
  logAs(name);
  if ("method" in description) framework.http(name, toHttpFunction(name, description) as Parameters<typeof http>[1]);
  else framework.cloudEvent(name, toCloudEventFunction(name, description) as Parameters<typeof cloudEvent>[1]);
}

type FrameworkRequest = IncomingMessage & { originalUrl?: string; body?: Buffer; rawBody?: Buffer };

/**
 * A server for one function, not yet listening. The framework finds the body already read, so that it parses nothing itself.
 * @param name the function's name, such as order-pay
 */
export function createFunctionServer(
  name: string,
  description: Endpoint | Subscriber,
): { server: Server; drain(): Promise<void> } {
  register(name, description);
  const framework = getTestServer(name).listeners("request")[0] as RequestListener;
  const isEndpoint = "method" in description;
  const receiver = new Receiver(REQUESTS_INCOMPLETE_MAX, isEndpoint ? REQUEST_BODY_BYTES_MAX : RECORD_BYTES_MAX);
  const secret = settings().RUN_SECRET_FILE && readSettingFile("RUN_SECRET_FILE");
  /** A local run shows its secret. A trigger is for the event bus or a source, never for a page. */
  const isAdmitted = (request: IncomingMessage) => {
    if (!isEndpoint && (isFromPage(request) || (secret && !isForThisMachine(request)))) return false;
    return !secret || isSecret(request.headers[RUN_HEADER], secret);
  };
  const shares = new Shares(REQUESTS_IN_FLIGHT_MAX);
  /** Requests without a complete answer. */
  const unfinished = new Set<ServerResponse>();
  let draining = false;
  let arriving = true;

  const serve = async (request: FrameworkRequest, response: ServerResponse): Promise<void> => {
    if (draining) response.setHeader("connection", "close");
    unfinished.add(response);
    const beganAt = performance.now();
    if (isEndpoint) spanOf(request, name);
    response.once("close", () => {
      unfinished.delete(response);
      if (isEndpoint) endSpan(request, response, name, beganAt);
      loadTelemetry();
      if (draining) closeUnused();
    });
    if (isEndpoint) allowOrigin(request, response);
    if (!isAdmitted(request)) return writeProblem(response, forbidden());
    if (!isEndpoint && request.method !== "POST") {
      const headers = { allow: "POST" };
      return writeProblem(response, new Problem("method-not-allowed", "A trigger accepts POST.", { headers }));
    }
    // Before the token is verified and the body is received: each refusal delays the requests in progress.
    if (isEndpoint && shares.overload !== undefined) {
      request.resume();
      return writeProblem(response, shares.overload);
    }
    // The framework's function meets an error again, and answers 500.
    const admission = isEndpoint ? await admit(description, name, request).catch(() => undefined) : undefined;
    // The framework's function writes and logs an answer that needs no body.
    if (admission?.answer === undefined) {
      const address = addressOf(request);
      if (hasBody(request)) {
        const body = await receiver.receive(request, address);
        if (body instanceof Problem) return writeProblem(response, body);
        request.body = body;
        request.rawBody = body;
      }
      const { id } = admission?.user ?? {};
      // A source delivers events of all users, so it has no share.
      const clientMax =
        id !== undefined ? REQUESTS_OF_USER_MAX : isEndpoint ? REQUESTS_OF_ADDRESS_MAX : REQUESTS_IN_FLIGHT_MAX;
      const end = shares.begin(id ?? address, clientMax);
      if (end instanceof Problem) return writeProblem(response, end);
      // An endpoint works on after its client has left.
      if (admission !== undefined) admission.end = end;
      else response.once("close", end);
    }
    if (!isEndpoint) {
      const event = readDelivery(request.headers, request.body);
      markDelivered(event, request.headers.traceparent);
      // The framework would read these headers again. Its trace header belongs to another record of the same batch.
      for (const name of Object.keys(request.headers)) if (name.startsWith("ce-")) delete request.headers[name];
      delete request.headers.traceparent;
      request.body = event as Buffer;
    }
    // The process serves one function, so it needs no router. The framework's router would answer a target that it cannot decode with HTML.
    request.originalUrl = request.url ?? "/";
    request.url = "/";
    framework(request, response);
  };

  const headerBytesMax = isEndpoint ? FORWARDED_HEADER_BYTES_MAX : EVENT_HEADER_BYTES_MAX;
  const server = createHttpServer(headerBytesMax, (request, response) => {
    serve(request, response).catch((error: unknown) => {
      if (error instanceof Problem) return writeProblem(response, error);
      log("warning", "a request broke off", { reason: failure(error).reason ?? "" });
      response.destroy();
    });
  });

  /** Node counts a connection without a request as busy, and would wait for it. */
  const closeUnused = () => {
    if (unfinished.size === 0 && !arriving) server.closeAllConnections();
    else server.closeIdleConnections();
  };

  const drain = async (): Promise<void> => {
    draining = true;
    for (const response of unfinished) if (!response.headersSent) response.setHeader("connection", "close");
    const closed = new Promise<void>((resolve) => server.close(() => resolve()));
    closeUnused();
    const arrived = () => {
      arriving = false;
      closeUnused();
    };
    setTimeout(arrived, DRAIN_ARRIVAL_MILLISECONDS).unref();
    await within(closed, DRAIN_REQUESTS_MILLISECONDS_MAX, "requests were cut off");
    server.closeAllConnections();
    await within(flushQueue(), DRAIN_EVENTS_MILLISECONDS_MAX, "events were left to the relay");
    const disconnected = Promise.all([disconnectKafka(), closeDatabase()]);
    await Promise.all([
      within(disconnected, DRAIN_DATABASE_MILLISECONDS_MAX, "connections were cut"),
      within(closeTelemetry(), DRAIN_TELEMETRY_MILLISECONDS_MAX, "spans and metrics were lost"),
    ]);
  };
  return { server, drain };
}

/** Waits for `work`, but not longer than that. */
async function within(work: Promise<unknown>, milliseconds: number, otherwise: string): Promise<void> {
  const late = Symbol("late");
  const first = await Promise.race([work.catch((error: unknown) => error), delay(milliseconds, late, { ref: false })]);
  if (first === late) log("warning", `draining took too long: ${otherwise}`, { milliseconds });
  else if (first instanceof Error) log("warning", "draining failed", failure(first));
}

/** Returns the secrets that a function uses. */
export function usesOf(description: Endpoint | Subscriber): readonly Use[] {
  if (!("method" in description)) return ["database"];
  return description.uses ?? (description.caller === "user" ? ["database", "public-keys"] : ["database"]);
}

/** Returns the settings that a function needs. The generated Knative Service sets only these. */
export function settingsOf(description: Endpoint | Subscriber) {
  const uses = usesOf(description);
  return (["DATABASE_URL", "JWKS_FILE", "SIGNING_KEY_FILE"] as const).filter((name) => uses.includes(USE_OF[name]));
}

const USE_OF = { DATABASE_URL: "database", JWKS_FILE: "public-keys", SIGNING_KEY_FILE: "signing-key" } as const;

/** Read at the first request that needs them; looked at before listening, so that a missing file is an error at the start. */
const FILES = ["DATABASE_PASSWORD_FILE", "JWKS_FILE", "SIGNING_KEY_FILE", "RUN_SECRET_FILE"] as const;

/**
 * Runs a function's process: listens on PORT until SIGTERM, then drains and ends.
 * @param loadTelemetry reads telemetry.cjs; it is called after the first answer, and only with an OTLP endpoint
 */
export function main(name: string, description: Endpoint | Subscriber, loadTelemetry: () => TelemetryModule): void {
  let port: number;
  try {
    port = settings().PORT;
    prepareTelemetry(name, loadTelemetry);
    for (const name of settingsOf(description)) required(name);
    for (const name of FILES) if (settings()[name] !== undefined) readSettingFile(name);
  } catch (error) {
    if (!(error instanceof SettingsError)) throw error;
    process.stderr.write(`${error.message}\n`);
    process.exit(1);
  }
  if (usesOf(description).includes("database")) openDatabase();
  const { server, drain } = createFunctionServer(name, description);
  let stopping = false;
  const stop = () => {
    if (stopping) return;
    stopping = true;
    void drain().finally(() => process.exit());
  };
  process.on("SIGTERM", stop);
  process.on("SIGINT", stop);
  // The local gateway starts functions with a channel: when it ends, they end too.
  process.on("disconnect", stop);
  // The reader of the log lines has ended. A log line about it would fail as well.
  for (const stream of [process.stdout, process.stderr]) stream.on("error", () => undefined);
  process.on("uncaughtException", (error) => {
    log("error", "an uncaught error; the process ends", failure(error));
    process.exitCode = 1;
    stop();
  });
  server.once("error", (error: NodeJS.ErrnoException) => {
    const reason = error.code === "EADDRINUSE" ? `Port ${port} is taken; set PORT to another.` : error.message;
    process.stderr.write(`${name} cannot listen: ${reason}\n`);
    process.exit(1);
  });
  // Port 0 is any free port: the parent process receives the number through its channel.
  const { HOST: host } = settings();
  server.listen({ port, backlog: CONNECTIONS_WAITING_MAX, ...(host && { host }) }, () => {
    markListening();
    process.send?.({ port: (server.address() as AddressInfo).port });
  });
}
