import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { findFunctions } from "../project/functions.ts";
import { asAdmin, endOf, kafkaSource, startTestKafka } from "../testing/kafka.ts";
import { eventually } from "../testing/lotus.ts";
import type { Kafka } from "./cluster.ts";
import { createTopics, findTopics, topicFaults } from "./topics.ts";

it("the topics are those that the triggers read or publish", async () => {
  const topics = (await findFunctions()).flatMap(({ description }) => {
    if ("topic" in description) return [description.topic];
    return "publishes" in description && description.publishes !== undefined ? [description.publishes.topic] : [];
  });
  expect(topics).toEqual(expect.arrayContaining(["ledger-sealed", "notification-requested", "user-registered"]));
  expect(await findTopics()).toEqual([...new Set(topics)].sort());
});

it("an error names brokers that do not answer", async () => {
  await expect(createTopics(["127.0.0.1:1"])).rejects.toThrow(
    /^The topics could not be created at 127\.0\.0\.1:1: .*ECONNREFUSED.*\. Does Kafka run there\?$/,
  );
});

describe.skipIf(kafkaSource === undefined)("npm run topics", () => {
  let kafka: Kafka;
  beforeAll(async () => {
    kafka = await startTestKafka();
  });
  afterAll(() => kafka?.stop());

  it("creates missing topics, and changes nothing the second time", async () => {
    await createTopics(kafka.bootstrap);
    expect(await createTopics(kafka.bootstrap)).toEqual([]);
    await asAdmin(kafka.bootstrap, async (admin) => {
      const { topics } = await admin.fetchTopicMetadata({ topics: await findTopics() });
      expect(topics.map(({ partitions }) => partitions.length)).toEqual(topics.map(() => 6));
      const { resources } = await admin.describeConfigs({
        includeSynonyms: false,
        resources: [
          { type: 2, name: "user-registered", configNames: ["max.message.bytes", "retention.ms", "compression.type"] },
        ],
      });
      const values = resources[0]?.configEntries.map(({ configName, configValue }) => [configName, configValue]);
      expect(Object.fromEntries(values ?? [])).toEqual({
        "max.message.bytes": "1250000",
        "retention.ms": "604800000",
        "compression.type": "uncompressed",
      });
    });
  });

  it("puts the prefix before each topic", async () => {
    const topics = ["shop.ledger-sealed", "shop.notification-requested", "shop.user-registered"];
    expect(await createTopics(kafka.bootstrap, { prefix: "shop." })).toEqual(topics);
    expect(await asAdmin(kafka.bootstrap, (admin) => admin.listTopics())).toEqual(expect.arrayContaining(topics));
    await asAdmin(kafka.bootstrap, (admin) => admin.deleteTopics({ topics }));
  });

  it("creates topics with the options of an environment", async () => {
    const topics = await createTopics(kafka.bootstrap, {
      prefix: "big.",
      partitions: 12,
      replication: 1,
      retentionBytes: 1_000_000_000,
    });
    expect(topics).toEqual(await findTopics("big."));
    await asAdmin(kafka.bootstrap, async (admin) => {
      const { topics: found } = await admin.fetchTopicMetadata({ topics });
      for (const { partitions } of found)
        expect(partitions.map(({ replicas }) => replicas.length)).toEqual(Array.from({ length: 12 }, () => 1));
      const configNames = ["retention.bytes", "min.insync.replicas", "cleanup.policy"];
      const { resources } = await admin.describeConfigs({
        includeSynonyms: false,
        resources: topics.map((name) => ({ type: 2, name, configNames })),
      });
      expect(resources).toHaveLength(topics.length);
      for (const { configEntries } of resources)
        expect(
          Object.fromEntries(configEntries.map(({ configName, configValue }) => [configName, configValue])),
        ).toEqual({
          "retention.bytes": "1000000000",
          "min.insync.replicas": "1",
          "cleanup.policy": "delete",
        });
      await admin.deleteTopics({ topics });
    });
  });

  it("are checked by one event each; an error names a missing topic", async () => {
    const topics = await createTopics(kafka.bootstrap, { prefix: "checked." });
    expect(await topicFaults(kafka.bootstrap, "checked.")).toEqual([]);
    for (const topic of topics) expect(await endOf(kafka.bootstrap, topic)).toBe(1);
    await asAdmin(kafka.bootstrap, async (admin) => {
      await admin.deleteTopics({ topics: ["checked.user-registered"] });
      await eventually(
        "the topic is deleted",
        async () => !(await admin.listTopics()).includes("checked.user-registered"),
      );
    });
    expect(await topicFaults(kafka.bootstrap, "checked.")).toEqual([
      expect.stringMatching(/^The topic checked\.user-registered at \S+ accepts no record: This server does not host/),
    ]);
    await asAdmin(kafka.bootstrap, (admin) =>
      admin.deleteTopics({ topics: topics.filter((topic) => topic !== "checked.user-registered") }),
    );
  });

  it("makes the broker decompress the records of an existing topic, and keeps the topic's other settings", async () => {
    await asAdmin(kafka.bootstrap, async (admin) => {
      await admin.deleteTopics({ topics: ["user-registered"] });
      await eventually("the topic is deleted", async () => !(await admin.listTopics()).includes("user-registered"));
      const configEntries = [{ name: "retention.ms", value: "1234567" }];
      await admin.createTopics({ waitForLeaders: true, topics: [{ topic: "user-registered", configEntries }] });
      expect(await createTopics(kafka.bootstrap)).toEqual([]);
      const configNames = ["retention.ms", "compression.type"];
      const { resources } = await admin.describeConfigs({
        includeSynonyms: false,
        resources: [{ type: 2, name: "user-registered", configNames }],
      });
      const values = resources[0]?.configEntries.map(({ configName, configValue }) => [configName, configValue]);
      expect(Object.fromEntries(values ?? [])).toEqual({
        "retention.ms": "1234567",
        "compression.type": "uncompressed",
      });
    });
  });

  it("reports too few brokers for three copies", async () => {
    await asAdmin(kafka.bootstrap, async (admin) => {
      await admin.deleteTopics({ topics: await findTopics() });
      await eventually("the topics are deleted", async () => (await admin.listTopics()).length === 0);
    });
    await expect(createTopics(kafka.bootstrap, { replication: 3 })).rejects.toThrow(
      /could not be created at .*eplication/,
    );
  });
});
