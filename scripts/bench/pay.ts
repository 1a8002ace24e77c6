/** POST /order/pay through one function process, against the least that the same payment can cost. */
import { parseArgs } from "node:util";
import { report } from "./report.ts";
import { program, start, startPay, startWorld } from "./world.ts";

export const about = "payments a second of one process, against bare node:http, pg and the same statement (≥ .35)";

const USERS = 200;
/** On Node 24 the functions framework costs half as much. */
const target = (node: string) => (Number(/v?(\d+)/.exec(node)?.[1]) >= 24 ? 0.45 : 0.35);

export default async function pay(args: readonly string[]): Promise<void> {
  const { values } = parseArgs({
    args: [...args],
    options: {
      rounds: { type: "string", default: "7" },
      seconds: { type: "string", default: "4" },
      node: { type: "string", default: process.execPath },
    },
  });
  const seconds = Number(values.seconds);
  const world = await startWorld();
  try {
    const database = await world.database();
    const tokens = (await database.users(USERS)).map(({ token }) => token);
    const lotus = await startPay(database, values.node);
    const floor = await start(program("floor"), database.directEnvironment, values.node);
    const measure = (port: number, duration = seconds) => world.load({ port, tokens, seconds: duration });
    const sides = { lotus: [] as number[], floor: [] as number[] };
    for (const { port } of [lotus, floor]) await measure(port, seconds / 2);
    for (let round = 0; round < Number(values.rounds); round++) {
      sides.lotus.push((await measure(lotus.port)).perSecond);
      sides.floor.push((await measure(floor.port)).perSecond);
    }
    await Promise.all([lotus.stop(), floor.stop()]);
    report([{ what: "payments a second", lotus: sides.lotus, floor: sides.floor, atLeast: target(values.node) }]);
  } finally {
    await world.stop();
  }
}
