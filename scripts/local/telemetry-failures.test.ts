import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { cp, mkdtemp, rm } from "node:fs/promises";
import { createServer, type RequestListener, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { afterEach, beforeEach, describe, expect, inject, it } from "vitest";
import { bundleOf, DIST, programOf } from "../build/bundles.ts";
import { telemetryFiles } from "../build/telemetry.ts";
import { eventually } from "../testing/lotus.ts";
import { type OtlpReceiver, startOtlpReceiver } from "./otlp-receiver.ts";

/** A function that needs no database. */
const NAME = "profile-jwks";
const SHUTDOWN_MILLISECONDS_MAX = 2_500;

let folder: string;
const children: ChildProcess[] = [];
const servers: Server[] = [];
const receivers: OtlpReceiver[] = [];

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "lotus-telemetry-"));
  for (const file of [programOf(NAME), bundleOf(NAME)]) await cp(file, join(folder, basename(file)));
});
afterEach(async () => {
  for (const child of children.splice(0)) child.kill("SIGKILL");
  for (const server of servers.splice(0)) {
    server.closeAllConnections();
    server.close();
  }
  for (const receiver of receivers.splice(0)) await receiver.stop();
  await rm(folder, { recursive: true, force: true });
});

const addTelemetry = async () => {
  for (const file of Object.values(telemetryFiles(DIST))) await cp(file, join(folder, basename(file)));
};

