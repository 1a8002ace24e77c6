/**
 * Runs the process of a function. It listens, limits the load, passes each request to the functions framework, and drains after
 * SIGTERM. The framework's own listener cannot drain, and accepts bodies of a gigabyte (decision 0003).
 */
import { IncomingMessage, type RequestListener, type Server, ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { cloudEvent, http } from "@google-cloud/functions-framework";
// The framework exports its request handler only here. Its server accepts no listen options (decision 0003).
import { getTestServer } from "@google-cloud/functions-framework/testing";
import { allowOrigin } from "./cors.ts";
import { closeDatabase, openDatabase } from "./database.ts";
import { admit, type Endpoint, endSpan, spanOf, toHttpFunction, type Use } from "./endpoint.ts";
import { disconnectKafka } from "./kafka.ts";
import {
  CONNECTIONS_MAX,
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
} from "./limits.ts";
import { createHttpServer } from "./listener.ts";
import { forbidden, isForThisMachine, isFromPage, isSecret, RUN_HEADER } from "./local-access.ts";
import { failure, log, logAs } from "./log.ts";
import { flushQueue } from "./outbox.ts";
import { Problem, writeProblem } from "./problem.ts";
import { addressOf } from "./request.ts";
import { hasBody, Receiver } from "./request-body.ts";
import { RequestsInProgress } from "./requests-in-progress.ts";
import { readSettingFile, required, SettingsError, settings } from "./settings.ts";
import { markDelivered, readDelivery, type Subscriber, toCloudEventFunction } from "./subscriber.ts";
import { closeTelemetry, loadTelemetry, markListening, prepareTelemetry, type TelemetryModule } from "./telemetry.ts";

/**
 * Registers a function with the functions framework under its name.
 * @param framework the framework of this bundle, or the one whose command line loads the bundle
 */
export function register(name: string, description: Endpoint | Subscriber, framework = { http, cloudEvent }): void {
  logAs(name);
  if ("method" in description) framework.http(name, toHttpFunction(name, description) as Parameters<typeof http>[1]);
  else framework.cloudEvent(name, toCloudEventFunction(name, description) as Parameters<typeof cloudEvent>[1]);
}

/**
 * Makes the classes of the requests and responses that the framework's Express application receives. Express sets the prototype of
 * each one to its own. V8 then gives each object a hidden class that no other object has, so on Node 20 every access to a property
 * is slow. An object of these classes already has Express's prototype.
 */
function classesOf(framework: RequestListener) {
  class ExpressRequest extends IncomingMessage {}
  class ExpressResponse<Request extends IncomingMessage> extends ServerResponse<Request> {}
  const express = framework as unknown as { request: object; response: object };
  Object.setPrototypeOf(ExpressRequest.prototype, express.request);
  Object.setPrototypeOf(ExpressResponse.prototype, express.response);
  express.request = ExpressRequest.prototype;
  express.response = ExpressResponse.prototype;
  return { IncomingMessage: ExpressRequest, ServerResponse: ExpressResponse };
}

type FrameworkRequest = IncomingMessage & { originalUrl?: string; body?: Buffer; rawBody?: Buffer };

/**
 * Creates the server of one function. The server does not listen yet. It reads each body itself, so the framework parses no body.
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
  /** In a local run the gateway and the event bus send the secret of the run. A trigger also refuses browser pages. */
  const isAdmitted = (request: IncomingMessage) => {
    if (!isEndpoint && (isFromPage(request) || (secret && !isForThisMachine(request)))) return false;
    return !secret || isSecret(request.headers[RUN_HEADER], secret);
  };
  const inProgress = new RequestsInProgress(REQUESTS_IN_FLIGHT_MAX);
  /** The responses that are not complete. */
  const unfinished = new Set<ServerResponse>();
  let draining = false;
  /** False from DRAIN_ARRIVAL_MILLISECONDS after SIGTERM on: until then a request may still arrive on an open connection. */
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
    // An overloaded process refuses before it verifies the token and receives the body, so that a refusal costs little.
    if (isEndpoint && inProgress.overload !== undefined) {
      request.resume();
      return writeProblem(response, inProgress.overload);
    }
    // After an error here `toHttpFunction` calls `admit` again, receives the same error and answers 500.
    const admission = isEndpoint ? await admit(description, name, request).catch(() => undefined) : undefined;
    // If `admit` returned an answer, `toHttpFunction` writes and logs it, and does not need the body.
    if (admission?.answer === undefined) {
      const address = addressOf(request);
      if (hasBody(request)) {
        const body = await receiver.receive(request, address);
        if (body instanceof Problem) return writeProblem(response, body);
        request.body = body;
        request.rawBody = body;
      }
      const { id } = admission?.user ?? {};
      // A source delivers the events of all users, so it may use all requests in flight.
      const clientMax =
        id !== undefined ? REQUESTS_OF_USER_MAX : isEndpoint ? REQUESTS_OF_ADDRESS_MAX : REQUESTS_IN_FLIGHT_MAX;
      const endRequest = inProgress.begin(id ?? address, clientMax);
      if (endRequest instanceof Problem) return writeProblem(response, endRequest);
      // The handler of an endpoint continues after its client has closed the connection.
      if (admission !== undefined) admission.end = endRequest;
      else response.once("close", endRequest);
    }
    if (!isEndpoint) {
      const event = readDelivery(request.headers, request.body);
      markDelivered(event, request.headers.traceparent);
      // The framework would parse the event from these headers again. `traceparent` may belong to another record of the same batch.
      for (const header of Object.keys(request.headers)) if (header.startsWith("ce-")) delete request.headers[header];
      delete request.headers.traceparent;
      request.body = event as Buffer;
    }
    // The process serves one function, so every request goes to `/`. The framework's router answers an undecodable path with HTML.
    request.originalUrl = request.url ?? "/";
    request.url = "/";
    framework(request, response);
  };

  const headerBytesMax = isEndpoint ? FORWARDED_HEADER_BYTES_MAX : EVENT_HEADER_BYTES_MAX;
  const listener: RequestListener = (request, response) => {
    serve(request, response).catch((error: unknown) => {
      if (error instanceof Problem) return writeProblem(response, error);
      log("warning", "a request broke off", { reason: failure(error).reason ?? "" });
      response.destroy();
    });
  };
  const server = createHttpServer(headerBytesMax, listener, CONNECTIONS_MAX, classesOf(framework));

  /** Closes unused connections. Node does not regard a connection that never received a request as idle, and would wait for it. */
  const closeUnused = () => {
    if (unfinished.size === 0 && !arriving) server.closeAllConnections();
    else server.closeIdleConnections();
  };

  /** Finishes the requests in flight, then publishes the waiting events, then closes the connections of the function. */
  const drain = async (): Promise<void> => {
    draining = true;
    for (const response of unfinished) if (!response.headersSent) response.setHeader("connection", "close");
    const closed = new Promise<void>((resolve) => server.close(() => resolve()));
    closeUnused();
    const endArrival = () => {
      arriving = false;
      closeUnused();
    };
    setTimeout(endArrival, DRAIN_ARRIVAL_MILLISECONDS).unref();
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

/**
 * Waits for `work`, but at most for `milliseconds`. It logs a timeout or an error and never rejects.
 * @param consequence the effect of a timeout, for the log line
 */
async function within(work: Promise<unknown>, milliseconds: number, consequence: string): Promise<void> {
  const late = Symbol("late");
  const first = await Promise.race([work.catch((error: unknown) => error), delay(milliseconds, late, { ref: false })]);
  if (first === late) log("warning", `draining took too long: ${consequence}`, { milliseconds });
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

/** Names the settings of files. A request reads a file when it needs it. `main` reads all first, so that a missing file is found. */
const FILES = ["DATABASE_PASSWORD_FILE", "JWKS_FILE", "SIGNING_KEY_FILE", "RUN_SECRET_FILE"] as const;

/**
 * Runs a function's process: listens on PORT until SIGTERM, then drains and ends.
 * @param loadTelemetry reads telemetry.cjs. It is called after the first answer, and only when an OTLP endpoint is set
 */
export function main(name: string, description: Endpoint | Subscriber, loadTelemetry: () => TelemetryModule): void {
  let port: number;
  try {
    port = settings().PORT;
    prepareTelemetry(name, loadTelemetry);
    for (const setting of settingsOf(description)) required(setting);
    for (const setting of FILES) if (settings()[setting] !== undefined) readSettingFile(setting);
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
  // The local gateway starts functions with an IPC channel. When the gateway ends, the channel closes, and the function ends too.
  process.on("disconnect", stop);
  // An error here means that the reader of the log has ended. A log line about it would fail too.
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
  // Port 0 selects any free port. The parent process receives the number through the IPC channel.
  const { HOST: host } = settings();
  server.listen({ port, backlog: CONNECTIONS_WAITING_MAX, ...(host && { host }) }, () => {
    markListening();
    process.send?.({ port: (server.address() as AddressInfo).port });
  });
}
