import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, describe, it } from "vitest";
import { kafkaClient } from "#kernel/kafka";
import type { Kafka } from "../kafka/cluster.ts";
import { asAdmin, canStartKafka, makeTopic, startTestKafka } from "../testing/kafka.ts";
import { eventually } from "../testing/lotus.ts";
import { joinGroup } from "./group-member.ts";

const TOPIC = "records";
const GROUP = "group";
/** Brokers accept no shorter session. */
const SESSION_MILLISECONDS = 6_000;
const PAUSE_MILLISECONDS = 200;

describe.skipIf(!canStartKafka)("the foreign member of a consumer group", () => {
  let kafka: Kafka;
  beforeAll(async () => {
    kafka = await startTestKafka();
    await makeTopic(kafka.bootstrap, TOPIC);
  });
  afterAll(() => kafka?.stop());

  const state = () => asAdmin(kafka.bootstrap, async (admin) => (await admin.describeGroups([GROUP])).groups[0]?.state);

  it("has left the group after its heal, also when its broker failed and another member is lost", async () => {
    const client = await kafkaClient(kafka.bootstrap, () => undefined, "lost");
    const lost = client.consumer({
      groupId: GROUP,
      sessionTimeout: SESSION_MILLISECONDS,
      rebalanceTimeout: 2 * SESSION_MILLISECONDS,
      heartbeatInterval: SESSION_MILLISECONDS / 6,
      retry: { retries: 0, restartOnFailure: async () => false },
    });
    await lost.connect();
    await lost.subscribe({ topics: [TOPIC] });
    await lost.run({ eachMessage: async () => undefined });
    const member = await joinGroup(kafka.bootstrap, GROUP, [TOPIC], true);
    kafka.kill(0);
    await kafka.restart(0);
    // A member that joins again now waits for the lost member.
    await eventually("the group notices the lost member", async () => (await state()) !== "Stable");
    for (let left = false; !left; await delay(PAUSE_MILLISECONDS))
      left = await member.leave().then(
        () => true,
        () => false,
      );
    await lost.disconnect();
    await eventually("the group is empty", async () => ["Empty", "Dead"].includes((await state()) ?? ""));
  });
});
