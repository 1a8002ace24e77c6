import { type ChildProcess, spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import type { ServerResponse } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Message } from "kafkajs";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { stringify } from "yaml";
import type { Kafka } from "../kafka/cluster.ts";
import { PROGRAM } from "../project/paths.ts";
import { asAdmin, kafkaSource, makeTopic, produce, type Sink, startSink, startTestKafka } from "../testing/kafka.ts";
import { eventually } from "../testing/lotus.ts";
import { type KafkaSource, parseSource } from "./delivery.ts";
import { runKafkaSource, type SourceEvent } from "./kafka-source.ts";

const binary = { ce_specversion: "1.0", ce_source: "/test", ce_type: "test", "content-type": "application/json" };
const event = (id: number): Message => ({ key: `k${id}`, value: "{}", headers: { ...binary, ce_id: String(id) } });
const events = (count: number) => Array.from({ length: count }, (_, id) => event(id));

interface Delivery {
  retry?: number;
  backoffDelay?: string;
  timeout?: string;
}

const manifest = (topic: string, { retry = 3, backoffDelay = "PT0.05S", timeout = "PT5S" }: Delivery = {}) => {
  const ref = (name: string) => ({ ref: { apiVersion: "serving.knative.dev/v1", kind: "Service", name } });
  return stringify({
    apiVersion: "sources.knative.dev/v1",
    kind: "KafkaSource",
    metadata: { name: "reader", namespace: "lotus" },
    spec: {
      bootstrapServers: ["kafka:9092"],
      topics: [topic],
      consumerGroup: `group-${topic}`,
      initialOffset: "earliest",
      ordering: "unordered",
      delivery: { retry, backoffPolicy: "exponential", backoffDelay, timeout, deadLetterSink: ref("dead-letter") },
      sink: ref("fn"),
    },
  });
};

