/** Measures payments from one account, which run one after the other, beside payments from many accounts. */
import type { BenchOptions } from "./flags.ts";
import type { Figure } from "./report.ts";
import { alternate, payments, startFunction, withWorld } from "./world.ts";

export const about = "payments from one account, beside payments spread over 200";

const USERS = 200;
const CONNECTIONS = 16;
const RATIO_MIN = 1;

export default async function hotAccount({ node, rounds, seconds }: BenchOptions): Promise<Figure[]> {
  return withWorld(async (world) => {
    const database = await world.database();
    const side = await startFunction(database, "order-pay", node);
    const [hot, ...others] = await database.users(USERS + 1);
    if (hot === undefined) throw new Error("The database has no users.");
    const measure = (requests: ReturnType<typeof payments>) => async () =>
      (await world.load(side, { connections: CONNECTIONS, seconds, requests })).perSecond;
    const [one = [], spread = []] = await alternate(rounds, [measure(payments([hot])), measure(payments(others))]);
    await side.stop();
    return [
      {
        what: "payments/s from one account; floor: spread",
        lotus: one,
        floor: spread,
        targets: [{ of: "floor", min: RATIO_MIN }],
      },
    ];
  });
}
