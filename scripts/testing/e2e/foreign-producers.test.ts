import { randomUUID } from "node:crypto";
import type { Message } from "kafkajs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { readInstallation } from "../../database/installation.ts";
import type { Kafka } from "../../kafka/cluster.ts";
import { asAdmin, type Codec, kafkaSource, produce, startTestKafka } from "../kafka.ts";
import { eventually, startTestLotus, type TestLotus } from "../lotus.ts";

const TOPIC = "notification-requested";
const SUBSCRIBER = "notification-store";

const userId = randomUUID();
const fact = (message: string) => ({ kind: "message", userId, recipient: "somebody@example.com", message });
const attributes = (type: string) => ({
  ce_specversion: "1.0",
  ce_id: randomUUID(),
  ce_source: "/shop",
  ce_type: type,
  "content-type": "application/json",
});

interface Case {
  readonly what: string;
  readonly record: Message;
  readonly codec?: Codec;
  /** The text of the notification, or the reason of the dead letter. */
  readonly becomes: string | RegExp;
  /** Bytes of the record that the dead letter contains. The default is all of them. */
  readonly storedBytes?: number;
}

const CASES: readonly Case[] = [
  {
    what: "a structured CloudEvent",
    record: {
      headers: { "content-type": "application/cloudevents+json" },
      value: JSON.stringify({
        specversion: "1.0",
        id: "1",
        source: "/shop",
        type: "sold",
        datacontenttype: "application/json",
        data: fact("structured"),
      }),
    },
    becomes: "structured",
  },
  {
    what: "a binary CloudEvent of another's type",
    record: { headers: attributes("sold"), value: JSON.stringify(fact("binary")) },
    becomes: "binary",
  },
  {
    what: "a plain record",
    record: { headers: { "content-type": "application/json" }, value: JSON.stringify(fact("plain")) },
    becomes: "plain",
  },
  {
    what: "a plain record without content-type",
    record: { key: "k", value: JSON.stringify(fact("bare")) },
    becomes: "bare",
  },
  ...(["Snappy", "LZ4", "ZSTD"] as const).map((codec) => ({
    what: `a record compressed with ${codec}`,
    record: { headers: { ...attributes("sold"), ce_pad: "x".repeat(2_000) }, value: JSON.stringify(fact(codec)) },
    codec,
    becomes: codec,
  })),
  {
    what: "a plain record with a key of 9000 bytes",
    record: { key: "k".repeat(9_000), value: JSON.stringify(fact("long key")) },
    becomes: "long key",
  },
  {
    what: "an extension of 200 kB",
    record: { headers: { ...attributes("sold"), ce_big: "x".repeat(200_000) }, value: JSON.stringify(fact("long")) },
    becomes: "long",
  },
  {
    what: "more than a thousand headers",
    record: {
      headers: {
        ...attributes("sold"),
        ...Object.fromEntries(Array.from({ length: 1_500 }, (_, n) => [`ce_ext${n}`, "x".repeat(50)])),
      },
      value: JSON.stringify(fact("many headers")),
    },
    becomes: "many headers",
  },
  {
    what: "the largest key that the broker accepts",
    record: { key: "k".repeat(1_240_000), value: JSON.stringify(fact("largest key")) },
    becomes: "largest key",
  },
  {
    what: "an unknown version",
    record: { headers: attributes(`lotus.${TOPIC}.v2`), value: JSON.stringify(fact("v2")) },
    becomes: /^The type lotus\.notification-requested\.v2 is not known here; .* lotus\.notification-requested\.v1\.$/,
  },
  {
    what: "a mebibyte of text",
    record: { headers: attributes("sold"), value: JSON.stringify(fact("x".repeat(1024 * 1024 - 200))) },
    becomes: /^The data is not that of notification-requested: message: /,
  },
  {
    what: "more data than an event may contain",
    record: { headers: attributes("sold"), value: JSON.stringify(fact("x".repeat(1_200_000))) },
    becomes:
      /^The data has 1200\d{3} bytes; at most 1048576 are accepted\. The first 65536 of 1200\d{3} bytes are stored\.$/,
    storedBytes: 65_536,
  },
  {
    what: "no JSON",
    record: { headers: attributes("sold"), value: "{not json" },
    becomes: /^The data is not JSON in UTF-8: /,
  },
  {
    what: "no UTF-8",
    record: { headers: attributes("sold"), value: Buffer.from([0x22, 0xff, 0x22]) },
    becomes: /^The data is not JSON in UTF-8: /,
  },
  { what: "a tombstone", record: { key: "gone", value: null }, becomes: /^The event has no data\.$/ },
  {
    what: "facts of an unknown kind",
    record: { headers: attributes("sold"), value: JSON.stringify({ ...fact("unknown"), kind: "fax" }) },
    becomes: /^The data is not that of notification-requested: kind: /,
  },
];

describe.skipIf(kafkaSource === undefined)("the events of other producers", () => {
  let kafka: Kafka;
  let lotus: TestLotus;
  beforeAll(async () => {
    kafka = await startTestKafka();
    lotus = await startTestLotus({ kafka });
    const installation = await readInstallation(lotus.adminUrl);
    const records: Pick<Case, "record" | "codec">[] = [
      ...CASES,
      { record: { headers: attributes("sold"), value: JSON.stringify(fact("the last")) } },
    ];
    // One by one, because a batch of all would exceed the limit of the broker.
    for (const { record, codec } of records) {
      await produce(kafka.bootstrap, TOPIC, [{ ...record, partition: 0 }], codec);
    }
    const committed = async () => {
      const [offsets] = await asAdmin(kafka.bootstrap, (admin) =>
        admin.fetchOffsets({ groupId: `${SUBSCRIBER}.${installation}`, topics: [TOPIC] }),
      );
      return offsets?.partitions.find(({ partition }) => partition === 0)?.offset === String(records.length);
    };
    await eventually("the partition is read to its end", committed);
  });
  afterAll(async () => {
    await lotus?.stop();
    await kafka?.stop();
  });

  it.each(CASES.filter(({ becomes }) => typeof becomes === "string"))("$what becomes a notification", async (one) => {
    const { rows } = await lotus.database.query(
      "select email from notification.notifications where user_id = $1 and message = $2",
      [userId, one.becomes],
    );
    expect(rows).toEqual([{ email: "somebody@example.com" }]);
  });

  it.each(CASES.filter(({ becomes }) => typeof becomes !== "string"))(
    "$what becomes a dead letter with its reason",
    async ({ record, becomes, storedBytes }) => {
      const offset = CASES.findIndex((one) => one.record === record);
      const { rows } = await lotus.database.query(
        `select subscriber, reason, body is not distinct from $2 as whole from events.dead_letters
         where attributes ->> 'knativekafkaoffset' = $1`,
        [String(offset), record.value === null ? null : Buffer.from(record.value).subarray(0, storedBytes)],
      );
      expect(rows).toEqual([{ subscriber: SUBSCRIBER, reason: expect.stringMatching(becomes), whole: true }]);
    },
  );

  it("the records after them are read, and other tables stay unchanged", async () => {
    const { rows } = await lotus.database.query(
      `select (select count(*)::int from notification.notifications where message = 'the last') as last,
        (select count(*)::int from notification.notifications) as notifications,
        (select count(*)::int from events.dead_letters) as dead_letters`,
    );
    expect(rows).toEqual([{ last: 1, notifications: 12, dead_letters: 7 }]);
  });
});
