/** Payments of other users while another transaction holds two accounts, beside payments without locks. */
import { Client } from "pg";
import type { BenchOptions } from "./flags.ts";
import type { Figure } from "./report.ts";
import { alternate, type Database, type Listening, payments, startFunction, type User, withWorld } from "./world.ts";

export const about =
  "payments of other users while two accounts are locked and paid from, beside payments without locks";

const USERS = 200;
const CONNECTIONS = 16;
/** Payments that wait for each locked account. */
const WAITING = 4;
const RATIO_MIN = 0.8;

/** Locks accounts and keeps payments from them waiting. Returns a function that releases them, and resolves to their statuses. */
async function lock({ adminUrl }: Database, { port }: Listening, users: readonly User[]): Promise<() => Promise<void>> {
  const holder = new Client({ connectionString: adminUrl });
  await holder.connect();
  await holder.query("begin");
  await holder.query("select from billing.accounts where id = any($1) for update", [users.map(({ id }) => id)]);
  let locked = true;
  const keepPaying = async ({ token }: User) => {
    while (locked) {
      const headers = { authorization: `Bearer ${token}` };
      const answer = await fetch(`http://127.0.0.1:${port}/order/pay?idSubscription=1`, { method: "POST", headers });
      await answer.arrayBuffer();
      if (locked && answer.status !== 503) throw new Error(`A locked account was answered ${answer.status}.`);
    }
  };
  const waiting = Promise.all(users.flatMap((user) => Array.from({ length: WAITING }, () => keepPaying(user))));
  return async () => {
    locked = false;
    await holder.query("rollback");
    await holder.end();
    await waiting;
  };
}

export default async function lockedAccounts({ node, rounds, seconds }: BenchOptions): Promise<Figure[]> {
  return withWorld(async (world) => {
    const database = await world.database();
    const side = await startFunction(database, "order-pay", node);
    const [one, two, ...others] = await database.users(USERS + 2);
    if (one === undefined || two === undefined) throw new Error("The database has no users.");
    const requests = payments(others);
    const measure = async () =>
      (await world.load(side, { connections: CONNECTIONS, seconds: seconds * 3, requests })).perSecond;
    const measureLocked = async () => {
      const release = await lock(database, side, [one, two]);
      try {
        return await measure();
      } finally {
        await release();
      }
    };
    const [locked = [], undisturbed = []] = await alternate(rounds, [measureLocked, measure]);
    await side.stop();
    return [
      {
        what: "payments/s while two accounts are locked; floor: undisturbed",
        lotus: locked,
        floor: undisturbed,
        targets: [{ of: "floor", min: RATIO_MIN }],
      },
    ];
  });
}
