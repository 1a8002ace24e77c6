/** npm run bench kafka-outage -- [--rounds 5] [--payments 200] */
import { table } from "../cli/output.ts";
import { newUser, relayNow, settled } from "../testing/lotus.ts";
import { readFlags } from "./flags.ts";
import { withKafkaLotus } from "./kafka-lotus.ts";
import { median, quantile, ratios, spread } from "./statistics.ts";

export const about = "payments while Kafka is down, beside payments while it is up: at most 1.25 times as long";

const RATIO_MAX = 1.25;
const WARM_UP_PAYMENTS = 100;
const SETTLED_MILLISECONDS_MAX = 120_000;

export default async function kafkaOutage(args: readonly string[]): Promise<void> {
  const { rounds, payments } = readFlags(args, { rounds: 5, payments: 200 });
  await withKafkaLotus(async (lotus) => {
    const user = await newUser(lotus, 10_000_000);
    /** Pays one after the other; the answers' times in milliseconds. */
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
      up.push(await pay(payments));
      await settled(lotus, SETTLED_MILLISECONDS_MAX);
      lotus.kafka.kill(0);
      down.push(await pay(payments));
      await lotus.kafka.restart(0);
      await relayNow(lotus);
    }
    await settled(lotus, SETTLED_MILLISECONDS_MAX);
    const [upMedians, downMedians] = [up.map(median), down.map(median)];
    const p99 = (of: number[][]) => quantile(of.flat(), 0.99).toFixed(1);
    console.log(
      table([
        [`${rounds} rounds of ${payments} payments`, "median of medians, ms", "p99, ms", "target"],
        ["Kafka is up", spread(upMedians), p99(up), ""],
        ["Kafka is down", spread(downMedians), p99(down), ""],
        ["down / up, round by round", spread(ratios(downMedians, upMedians), 2), "", `≤ ${RATIO_MAX}`],
      ]),
    );
  });
}
