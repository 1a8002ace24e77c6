/** One function process under rising concurrency: the figures behind the targets of Knative's autoscaler. */
import { hashPassword } from "../../functions/profile/password.ts";
import type { BenchOptions } from "./flags.ts";
import type { LoadRequest } from "./programs/load.ts";
import type { Figure } from "./report.ts";
import { alternate, type Database, payments, startFunction, type User, withWorld } from "./world.ts";

export const about =
  "logins and payments of one process at 1 to 64 connections: rate and p99, for the scale of functions";

const USERS = 256;
const CONNECTIONS = [1, 2, 4, 8, 16, 32, 64];
const PASSWORD = "correct horse battery";

/** Gives every user the same password. A login of each user is then right. */
async function logins(users: readonly User[], { admin }: Database): Promise<LoadRequest[]> {
  const hash = await hashPassword(PASSWORD, "127.0.0.1");
  await admin.query(
    "insert into profile.users (id, email, normal_email, password_hash) select id, email, email, $3 from unnest($1::uuid[], $2::text[]) u (id, email)",
    [users.map(({ id }) => id), users.map(({ email }) => email), hash],
  );
  return users.map(({ email, token }) => ({
    path: "/profile/login",
    token,
    body: JSON.stringify({ email, password: PASSWORD }),
  }));
}

export default async function scale({ node, rounds, seconds }: BenchOptions): Promise<Figure[]> {
  return withWorld(async (world) => {
    const database = await world.database();
    const users = await database.users(USERS);
    const calls = { "order-pay": payments(users), "profile-login": await logins(users, database) };
    const figures: Figure[] = [];
    for (const [name, requests] of Object.entries(calls)) {
      const side = await startFunction(database, name, node);
      for (const connections of CONNECTIONS) {
        const [samples = []] = await alternate(rounds, [() => world.load(side, { connections, seconds, requests })]);
        const at = `${connections} ${connections === 1 ? "connection" : "connections"}`;
        figures.push(
          { what: `${name}, answers/s, ${at}`, lotus: samples.map(({ perSecond }) => perSecond), digits: 1 },
          { what: `${name}, p99, ms, ${at}`, lotus: samples.map(({ p99Milliseconds }) => p99Milliseconds) },
        );
      }
      await side.stop();
    }
    return figures;
  });
}
