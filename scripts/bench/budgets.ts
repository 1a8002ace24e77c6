/**
 * The figures that are cheap to measure, each with a budget: `npm run bench budgets -- --check` fails above it. docs/performance.md
 * derives the budgets from the measured spread.
 */
import { statSync } from "node:fs";
import { bundleOf } from "../build/bundles.ts";
import coldStart from "./cold-start.ts";
import type { BenchOptions } from "./flags.ts";
import type { Figure } from "./report.ts";
import { alternate, payments, startFunction, withWorld } from "./world.ts";

export const about = "the budgets of .ci/run: CPU per payment, cold start, bytes of a bundle";

const USERS = 200;
const CONNECTIONS = 16;
const PAYMENT_CPU_TO_FLOOR_MAX = 2.5;
/** CPU time, because other work of the machine changes the duration of a start by a factor of three. */
const COLD_START_CPU_TO_FLOOR_MAX = 2.8;
const BUNDLE_BYTES_MAX = 1_100_000;

async function paymentCpu({ node, rounds, seconds }: BenchOptions): Promise<Figure> {
  return withWorld(async (world) => {
    const database = await world.database();
    const users = await database.users(USERS);
    const sides = [await startFunction(database, "order-pay", node), await world.program("floor.ts", users, node)];
    const requests = payments(users);
    const cpu = (side: (typeof sides)[number]) => async () => {
      const sample = await world.load(side, { connections: CONNECTIONS, seconds, requests });
      return sample.processMicroseconds + sample.postgresMicroseconds;
    };
    const [lotus = [], floor = []] = await alternate(rounds, sides.map(cpu));
    await Promise.all(sides.map((side) => side.stop()));
    const targets = [{ of: "floor" as const, max: PAYMENT_CPU_TO_FLOOR_MAX }];
    return { what: "budget: CPU per payment, µs", lotus, floor, targets };
  });
}

async function coldStartCpu(options: BenchOptions): Promise<Figure> {
  const figure = (await coldStart(options)).find(({ what }) =>
    /^CPU until the answer.*without the database$/.test(what),
  );
  if (figure === undefined) throw new Error("The row cold-start has no CPU time of a refusal.");
  const targets = [{ of: "floor" as const, max: COLD_START_CPU_TO_FLOOR_MAX }];
  return { ...figure, what: "budget: CPU of a cold start until a refusal is answered, ms", targets };
}

export default async function budgets(options: BenchOptions): Promise<Figure[]> {
  const figures = [await paymentCpu(options), await coldStartCpu(options)];
  // The benches above have built it.
  const bytes = statSync(bundleOf("order-pay")).size;
  const targets = [{ of: "lotus" as const, max: BUNDLE_BYTES_MAX }];
  return [...figures, { what: "budget: bytes of the bundle of order-pay", lotus: [bytes], targets }];
}
