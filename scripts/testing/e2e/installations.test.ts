import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { readInstallation } from "../../database/installation.ts";
import type { Kafka } from "../../kafka/cluster.ts";
import { asAdmin, canStartKafka, endOf, startTestKafka } from "../kafka.ts";
import { eventually, newUser, relayNow, settled, startTestLotus, type TestLotus } from "../lotus.ts";

async function idsOf(lotus: TestLotus, from: string): Promise<string[]> {
  const { rows } = await lotus.database.query(`select distinct ${from} order by 1`);
  return rows.map(({ id }) => id);
}

async function expectOwnData(lotus: TestLotus): Promise<void> {
  await settled(lotus);
  const users = await idsOf(lotus, "id from profile.users");
  expect(await idsOf(lotus, "id from billing.accounts where kind = 'user'")).toEqual(users);
  expect(await idsOf(lotus, "user_id as id from notification.notifications")).toEqual(users);
}

describe.skipIf(!canStartKafka)("two installations on one Kafka", () => {
  let kafka: Kafka;
  let both: TestLotus[] = [];
  beforeAll(async () => {
    kafka = await startTestKafka();
  });
  afterAll(async () => {
    for (const lotus of both) await lotus.stop();
    await kafka?.stop();
  });

  it("store only their own accounts and notifications, and both outboxes drain, also without prefixes", async () => {
    both = [await startTestLotus({ kafka }), await startTestLotus({ kafka })];
    const [one, other] = both as [TestLotus, TestLotus];
    expect(await readInstallation(one.adminUrl)).not.toBe(await readInstallation(other.adminUrl));
    for (let n = 0; n < 12; n++) await newUser(one, 10);
    for (let n = 0; n < 5; n++) await newUser(other, 10);
    for (const lotus of both) await expectOwnData(lotus);
    // Each event of the other installation is a dead letter that names the cause.
    await eventually("the events of the other installation are dead letters", async () => {
      const { rows } = await other.database.query("select reason from events.dead_letters");
      return rows.length > 0 && rows.every(({ reason }) => /^The event belongs to the installation /.test(reason));
    });
    for (const lotus of both.splice(0)) await lotus.stop();
  });

  it("with prefixes have topics of their own, and no dead letters", async () => {
    both = [await startTestLotus({ kafka, kafkaPrefix: "a." }), await startTestLotus({ kafka, kafkaPrefix: "b." })];
    const before = await endOf(kafka.bootstrap, "user-registered");
    for (const lotus of both) for (let n = 0; n < 3; n++) await newUser(lotus);
    for (const lotus of both) {
      await expectOwnData(lotus);
      expect((await lotus.database.query("select reason from events.dead_letters")).rows).toEqual([]);
    }
    expect(await endOf(kafka.bootstrap, "a.user-registered")).toBe(3);
    expect(await endOf(kafka.bootstrap, "user-registered")).toBe(before);
    const { groups } = await asAdmin(kafka.bootstrap, (admin) => admin.listGroups());
    expect(groups.map(({ groupId }) => groupId)).toContainEqual(expect.stringMatching(/^b\.notification-store\./));
    for (const lotus of both.splice(0)) await lotus.stop();
  });

  it("start while the brokers are down, and publish when they are back", async () => {
    kafka.kill(0);
    const lotus = await startTestLotus({ kafka, kafkaPrefix: "late.", scheduled: false });
    both = [lotus];
    const user = await newUser(lotus, 100);
    expect((await user.call("POST /order/pay?idSubscription=1")).status).toBe(200);
    expect(lotus.news).toContainEqual(
      expect.stringMatching(/^kafka: The topics could not be created .* without Kafka/),
    );
    await kafka.restart(0);
    await eventually("the topics exist", () => lotus.news.some((line) => line.includes("the topics exist")));
    await relayNow(lotus);
    await expectOwnData(lotus);
  });
});
