/** The cost of traces and metrics: the cold start with an endpoint, and the CPU of a payment with 10 % of the traces sampled. */
import type { AddressInfo } from "node:net";
import { REQUEST_HEADER_BYTES_MAX } from "#kernel/limits";
import { createHttpServer } from "#kernel/listener";
import { programOf } from "../build/bundles.ts";
import { type Case, measure, type Start } from "./cold-start.ts";
import type { BenchOptions } from "./flags.ts";
import type { Figure } from "./report.ts";
import {
  type Database,
  type Listening,
  payments,
  program,
  type Sample,
  start,
  type User,
  type World,
  withWorld,
} from "./world.ts";

export const about = "the cold start and the CPU of a payment with traces and metrics, beside those without";

const USERS = 200;
const CONNECTIONS = 16;
const STARTS_EACH_ROUND = 5;
const COLD_START_TO_FLOOR_MAX = 2.3;
const CPU_TO_OFF_MAX = 1.1;
/**
 * Two processes of the same program differ by up to 15 % in the CPU of a payment, and keep this difference until they end. So each round
 * starts several pairs of processes. The turns of a pair alternate, so that other work of the machine falls on both.
 */
const PAIRS_EACH_ROUND = 3;
const TURNS_EACH_PAIR = 4;

/** Starts a collector that accepts everything. */
async function startCollector(): Promise<{ readonly url: string; stop(): Promise<void> }> {
  const server = createHttpServer(REQUEST_HEADER_BYTES_MAX, (request, response) => {
    request.resume().once("end", () => response.writeHead(200, { "content-type": "application/json" }).end("{}"));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    async stop() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

const sampled = (url: string) => ({
  OTEL_EXPORTER_OTLP_ENDPOINT: url,
  OTEL_TRACES_SAMPLER: "parentbased_traceidratio",
  OTEL_TRACES_SAMPLER_ARG: "0.1",
});

async function coldStart(database: Database, token: string, url: string, options: BenchOptions): Promise<Figure> {
  const pay: Case = {
    what: "",
    file: programOf("order-pay"),
    call: "POST /order/pay?idSubscription=1",
    status: 200,
    headers: { authorization: `Bearer ${token}` },
  };
  const bare: Case = { what: "", file: program("bare.cjs"), call: "GET /", status: 200 };
  const environment = { ...database.environmentOf("order-pay"), ...sampled(url) };
  const [on, floor]: [Start[], Start[]] = [[], []];
  // The first start writes V8's code cache, which the images contain.
  for (const side of [pay, bare]) await measure(side, environment, options.node);
  for (let round = 0; round < options.rounds * STARTS_EACH_ROUND; round++) {
    on.push(await measure(pay, environment, options.node));
    floor.push(await measure(bare, environment, options.node));
  }
  return {
    what: "cold start until a payment is answered, with telemetry, ms",
    lotus: on.map(({ answered }) => answered),
    floor: floor.map(({ answered }) => answered),
    targets: [{ of: "floor", max: COLD_START_TO_FLOOR_MAX }],
  };
}

/** The CPU of all payments of some samples, divided by their number. */
function microsecondsEach(samples: readonly Sample[]): number {
  const sum = (of: (sample: Sample) => number) => samples.reduce((total, sample) => total + of(sample), 0);
  return sum(({ processMicroseconds, answers }) => processMicroseconds * answers) / sum(({ answers }) => answers);
}

async function cpu(
  world: World,
  database: Database,
  users: readonly User[],
  url: string,
  options: BenchOptions,
): Promise<Figure> {
  const environment = database.environmentOf("order-pay");
  const requests = payments(users);
  const measured: { on: number[]; off: number[] } = { on: [], off: [] };
  const seconds = options.seconds / 2;
  for (let pair = 0; pair < options.rounds * PAIRS_EACH_ROUND; pair++) {
    const on = await start(programOf("order-pay"), { ...environment, ...sampled(url) }, options.node);
    const off = await start(programOf("order-pay"), environment, options.node);
    const load = (side: Listening, duration: number) =>
      world.load(side, { connections: CONNECTIONS, seconds: duration, requests });
    // Until their end, code is compiled and connections are opened.
    for (const side of [on, off]) await load(side, seconds);
    const samples: { on: Sample[]; off: Sample[] } = { on: [], off: [] };
    for (let turn = 0; turn < TURNS_EACH_PAIR; turn++) {
      const first = turn % 2 === 0 ? "on" : "off";
      const second = turn % 2 === 0 ? "off" : "on";
      for (const side of [first, second] as const)
        samples[side].push(await load({ on, off }[side], seconds / TURNS_EACH_PAIR));
    }
    measured.on.push(microsecondsEach(samples.on));
    measured.off.push(microsecondsEach(samples.off));
    await Promise.all([on.stop(), off.stop()]);
  }
  return {
    what: "CPU of the process for a payment, µs: 10 % sampled, beside no telemetry",
    lotus: measured.on,
    floor: measured.off,
    targets: [{ of: "floor", max: CPU_TO_OFF_MAX }],
  };
}

export default async function telemetry(options: BenchOptions): Promise<Figure[]> {
  return withWorld(async (world) => {
    const collector = await startCollector();
    const database = await world.database();
    const users = await database.users(USERS);
    const figures = [
      await coldStart(database, users[0]?.token ?? "", collector.url, options),
      await cpu(world, database, users, collector.url, options),
    ];
    await collector.stop();
    return figures;
  });
}
