/** npm run bench backlog -- [--events 50000] */
import { setTimeout as delay } from "node:timers/promises";
import { table } from "../cli/output.ts";
import { makeOverdue, newUser } from "../testing/lotus.ts";
import { memoryPeakMebibytes } from "../testing/process.ts";
import { readFlags } from "./flags.ts";
import { processOf, withKafkaLotus } from "./kafka-lotus.ts";

export const about =
  "events that wait in the outbox, through relay, Kafka and trigger: 300 a second at least, in bounded memory";

const USERS = 50;
const LOOK_MILLISECONDS = 250;

export default async function backlog(args: readonly string[]): Promise<void> {
  const { events } = readFlags(args, { events: 50_000 });
  await withKafkaLotus(async (lotus) => {
    const { database } = lotus;
    const user = await newUser(lotus, 1000);
    await database.query(
      `select events.emit('notification-requested', 1, 'bench', u.id, null,
        jsonb_build_object('userId', u.id, 'recipient', 'a@example.com', 'kind', 'message', 'message', 'number ' || n))
       from generate_series(1, $1) n, lateral (select md5((n % $2)::text)::uuid as id) u`,
      [events, USERS],
    );
    await makeOverdue(database);
    const count = async () => {
      const { rows } = await database.query("select count(*)::int as waiting from events.outbox");
      return rows[0].waiting as number;
    };
    const began = performance.now();
    const seconds = () => (performance.now() - began) / 1000;
    let published = 0;
    const ticked = lotus.tick().then(() => {
      published = seconds();
    });
    let paid = 0;
    for (let waiting = events; waiting > 0; waiting = await count()) {
      await delay(LOOK_MILLISECONDS);
      if (paid === 0 && waiting < events * 0.9) {
        const asked = performance.now();
        const { body } = await user.call("POST /order/pay?idSubscription=1");
        const told = await user.call("GET /notification");
        paid = performance.now() - asked;
        if (!told.body[0].message.includes(String(body.balance)))
          throw new Error("The payment's notification is not there.");
      }
    }
    const drained = seconds();
    await ticked;
    const rows = [
      ["published by the relay", `${(events / published).toFixed(0)} events/s`, ""],
      ["settled by the trigger", `${(events / drained).toFixed(0)} events/s`, "≥ 300"],
      ["a payment and its notification meanwhile", `${paid.toFixed(0)} ms`, ""],
    ];
    for (const name of ["events-relay", "notification-store"]) {
      const most = await memoryPeakMebibytes(processOf(lotus, name));
      rows.push([`the most memory of ${name}`, `${most.toFixed(0)} MiB`, ""]);
    }
    console.log(table([[`${events} events`, "", "target"], ...rows]));
  });
}
