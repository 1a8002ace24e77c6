/** POST /order/pay through one function process, beside the floor and the conventional implementation. */
import type { BenchOptions } from "./flags.ts";
import type { Figure } from "./report.ts";
import { alternate, payments, type Sample, startFunction, withWorld } from "./world.ts";

export const about =
  "payments at 1, 16 and 64 connections: rate, p50, p99 and CPU, beside the floor and the conventional way";

const USERS = 200;
const CONNECTIONS = [1, 16, 64];
/** Node 20 runs the functions framework and the driver slower than Node 24. */
const RATE_TO_FLOOR_MIN = { 20: 0.8, 24: 1 };
const RATE_TO_CONVENTIONAL_MIN = 3;
const CPU_TO_FLOOR_MAX = 1;
const SINGLE_P50_TO_FLOOR_MAX = 1.5;
const POSTGRES_MICROSECONDS_MAX = 300;

export default async function pay({ node, rounds, seconds, nodeMajor }: BenchOptions): Promise<Figure[]> {
  return withWorld(async (world) => {
    const database = await world.database();
    const users = await database.users(USERS);
    const brokers = await world.brokers();
    const sides = [
      await startFunction(database, "order-pay", node, brokers),
      await world.program("floor.ts", users, node),
      ...(brokers === undefined ? [] : [await world.program("conventional.ts", users, node)]),
    ];
    const requests = payments(users);
    const figures: Figure[] = [];
    for (const connections of CONNECTIONS) {
      const [lotus = [], floor = [], conventional] = await alternate(
        rounds,
        sides.map((side) => () => world.load(side, { connections, seconds, requests })),
      );
      const figure = (what: string, of: (sample: Sample) => number, extra: Partial<Figure> = {}): Figure => ({
        what: `${what}, ${connections} ${connections === 1 ? "connection" : "connections"}`,
        lotus: lotus.map(of),
        floor: floor.map(of),
        ...(conventional === undefined ? {} : { conventional: conventional.map(of) }),
        ...extra,
      });
      const isMain = connections === 16;
      const rateMin = nodeMajor < 24 ? RATE_TO_FLOOR_MIN[20] : RATE_TO_FLOOR_MIN[24];
      figures.push(
        figure("payments/s", ({ perSecond }) => perSecond, {
          ...(isMain && {
            targets: [
              { of: "floor", min: rateMin },
              ...(conventional === undefined ? [] : [{ of: "conventional" as const, min: RATE_TO_CONVENTIONAL_MIN }]),
            ],
          }),
        }),
        figure("p50, ms", ({ medianMilliseconds }) => medianMilliseconds, {
          digits: 1,
          ...(connections === 1 && { targets: [{ of: "floor", max: SINGLE_P50_TO_FLOOR_MAX }] }),
        }),
        figure("p99, ms", ({ p99Milliseconds }) => p99Milliseconds, { digits: 1 }),
        figure(
          "CPU per payment, µs",
          ({ processMicroseconds, postgresMicroseconds }) => processMicroseconds + postgresMicroseconds,
          isMain ? { targets: [{ of: "floor", max: CPU_TO_FLOOR_MAX }] } : {},
        ),
        figure("CPU of the process, µs", ({ processMicroseconds }) => processMicroseconds),
        figure(
          "CPU of Postgres, µs",
          ({ postgresMicroseconds }) => postgresMicroseconds,
          isMain ? { targets: [{ of: "lotus", max: POSTGRES_MICROSECONDS_MAX }] } : {},
        ),
      );
    }
    await Promise.all(sides.map((side) => side.stop()));
    return figures;
  });
}
