/** POST /order/pay through one function process, against the least that the same payment can cost. */
import { execFileSync } from "node:child_process";
import { report } from "./report.ts";
import { alternate, program, readLoadFlags, start, startPay, withWorld } from "./world.ts";

export const about = "payments a second of one process, against bare node:http, pg and the same statement (≥ .35)";

const USERS = 200;

/** On Node 24 the functions framework costs half as much. */
function ratioMin(node: string): number {
  const version = execFileSync(node, ["--version"], { encoding: "utf8" });
  return Number(/^v(\d+)/.exec(version)?.[1]) >= 24 ? 0.45 : 0.35;
}

export default async function pay(args: readonly string[]): Promise<void> {
  const options = readLoadFlags(args);
  await withWorld(async (world) => {
    const database = await world.database();
    const tokens = (await database.users(USERS)).map(({ token }) => token);
    const lotus = await startPay(database, options.node);
    const floor = await start(program("floor.ts"), database.directEnvironment, options.node);
    const [ours, bare] = await alternate(options, [
      (seconds) => world.load({ port: lotus.port, tokens, seconds }),
      (seconds) => world.load({ port: floor.port, tokens, seconds }),
    ]);
    await Promise.all([lotus.stop(), floor.stop()]);
    report([{ what: "payments a second", lotus: ours, floor: bare, ratioMin: ratioMin(options.node) }]);
  });
}
