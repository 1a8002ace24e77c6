/** Payments that all come from one account, which must follow one another, against payments spread over many accounts. */
import { report } from "./report.ts";
import { alternate, readLoadFlags, startPay, withWorld } from "./world.ts";

export const about = "payments a second on one account, against payments spread over 200 (≥ .5)";

const USERS = 200;
const RATIO_MIN = 0.5;

export default async function hotAccount(args: readonly string[]): Promise<void> {
  const options = readLoadFlags(args);
  await withWorld(async (world) => {
    const database = await world.database();
    const { port, stop } = await startPay(database, options.node);
    const [hot, ...spread] = (await database.users(USERS + 1)).map(({ token }) => token);
    const [one, many] = await alternate(options, [
      (seconds) => world.load({ port, seconds, tokens: [hot ?? ""] }),
      (seconds) => world.load({ port, seconds, tokens: spread }),
    ]);
    await stop();
    report([{ what: "payments a second", lotus: one, floor: many, ratioMin: RATIO_MIN }], ["one account", "many"]);
  });
}