describe.skipIf(kafkaSource === undefined)("KafkaSource's stand-in", () => {
  let kafka: Kafka;
  const endings: (() => Promise<unknown>)[] = [];
  beforeAll(async () => {
    kafka = await startTestKafka();
  });
  afterAll(() => kafka?.stop());
  afterEach(async () => {
    for (const end of endings.splice(0).reverse()) await end();
  });

  async function newTopic(partitions?: number): Promise<string> {
    const topic = `t-${randomUUID()}`;
    await makeTopic(kafka.bootstrap, topic, partitions);
    return topic;
  }
  async function sinkThat(answer?: Parameters<typeof startSink>[0]): Promise<Sink> {
    const sink = await startSink(answer);
    endings.push(() => sink.stop());
    return sink;
  }
  function read(topic: string, sink: Sink, delivery?: Delivery) {
    const told: SourceEvent[] = [];
    const source = runKafkaSource(parseSource("reader.yaml", manifest(topic, delivery)) as KafkaSource, {
      brokers: kafka.bootstrap,
      resolve: (name) => `${sink.url}/${name}`,
      onEvent: (one) => void told.push(one),
    });
    endings.push(() => source.stop());
    return {
      ...source,
      stop: () => source.stop(),
      told,
      of: (kind: string) => told.filter((one) => one.kind === kind),
    };
  }
  /** The committed offsets of the group, summed over the partitions. */
  async function committed(topic: string): Promise<number> {
    const offsets = await asAdmin(kafka.bootstrap, (admin) => admin.fetchOffsets({ groupId: `group-${topic}` }));
    const partitions = offsets.find((one) => one.topic === topic)?.partitions ?? [];
    return partitions.reduce((sum, { offset }) => sum + Math.max(0, Number(offset)), 0);
  }

  it("delivers any record of other producers, and continues", async () => {
    const topic = await newTopic(1);
    const structured = { specversion: "1.0", id: "s", source: "/test", type: "test", data: { a: 1 } };
    await produce(kafka.bootstrap, topic, [
      event(1),
      { value: JSON.stringify(structured), headers: { "content-type": "application/cloudevents+json" } },
      { key: "k", value: "hello", headers: { other: "x" } },
      { key: "gone", value: null },
      { value: Buffer.alloc(1024 * 1024, "x"), headers: { ...binary, ce_id: "large" } },
      { value: "{not json", headers: { ...binary, ce_id: "broken" } },
      { value: "{}", headers: { ...binary, ce_id: "9", ce_specversion: "9.9" } },
    ]);
    const sink = await sinkThat();
    const source = read(topic, sink);
    await eventually("all are delivered", () => source.of("delivered").length === 7);
    const at = (offset: number) => {
      const one = sink.taken.find(({ headers }) => headers["ce-knativekafkaoffset"] === String(offset));
      return { headers: one?.headers ?? {}, text: one?.body.toString() ?? "none" };
    };
    expect(at(0).headers).toMatchObject({ "ce-id": "1", "content-type": "application/json", prefer: "reply" });
    expect(at(0).headers).toMatchObject({ "kn-namespace": "lotus", "ce-knativekafkapartition": "0" });
    expect(at(1)).toMatchObject({ headers: { "ce-id": "s" }, text: '{"a":1}' });
    expect(at(2)).toMatchObject({ headers: { "ce-id": "partition:0/offset:2", "ce-key": "k" }, text: "hello" });
    expect(at(2).headers).toMatchObject({ "ce-kafkaheaderother": "x" });
    expect(at(2).headers["content-type"]).toBeUndefined();
    expect(at(3)).toMatchObject({ headers: { "ce-key": "gone" }, text: "" });
    expect(at(4).text).toHaveLength(1024 * 1024);
    expect(at(5)).toMatchObject({ headers: { "ce-id": "broken" }, text: "{not json" });
    expect(at(6).headers).toMatchObject({ "ce-type": "dev.knative.kafka.event", "ce-kafkaheaderceid": "9" });
    await eventually("the offsets are committed", async () => (await committed(topic)) === 7);
  });

  it.each([500, 503, 404, 408, 409, 429])(
    "repeats a delivery that is answered %i, with growing pauses",
    async (status) => {
      const topic = await newTopic(1);
      const sink = await sinkThat(
        ({ path }, response) => void response.writeHead(path === "/fn" ? status : 204).end("no"),
      );
      const source = read(topic, sink);
      await produce(kafka.bootstrap, topic, [event(1)]);
      await eventually("it is a dead letter", () => source.of("dead-letter").length === 1);
      const attempts = sink.taken.filter(({ path }) => path === "/fn").map(({ at }) => at);
      expect(attempts).toHaveLength(4);
      const waits = attempts.slice(1).map((at, index) => at - (attempts[index] ?? 0));
      for (const [index, wait] of waits.entries()) expect(wait).toBeGreaterThanOrEqual(100 * 2 ** index - 5);
    },
  );

  it.each([400, 401, 413, 422, 301])("does not repeat a delivery that is answered %i", async (status) => {
    const topic = await newTopic(1);
    const sink = await sinkThat(
      ({ path }, response) => void response.writeHead(path === "/fn" ? status : 204).end("no"),
    );
    const source = read(topic, sink);
    await produce(kafka.bootstrap, topic, [event(1)]);
    await eventually("it is a dead letter", () => source.of("dead-letter").length === 1);
    expect(sink.taken.map(({ path }) => path)).toEqual(["/fn", "/dead-letter"]);
  });

  it("sends the end of the delivery to the dead-letter sink", async () => {
    const topic = await newTopic(1);
    const sink = await sinkThat(({ path }, response) => {
      response.writeHead(path === "/fn" ? 400 : 204).end("n".repeat(2000));
    });
    const source = read(topic, sink);
    await produce(kafka.bootstrap, topic, [event(1)]);
    await eventually("it is a dead letter", () => source.of("dead-letter").length === 1);
    const letter = sink.taken[1];
    expect(letter?.headers).toMatchObject({
      "ce-id": "1",
      "ce-knativeerrordest": "http://fn.lotus.svc.cluster.local",
      "ce-knativeerrorcode": "400",
      "ce-knativeerrordata": Buffer.from("n".repeat(1024)).toString("base64"),
    });
    expect(letter?.body.toString()).toBe("{}");
  });

  it("stops waiting for a function after its time limit", async () => {
    const topic = await newTopic(1);
    const sink = await sinkThat(({ path }, response) => {
      if (path === "/dead-letter") response.writeHead(204).end();
    });
    const source = read(topic, sink, { retry: 1, timeout: "PT1S" });
    await produce(kafka.bootstrap, topic, [event(1)]);
    await eventually("it is a dead letter", () => source.of("dead-letter").length === 1);
    expect(sink.taken.map(({ path }) => path)).toEqual(["/fn", "/fn", "/dead-letter"]);
    expect(sink.taken[2]?.headers["ce-knativeerrordest"]).toBe("http://fn.lotus.svc.cluster.local");
    expect(sink.taken[2]?.headers["ce-knativeerrorcode"]).toBeUndefined();
  });

  it("continues without an event that the dead-letter sink refuses", async () => {
    const topic = await newTopic(1);
    const sink = await sinkThat(({ headers }, response) => {
      response.writeHead(headers["ce-id"] === "0" ? 500 : 204).end();
    });
    const source = read(topic, sink, { retry: 1 });
    await produce(kafka.bootstrap, topic, events(3));
    await eventually("it is lost", () => source.of("lost").length === 1);
    await eventually("all offsets are committed", async () => (await committed(topic)) === 3);
    expect(sink.taken.filter(({ path }) => path === "/dead-letter")).toHaveLength(2);
  });

  it("lets a slow record hold back only the offset of its partition", async () => {
    const topic = await newTopic(1);
    const held: ServerResponse[] = [];
    const sink = await sinkThat(({ headers }, response) => {
      if (headers["ce-id"] === "10") held.push(response);
      else response.writeHead(204).end();
    });
    const source = read(topic, sink, { timeout: "PT20S" });
    await produce(kafka.bootstrap, topic, events(500));
    await eventually("the others are delivered", () => source.of("delivered").length === 499);
    await eventually("the records before it are committed", async () => (await committed(topic)) === 10);
    held[0]?.writeHead(204).end();
    await eventually("all is committed", async () => (await committed(topic)) === 500);
    expect(sink.inFlightMax).toBeLessThanOrEqual(50);
  });

  it("stays in its group while all its requests take longer than a session", async () => {
    const topic = await newTopic();
    const held: ServerResponse[] = [];
    let release = false;
    const sink = await sinkThat((_, response) => void (release ? response.writeHead(204).end() : held.push(response)));
    const source = read(topic, sink, { timeout: "PT30S" });
    await source.joined;
    const began = performance.now();
    await produce(kafka.bootstrap, topic, events(200));
    await eventually("all slots are occupied", () => held.length === 50);
    await eventually("a session has passed", () => performance.now() - began > 8_000);
    release = true;
    for (const response of held) response.writeHead(204).end();
    await eventually("all are delivered", () => source.of("delivered").length === 200);
    expect(source.of("joined")).toHaveLength(1);
    expect(sink.taken).toHaveLength(200);
    expect(sink.inFlightMax).toBe(50);
  });

  it("commits settled offsets when it stops, and continues from there", async () => {
    const topic = await newTopic();
    const sink = await sinkThat();
    const first = read(topic, sink);
    await produce(kafka.bootstrap, topic, events(20));
    await eventually("all are delivered", () => first.of("delivered").length === 20);
    await first.stop();
    expect(await committed(topic)).toBe(20);
    const second = read(topic, sink);
    await produce(kafka.bootstrap, topic, [event(20)]);
    await eventually("the new one is delivered", () => second.of("delivered").length === 1);
    expect(sink.taken).toHaveLength(21);
  });

  it("waits for a missing topic", async () => {
    const topic = `t-${randomUUID()}`;
    const sink = await sinkThat();
    const source = read(topic, sink);
    await eventually("it says so", () => source.of("trouble").length > 0);
    await makeTopic(kafka.bootstrap, topic);
    await produce(kafka.bootstrap, topic, [event(1)]);
    await eventually("it is delivered", () => source.of("delivered").length === 1);
  });

  it("reports a lasting error in few lines", async () => {
    const topic = `t-${randomUUID()}`;
    const source = read(topic, await sinkThat());
    const began = performance.now();
    await eventually("it says so", () => source.of("trouble").length > 0);
    await eventually("ten seconds have passed", () => performance.now() - began > 10_000);
    expect(source.told.length).toBeLessThanOrEqual(3);
  });

  it.each(["Snappy", "LZ4", "ZSTD"] as const)(
    "moves a batch compressed with %s that it cannot decompress to the dead letters, and delivers all other records",
    async (codec) => {
      const topic = await newTopic(2);
      const wide = (id: number): Message => ({ ...event(id), value: "x".repeat(2_000), partition: 0 });
      await produce(kafka.bootstrap, topic, [wide(1), wide(2)], codec);
      await produce(kafka.bootstrap, topic, [
        { ...event(3), partition: 0 },
        { ...event(4), partition: 1 },
      ]);
      const sink = await sinkThat();
      const source = read(topic, sink);
      await eventually("all are settled", () => source.of("delivered").length + source.of("dead-letter").length === 4);
      const idsOf = (path: string) =>
        sink.taken.filter((one) => one.path === path).map(({ headers }) => headers["ce-id"]);
      expect(idsOf("/fn").toSorted()).toEqual(["3", "4"]);
      expect(idsOf("/dead-letter").toSorted()).toEqual(["partition:0/offset:0", "partition:0/offset:1"]);
      const said = sink.taken.find(({ path }) => path === "/dead-letter")?.headers["ce-knativeerrordata"];
      expect(Buffer.from(String(said), "base64").toString()).toMatch(
        /^the record cannot become an event: its batch cannot be decompressed: /,
      );
      expect(source.of("trouble")).toEqual([]);
      await eventually("the offsets are committed", async () => (await committed(topic)) === 4);
    },
  );

  describe("as a program", () => {
    const program = (...flags: string[]): ChildProcess =>
      spawn(process.execPath, [PROGRAM, "kafka-source", ...flags], {
        stdio: ["ignore", "pipe", "pipe"],
      });

    it("killed with records in flight, delivers them again", async () => {
      const topic = await newTopic();
      const folder = await mkdtemp(join(tmpdir(), "lotus-sources-"));
      endings.push(() => rm(folder, { recursive: true }));
      await writeFile(join(folder, "reader.yaml"), manifest(topic, { timeout: "PT30S" }));
      let killed = false;
      const settled = new Set<string>();
      const sink = await sinkThat(({ headers }, response) => {
        const id = String(headers["ce-id"]);
        // Every tenth record is in flight when the source is killed.
        if (!killed && id.endsWith("0")) return;
        settled.add(id);
        response.writeHead(204).end();
      });
      const flags = [
        "--brokers",
        kafka.bootstrap.join(","),
        "--sink-template",
        `${sink.url}/{name}`,
        "--sources",
        folder,
      ];
      const first = program(...flags);
      await produce(kafka.bootstrap, topic, events(200));
      await eventually("all but those are settled", () => settled.size === 180 && sink.taken.length === 200);
      killed = true;
      first.kill("SIGKILL");
      await once(first, "exit");
      const second = program(...flags);
      endings.push(async () => {
        second.kill("SIGTERM");
        await once(second, "exit");
      });
      await eventually("all are settled", () => settled.size === 200);
      await eventually("all are committed", async () => (await committed(topic)) === 200);
    });

    it.each([
      [["--sink-template", "http://nowhere"], "--sink-template must be a URL that contains {name}"],
      [["--sink-templat"], "has no option --sink-templat. Did you mean --sink-template?"],
    ])("given %j, ends with an error message", async (flags, sentence) => {
      const child = program(...flags);
      let said = "";
      child.stderr?.on("data", (chunk) => {
        said += chunk;
      });
      const [code] = await once(child, "close");
      expect([code, said]).toEqual([2, expect.stringContaining(sentence)]);
    });
  });
});
