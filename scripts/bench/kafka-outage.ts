/** Payments while Kafka is down, beside payments while it is up. */
import { newUser, relayNow, settled } from "../testing/lotus.ts";
import type { BenchOptions } from "./flags.ts";
import { withKafkaLotus } from "./kafka-lotus.ts";
import type { Figure } from "./report.ts";
import { median } from "./statistics.ts";

export const about = "payments while Kafka is down, beside payments while it is up";

const RATIO_MAX = 1.25;
const PAYMENTS = 100;
const WARM_UP_PAYMENTS = 100;
const SETTLED_MILLISECONDS_MAX = 120_000;

export default async function kafkaOutage({ rounds }: BenchOptions): Promise<Figure[]> {
  return withKafkaLotus(async (lotus) => {
    const user = await newUser(lotus, 10_000_000);
    /** Pays one after the other. Returns the time of each answer in milliseconds. */
    const pay = async (count: number): Promise<number[]> => {
      const times: number[] = [];
      for (let payment = 0; payment < count; payment++) {
        const began = performance.now();
        const { status } = await user.call("POST /order/pay?idSubscription=1");
        times.push(performance.now() - began);
        if (status !== 200) throw new Error(`A payment was answered ${status}.`);
      }
      return times;
    };
    const up: number[][] = [];
    const down: number[][] = [];
    await pay(WARM_UP_PAYMENTS);
    for (let round = 0; round < rounds; round++) {
      await settled(lotus, SETTLED_MILLISECONDS_MAX);
      up.push(await pay(PAYMENTS));
      await settled(lotus, SETTLED_MILLISECONDS_MAX);
      lotus.kafka.kill(0);
      down.push(await pay(PAYMENTS));
      await lotus.kafka.restart(0);
      await relayNow(lotus);
    }
    await settled(lotus, SETTLED_MILLISECONDS_MAX);
    return [
      {
        what: "p50 of a payment while Kafka is down, ms; floor: up",
        lotus: down.map(median),
        floor: up.map(median),
        digits: 1,
        targets: [{ of: "floor", max: RATIO_MAX }],
      },
    ];
  });
}
