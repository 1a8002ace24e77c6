/** The cost of traces and metrics: the cold start with an endpoint, and the CPU of a payment with 10 % of the traces sampled. */
import type { AddressInfo } from "node:net";
import { REQUEST_HEADER_BYTES_MAX } from "#kernel/limits";
import { createHttpServer } from "#kernel/listener";
import { programOf } from "../build/bundles.ts";
import { type Case, measure, type Start } from "./cold-start.ts";
import type { BenchOptions } from "./flags.ts";
import type { Figure } from "./report.ts";
import { alternate, type Database, type Listening, payments, program, start, withWorld } from "./world.ts";

export const about = "the cold start and the CPU of a payment with traces and metrics, beside those without";

const USERS = 200;
const CONNECTIONS = 16;
const STARTS_EACH_ROUND = 3;
const COLD_START_TO_FLOOR_MAX = 2.3;
const CPU_TO_OFF_MAX = 1.1;
/** The size of a batch changes the CPU of a payment by more than telemetry does. Many short turns give both sides the same batches. */
const TURNS_EACH_ROUND = 5;

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

export default async function telemetry(options: BenchOptions): Promise<Figure[]> {
  return withWorld(async (world) => {
    const collector = await startCollector();
    const database = await world.database();
    const users = await database.users(USERS);
    const cold = await coldStart(database, users[0]?.token ?? "", collector.url, options);
    const environment = database.environmentOf("order-pay");
    const sides: Listening[] = [
      await start(programOf("order-pay"), { ...environment, ...sampled(collector.url) }, options.node),
      await start(programOf("order-pay"), environment, options.node),
    ];
    const seconds = options.seconds / TURNS_EACH_ROUND;
    const load = { connections: CONNECTIONS, seconds, requests: payments(users) };
    const [on = [], off = []] = await alternate(
      options.rounds * TURNS_EACH_ROUND,
      sides.map((side) => async () => (await world.load(side, load)).processMicroseconds),
    );
    await Promise.all(sides.map((side) => side.stop()));
    await collector.stop();
    const cpu = "CPU of the process for a payment, µs: 10 % sampled, beside no telemetry";
    return [cold, { what: cpu, lotus: on, floor: off, targets: [{ of: "floor", max: CPU_TO_OFF_MAX }] }];
  });
}
