/** Each call that moves money, through its function process. */
import { existsSync } from "node:fs";
import { programOf } from "../build/bundles.ts";
import type { BenchOptions } from "./flags.ts";
import type { LoadRequest } from "./programs/load.ts";
import type { Figure } from "./report.ts";
import { alternate, type Database, startFunction, type User, withWorld } from "./world.ts";

export const about = "each call that moves money: deposit, withdrawal, order, payment, refund, transfer";

const USERS = 200;
const CONNECTIONS = 16;

interface Call {
  readonly name: string;
  requestsOf(users: readonly User[], database: Database): Promise<LoadRequest[]>;
}

const each = (path: string, body?: string) => async (users: readonly User[]) =>
  users.map(({ token }) => ({ path, token, ...(body !== undefined && { body }) }));

const CALLS: readonly Call[] = [
  { name: "billing-add-money", requestsOf: each("/billing/add-money?money=1") },
  { name: "billing-withdraw-money", requestsOf: each("/billing/withdraw-money?money=1") },
  { name: "order-create", requestsOf: each("/order/create", '{"price":1}') },
  { name: "order-pay", requestsOf: each("/order/pay?idSubscription=1") },
  {
    name: "order-refund",
    /** Refunds paid orders; after the last one, each second refund returns the first answer. */
    async requestsOf(users, { admin }) {
      const tokens = new Map(users.map(({ id, token }) => [id, token]));
      const { rows } = await admin.query(
        `select id, user_id from "order".orders where status = 'paid' order by random()`,
      );
      return rows.flatMap(({ id, user_id }) => {
        const token = tokens.get(user_id);
        return token === undefined ? [] : [{ path: `/order/refund?id=${id}`, token }];
      });
    },
  },
  {
    name: "billing-transfer",
    async requestsOf(users, { admin }) {
      for (const { id, email } of users)
        await admin.query(
          "insert into profile.users (id, email, normal_email, password_hash) values ($1, $2, $2, '') on conflict do nothing",
          [id, email],
        );
      return users.map(({ token }, n) => {
        const to = users[(n + 1) % users.length]?.email ?? "";
        return { path: `/billing/transfer?money=1&to=${encodeURIComponent(to)}`, token };
      });
    },
  },
];

export default async function moneyCalls({ node, rounds, seconds }: BenchOptions): Promise<Figure[]> {
  return withWorld(async (world) => {
    const database = await world.database();
    const users = await database.users(USERS);
    const figures: Figure[] = [];
    for (const { name, requestsOf } of CALLS) {
      if (!existsSync(programOf(name))) continue;
      const requests = await requestsOf(users, database);
      const side = await startFunction(database, name, node);
      const [rates = []] = await alternate(rounds, [
        async () => (await world.load(side, { connections: CONNECTIONS, seconds, requests })).perSecond,
      ]);
      await side.stop();
      figures.push({ what: `${name}, calls/s`, lotus: rates });
    }
    return figures;
  });
}
