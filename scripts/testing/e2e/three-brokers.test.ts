/** With three brokers, killing the leader under load loses no event, before and after Kafka. */
import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { disconnectKafka, sendToKafka } from "#kernel/kafka";
import type { Kafka } from "../../kafka/cluster.ts";
import { createTopics, findTopics } from "../../kafka/topics.ts";
import type { KafkaSource } from "../../sources/delivery.ts";
import { runKafkaSource } from "../../sources/kafka-source.ts";
import { asAdmin, canStartKafka, startSink, startTestKafka } from "../kafka.ts";

const sink = (name: string) => ({
  ref: { apiVersion: "serving.knative.dev/v1", kind: "Service", name } as const,
});

describe.skipIf(!canStartKafka)("three brokers", () => {
  let kafka: Kafka;
  beforeAll(async () => {
    kafka = await startTestKafka({ brokers: 3 });
  });
  afterAll(async () => {
    await disconnectKafka();
    await kafka?.stop();
  });

  it("receive topics with three copies by default", async () => {
    expect(await createTopics(kafka.bootstrap)).toEqual(await findTopics());
    const { topics } = await asAdmin(kafka.bootstrap, (admin) =>
      admin.fetchTopicMetadata({ topics: ["user-registered"] }),
    );
    expect(topics[0]?.partitions.map(({ replicas }) => replicas.length)).toEqual([3, 3, 3, 3, 3, 3]);
  });

  it("lose no event when a leader is killed under load, or while it starts again", async () => {
    // The client reports the brokers' faults. This test does not need these lines.
    vi.spyOn(process.stdout, "write").mockReturnValue(true);
    const topic = "user-registered";
    const received = new Map<string, number>();
    const fn = await startSink(({ headers }, response) => {
      const id = String(headers["ce-id"]);
      received.set(id, (received.get(id) ?? 0) + 1);
      response.writeHead(204).end();
    });
    const source: KafkaSource = {
      apiVersion: "sources.knative.dev/v1",
      kind: "KafkaSource",
      metadata: { name: "reader", namespace: "lotus" },
      spec: {
        bootstrapServers: ["kafka:9092"],
        topics: [topic],
        consumerGroup: "reader",
        initialOffset: "earliest",
        ordering: "unordered",
        delivery: {
          retry: 3,
          backoffPolicy: "exponential",
          backoffDelay: 100,
          timeout: 5_000,
          deadLetterSink: sink("dead-letter"),
        },
        sink: sink("fn"),
      },
    };
    const reader = runKafkaSource(source, { brokers: kafka.bootstrap, resolve: (name) => `${fn.url}/${name}` });
    await reader.joined;

    const acknowledged: string[] = [];
    let producing = true;
    const load = (async () => {
      while (producing) {
        const ids = Array.from({ length: 20 }, () => randomUUID());
        const records = ids.map((id) => ({
          topic,
          key: id,
          value: "{}",
          headers: { ce_specversion: "1.0", ce_id: id, ce_source: "/test", ce_type: "test" },
        }));
        // Failed events stay in the outbox, and the relay publishes them again.
        await sendToKafka(kafka.bootstrap, records).then(
          () => acknowledged.push(...ids),
          () => undefined,
        );
      }
    })();
    // The cluster notices a killed broker after seconds, and a restart takes longer on a busy machine.
    const patience = { timeout: 60_000, interval: 20 };
    const reaches = (count: number) =>
      vi.waitFor(() => expect(acknowledged.length).toBeGreaterThanOrEqual(count), patience);
    await reaches(1_000);
    const { topics } = await asAdmin(kafka.bootstrap, (admin) => admin.fetchTopicMetadata({ topics: [topic] }));
    const leader = (topics[0]?.partitions[0]?.leader ?? 1) - 1;
    kafka.kill(leader);
    await reaches(acknowledged.length + 1_000);
    await kafka.restart(leader);
    await reaches(acknowledged.length + 1_000);
    producing = false;
    await load;
    await vi.waitFor(() => expect(acknowledged.filter((id) => !received.has(id))).toEqual([]), patience);
    await reader.stop();
    await fn.stop();
    expect(acknowledged.length).toBeGreaterThanOrEqual(3_000);
  }, 240_000);
});
