/** Measures a backlog of the outbox on its way through the relay, Kafka and the trigger. */
import { setTimeout as delay } from "node:timers/promises";
import { makeOverdue, newUser } from "../testing/lotus.ts";
import { memoryPeakMebibytes } from "../testing/process.ts";
import type { BenchOptions } from "./flags.ts";
import { processOf, withKafkaLotus } from "./kafka-lotus.ts";
import type { Figure } from "./report.ts";

export const about =
  "a backlog of the outbox, published by the relay and settled by the trigger, with a payment meanwhile";

const EVENTS = 30_000;
const USERS = 50;
const LOOK_MILLISECONDS = 100;
const SETTLED_PER_SECOND_MIN = 3_000;
const MEMORY_MEBIBYTES_MAX = 150;
/** Part of the backlog that is left when the payment begins. */
const PAYMENT_AT = 0.9;

export default async function backlog({ rounds }: BenchOptions): Promise<Figure[]> {
  return withKafkaLotus(async (lotus) => {
    const { database } = lotus;
    const user = await newUser(lotus, 1000);
    const count = async () => {
      const { rows } = await database.query("select count(*)::int as waiting from events.outbox");
      return rows[0].waiting as number;
    };
    const measured = { published: [] as number[], settled: [] as number[], paid: [] as number[] };
    for (let round = 0; round < rounds; round++) {
      await database.query(
        `select events.emit('notification-requested', 1, 'bench', u.id, null,
          jsonb_build_object('userId', u.id, 'recipient', 'a@example.com', 'kind', 'message', 'message', 'number ' || n))
         from generate_series(1, $1) n, lateral (select md5((n % $2)::text)::uuid as id) u`,
        [EVENTS, USERS],
      );
      await makeOverdue(database);
      const began = performance.now();
      const seconds = () => (performance.now() - began) / 1000;
      const ticked = lotus.tick().then(() => measured.published.push(EVENTS / seconds()));
      let paid: number | undefined;
      for (let waiting = EVENTS; waiting > 0; waiting = await count()) {
        await delay(LOOK_MILLISECONDS);
        if (paid !== undefined || waiting > EVENTS * PAYMENT_AT) continue;
        const asked = performance.now();
        const { body } = await user.call("POST /order/pay?idSubscription=1");
        const notifications = await user.call("GET /notification");
        paid = performance.now() - asked;
        if (!notifications.body[0].message.includes(String(body.balance)))
          throw new Error("The notification of the payment is missing.");
      }
      measured.settled.push(EVENTS / seconds());
      if (paid !== undefined) measured.paid.push(paid);
      await ticked;
    }
    const memory = async (name: string): Promise<Figure> => ({
      what: `memory of ${name} at most, MiB`,
      lotus: [await memoryPeakMebibytes(processOf(lotus, name))],
      targets: [{ of: "lotus", max: MEMORY_MEBIBYTES_MAX }],
    });
    return [
      { what: "backlog: events/s published by the relay", lotus: measured.published },
      {
        what: "backlog: events/s settled by the trigger",
        lotus: measured.settled,
        targets: [{ of: "lotus", min: SETTLED_PER_SECOND_MIN }],
      },
      { what: "backlog: a payment and its notification meanwhile, ms", lotus: measured.paid },
      await memory("events-relay"),
      await memory("notification-store"),
    ];
  });
}
