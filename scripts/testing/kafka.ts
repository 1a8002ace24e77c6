/** Starts a Kafka for one test file, and servers that answer in place of functions. */
import { mkdtemp, rm } from "node:fs/promises";
import { createServer, type IncomingHttpHeaders, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Message } from "kafkajs";
import type { Client } from "pg";
import { kafkaClient } from "#kernel/kafka";
import { asAdmin } from "../kafka/admin.ts";
import { findKafka, type Kafka, type KafkaOptions, NO_KAFKA, startKafka } from "../kafka/cluster.ts";
import { makeOverdue } from "./lotus.ts";

export { asAdmin };

/** The way to run Kafka here. Undefined: tests that need it are skipped, and the run prints the reason. */
export const kafkaSource = await findKafka();
if (kafkaSource === undefined) console.warn(`Skipped: tests against a real Kafka. ${NO_KAFKA}`);
/** Whether the test may kill and erase brokers. The brokers of KAFKA_BROKERS may have other users. */
export const canStartKafka = kafkaSource === "docker" || kafkaSource === "java";
if (kafkaSource === "given")
  console.warn("Skipped: tests that kill brokers, because KAFKA_BROKERS names one of your brokers.");

/** Starts Kafka in a new folder. `stop` also removes its data. */
export async function startTestKafka(options: Partial<KafkaOptions> = {}): Promise<Kafka> {
  const folder = await mkdtemp(join(tmpdir(), "lotus-kafka-"));
  const kafka = await startKafka({ brokers: 1, folder, ...options });
  return {
    owned: kafka.owned,
    get running() {
      return kafka.running;
    },
    bootstrap: kafka.bootstrap,
    secured: kafka.secured,
    kill: (index) => kafka.kill(index),
    restart: (index) => kafka.restart(index),
    erase: () => kafka.erase(),
    async stop() {
      await kafka.stop();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

/** Makes a topic. */
export async function makeTopic(
  bootstrap: readonly string[],
  topic: string,
  partitions = 3,
  copies = 1,
): Promise<void> {
  const configEntries = [
    { name: "max.message.bytes", value: "2000000" },
    { name: "min.insync.replicas", value: copies === 3 ? "2" : "1" },
  ];
  await asAdmin(bootstrap, (admin) =>
    admin.createTopics({
      waitForLeaders: true,
      topics: [{ topic, numPartitions: partitions, replicationFactor: copies, configEntries }],
    }),
  );
}

/** Codecs of Kafka's record batches that kafkajs does not contain. */
export type Codec = "Snappy" | "LZ4" | "ZSTD";

/** Frames of each codec that contain the data uncompressed, which every decompressor reads. Up to 64 KiB. */
const FRAMES: Readonly<Record<Codec, (data: Buffer) => Buffer>> = {
  // The length as a varint, then one literal with a length of two bytes.
  Snappy: (data) =>
    Buffer.concat([
      Buffer.from([(data.length & 127) | 128, ((data.length >> 7) & 127) | 128, data.length >> 14]),
      Buffer.from([61 << 2, (data.length - 1) & 255, (data.length - 1) >> 8]),
      data,
    ]),
  // The frame's magic and descriptor with its checksum, one uncompressed block, the end mark.
  LZ4: (data) => {
    const size = Buffer.alloc(4);
    size.writeUInt32LE(0x80000000 + data.length);
    return Buffer.concat([Buffer.from("04224d18604082", "hex"), size, data, Buffer.alloc(4)]);
  },
  // The frame's magic, a descriptor of one segment with a size of two bytes, and one raw block, the last.
  ZSTD: (data) => {
    const header = Buffer.alloc(10);
    header.writeUInt32LE(0xfd2fb528, 0);
    header.writeUInt8(0x60, 4);
    header.writeUInt16LE(data.length - 256, 5);
    header.writeUIntLE((data.length << 3) | 1, 7, 3);
    return Buffer.concat([header, data]);
  },
};

/**
 * Produces records as a program that is not Lotus.
 * @param codec compresses them; each batch must have 256 bytes to 64 KiB
 */
export async function produce(
  bootstrap: readonly string[],
  topic: string,
  messages: Message[],
  codec?: Codec,
): Promise<void> {
  const { default: kafkajs } = await import("kafkajs");
  const { CompressionCodecs, CompressionTypes, Partitioners } = kafkajs;
  const kafka = await kafkaClient(bootstrap, () => undefined);
  const producer = kafka.producer({ createPartitioner: Partitioners.DefaultPartitioner });
  await producer.connect();
  // For this send only: the local consumer in this process shares the table.
  const codecs: Record<number, unknown> = CompressionCodecs;
  const type = codec === undefined ? CompressionTypes.None : CompressionTypes[codec];
  const original = codecs[type];
  if (codec !== undefined) {
    codecs[type] = () => ({ compress: async ({ buffer }: { buffer: Buffer }) => FRAMES[codec](buffer) });
  }
  try {
    await producer.send({ topic, messages, compression: type });
  } finally {
    if (codec !== undefined) codecs[type] = original;
    await producer.disconnect();
  }
}

/** Returns the sum of the end offsets of a topic's partitions. */
export async function endOf(bootstrap: readonly string[], topic: string): Promise<number> {
  const offsets = await asAdmin(bootstrap, (admin) => admin.fetchTopicOffsets(topic));
  return offsets.reduce((sum, { high }) => sum + Number(high), 0);
}

/** Writes overdue messages to a user into the outbox, as a function that is killed before it publishes them. */
export async function leaveInOutbox(database: Client, userId: string, messages: readonly string[]): Promise<void> {
  await database.query(
    `select events.emit('notification-requested', 1, 'test', $1::uuid, null, jsonb_build_object(
      'userId', $1::uuid, 'recipient', 'a@example.com', 'kind', 'message', 'message', m)) from unnest($2::text[]) m`,
    [userId, messages],
  );
  await makeOverdue(database);
}

/** A received request. */
export interface Taken {
  readonly path: string;
  readonly headers: IncomingHttpHeaders;
  readonly body: Buffer;
  /** Of this process's clock, in milliseconds. */
  readonly at: number;
}

export interface Sink {
  readonly url: string;
  readonly taken: readonly Taken[];
  /** The greatest number of requests in progress. */
  readonly inFlightMax: number;
  stop(): Promise<void>;
}

/** A server for functions' requests. `answer` ends the response, or leaves it open; without it, 204. */
export async function startSink(
  answer: (request: Taken, response: ServerResponse) => void = (_, response) => void response.writeHead(204).end(),
): Promise<Sink> {
  const taken: Taken[] = [];
  let inFlight = 0;
  let inFlightMax = 0;
  const server = createServer((request, response) => {
    inFlight++;
    inFlightMax = Math.max(inFlightMax, inFlight);
    response.once("close", () => inFlight--);
    const chunks: Buffer[] = [];
    request.on("data", (chunk: Buffer) => chunks.push(chunk));
    request.on("end", () => {
      const { url: path = "/", headers } = request;
      const one = { path, headers, body: Buffer.concat(chunks), at: performance.now() };
      taken.push(one);
      answer(one, response);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    taken,
    get inFlightMax() {
      return inFlightMax;
    },
    async stop() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