async function collector(listener: RequestListener): Promise<string> {
  const server = createServer(listener);
  servers.push(server);
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

interface Line {
  readonly message: string;
  readonly reason?: string;
}

interface Running {
  readonly lines: Line[];
  call(count?: number, headers?: Record<string, string>): Promise<void>;
  /** Sends SIGTERM, and resolves to the milliseconds until the end. */
  stop(): Promise<number>;
}

async function start(environment: Record<string, string>): Promise<Running> {
  const child = fork(join(folder, basename(programOf(NAME))), [], {
    env: {
      PATH: process.env.PATH,
      PORT: "0",
      JWKS_FILE: join(inject("secrets"), "public-keys", "jwks.json"),
      OTEL_BSP_SCHEDULE_DELAY: "50",
      OTEL_METRIC_EXPORT_INTERVAL: "200",
      ...environment,
    },
    silent: true,
  });
  children.push(child);
  const lines: Line[] = [];
  let rest = "";
  child.stdout?.on("data", (chunk) => {
    const texts = (rest + chunk).split("\n");
    rest = texts.pop() ?? "";
    lines.push(...texts.map((text) => JSON.parse(text) as Line));
  });
  const [{ port }] = await once(child, "message");
  return {
    lines,
    async call(count = 1, headers = {}) {
      for (let index = 0; index < count; index++) {
        const { status } = await fetch(`http://127.0.0.1:${port}/profile/jwks`, {
          headers: { connection: "close", ...headers },
        });
        expect(status).toBe(200);
      }
    },
    async stop() {
      const began = performance.now();
      const ended = once(child, "exit");
      child.kill("SIGTERM");
      await ended;
      return performance.now() - began;
    },
  };
}

const warnings = (lines: readonly Line[]) => lines.filter(({ message }) => message.includes("telemetry"));

describe("a function without telemetry", () => {
  it.each([
    ["without an endpoint", {}],
    ["with OTEL_SDK_DISABLED", { OTEL_EXPORTER_OTLP_ENDPOINT: "http://127.0.0.1:1", OTEL_SDK_DISABLED: "TRUE" }],
    [
      "without exporters",
      {
        OTEL_EXPORTER_OTLP_ENDPOINT: "http://127.0.0.1:1",
        OTEL_TRACES_EXPORTER: "none",
        OTEL_METRICS_EXPORTER: "none",
      },
    ],
  ])("%s does not read telemetry.cjs", async (_, environment) => {
    const running = await start(environment as Record<string, string>);
    await running.call(3);
    await running.stop();
    expect(running.lines.length).toBe(3);
    expect(warnings(running.lines)).toEqual([]);
  });

  it("answers without the file, and reports it once", async () => {
    const running = await start({ OTEL_EXPORTER_OTLP_ENDPOINT: "http://127.0.0.1:1" });
    await running.call(3);
    await running.stop();
    expect(warnings(running.lines).map(({ message }) => message)).toEqual([
      "telemetry does not load; the function continues without it",
    ]);
  });

  it("refuses a sampler, a protocol and an endpoint that it does not know, with an error message", async () => {
    const refused = [
      ["OTEL_TRACES_SAMPLER", "sometimes"],
      ["OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"],
      ["OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://secret@host"],
    ] as const;
    for (const [name, value] of refused) {
      const child = fork(join(folder, basename(programOf(NAME))), [], {
        env: { PATH: process.env.PATH, JWKS_FILE: join(inject("secrets"), "public-keys", "jwks.json"), [name]: value },
        silent: true,
      });
      children.push(child);
      let said = "";
      child.stderr?.on("data", (chunk) => {
        said += chunk;
      });
      const [code] = await once(child, "close");
      expect(code).toBe(1);
      expect(said).toContain(`The environment variable ${name} must be`);
      expect(said).not.toContain("secret");
    }
  });
});

describe("a collector", () => {
  beforeEach(addTelemetry);

  it("that refuses connections is named in one warning a minute", async () => {
    const running = await start({ OTEL_EXPORTER_OTLP_ENDPOINT: "http://127.0.0.1:1" });
    await running.call(40);
    await eventually("a warning is written", () => warnings(running.lines).length > 0);
    await running.call(40);
    expect(await running.stop()).toBeLessThan(SHUTDOWN_MILLISECONDS_MAX);
    expect(warnings(running.lines)).toHaveLength(1);
  });

  it("that refuses every export receives one export at a time", async () => {
    let inFlight = 0;
    let most = 0;
    let refused = 0;
    const url = await collector((request, response) => {
      if (request.url !== "/v1/traces") return void response.writeHead(200).end("{}");
      most = Math.max(most, ++inFlight);
      request.resume().once("end", () =>
        setTimeout(() => {
          inFlight--;
          refused++;
          response.writeHead(400).end();
        }, 100),
      );
    });
    const running = await start({ OTEL_EXPORTER_OTLP_ENDPOINT: url, OTEL_BSP_MAX_EXPORT_BATCH_SIZE: "2" });
    await running.call(60);
    await eventually("several exports were refused", () => refused > 5);
    await running.call(60);
    expect(most).toBe(1);
    expect(await running.stop()).toBeLessThan(SHUTDOWN_MILLISECONDS_MAX);
    expect(warnings(running.lines).length).toBeLessThanOrEqual(1);
  });

  it("without answers does not delay a request or the end", async () => {
    const url = await collector((request) => void request.resume());
    const running = await start({ OTEL_EXPORTER_OTLP_ENDPOINT: url });
    await running.call(40);
    expect(await running.stop()).toBeLessThan(SHUTDOWN_MILLISECONDS_MAX);
  });

  it("that starts again receives the following spans, and every span before the end", async () => {
    const receiver = await startOtlpReceiver();
    receivers.push(receiver);
    let away = true;
    const url = await collector(async (request, response) => {
      if (away) return void request.resume().once("end", () => response.writeHead(400).end());
      const body: Buffer[] = [];
      for await (const chunk of request) body.push(chunk);
      const headers = { "content-type": "application/json" };
      const answer = await fetch(receiver.url + request.url, { method: "POST", body: Buffer.concat(body), headers });
      response.writeHead(answer.status).end("{}");
    });
    const running = await start({ OTEL_EXPORTER_OTLP_ENDPOINT: url });
    await running.call(5);
    await eventually("a warning is written", () => warnings(running.lines).length > 0);
    away = false;
    await running.call(7);
    await running.stop();
    expect(receiver.traceIds().length).toBeGreaterThanOrEqual(7);
    expect(receiver.traceIds().length).toBeLessThanOrEqual(12);
  });
});

describe("the sampler", () => {
  beforeEach(addTelemetry);

  const exported = async (environment: Record<string, string>) => {
    const receiver = await startOtlpReceiver();
    receivers.push(receiver);
    const running = await start({ OTEL_EXPORTER_OTLP_ENDPOINT: receiver.url, ...environment });
    await running.call(30);
    await running.stop();
    return receiver.traceIds().length;
  };

  it.each([
    [{ OTEL_TRACES_SAMPLER: "always_off" }, 0, 0],
    [{ OTEL_TRACES_SAMPLER: "parentbased_traceidratio", OTEL_TRACES_SAMPLER_ARG: "0" }, 0, 0],
    [{ OTEL_TRACES_SAMPLER: "parentbased_traceidratio", OTEL_TRACES_SAMPLER_ARG: "1" }, 30, 30],
    [{ OTEL_TRACES_SAMPLER: "traceidratio", OTEL_TRACES_SAMPLER_ARG: "0.5" }, 2, 28],
  ])("%j decides before the span begins", async (environment, least, most) => {
    const count = await exported(environment as Record<string, string>);
    expect(count).toBeGreaterThanOrEqual(least);
    expect(count).toBeLessThanOrEqual(most);
  });

  it("cannot be forced by a client", async () => {
    const receiver = await startOtlpReceiver();
    receivers.push(receiver);
    const running = await start({
      OTEL_EXPORTER_OTLP_ENDPOINT: receiver.url,
      OTEL_TRACES_SAMPLER: "parentbased_traceidratio",
      OTEL_TRACES_SAMPLER_ARG: "0",
    });
    await running.call(5, { traceparent: `00-${"a".repeat(32)}-${"b".repeat(16)}-01` });
    await running.stop();
    expect(receiver.traceIds()).toEqual([]);
    expect(receiver.metrics().map(({ name }) => name)).toContain("http.server.request.duration");
  });

  it("counts two processes of one function apart", async () => {
    const receiver = await startOtlpReceiver();
    receivers.push(receiver);
    for (const _ of [1, 2]) {
      const running = await start({ OTEL_EXPORTER_OTLP_ENDPOINT: receiver.url });
      await running.call();
      await running.stop();
    }
    const starts = receiver.metrics().filter(({ name }) => name === "faas.coldstarts");
    expect(starts.map(({ value }) => value)).toEqual([1, 1]);
    expect(new Set(starts.map(({ instance }) => instance)).size).toBe(2);
  });
});
