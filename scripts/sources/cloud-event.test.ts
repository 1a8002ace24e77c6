import { describe, expect, it } from "vitest";
import { type KafkaRecord, toMessage } from "./cloud-event.ts";

const reader = { name: "notification-store", namespace: "lotus" };
const record = (part: Partial<KafkaRecord> & { text?: string }): KafkaRecord => ({
  topic: "notification-requested",
  partition: 2,
  offset: "7",
  timestamp: "1700000000000",
  key: null,
  value: part.text === undefined ? null : Buffer.from(part.text),
  headers: {},
  ...part,
});
const binary = { ce_specversion: "1.0", ce_id: "1", ce_source: "/shop", ce_type: "sold" };
const position = { "ce-knativekafkapartition": "2", "ce-knativekafkaoffset": "7", "kn-namespace": "lotus" };

describe("a binary CloudEvent", () => {
  it("keeps its attributes and its data, and omits its key and its other headers", () => {
    const headers = {
      ...binary,
      ce_Subject: "S",
      ce_partitionkey: "K",
      "content-type": "application/json",
      other: "x",
    };
    const { headers: sent, body } = toMessage(record({ headers, key: Buffer.from("key"), text: '{"a":1}' }), reader);
    expect(sent).toEqual({
      ...position,
      "ce-specversion": "1.0",
      "ce-id": "1",
      "ce-source": "/shop",
      "ce-type": "sold",
      "ce-subject": "S",
      "ce-partitionkey": "K",
      "content-type": "application/json",
    });
    expect(body?.toString()).toBe('{"a":1}');
  });

  it("without content-type has none, and without a value no body", () => {
    const { headers, body } = toMessage(record({ headers: binary }), reader);
    expect(headers["content-type"]).toBeUndefined();
    expect(body).toBeUndefined();
    expect(headers["ce-type"]).toBe("sold");
  });

  it("uses the last value of a repeated header, and reads bytes as UTF-8", () => {
    const headers = { ...binary, ce_type: [Buffer.from("old"), Buffer.from("new")] };
    expect(toMessage(record({ headers }), reader).headers["ce-type"]).toBe("new");
  });

  it("sends Latin-1 unchanged, and a question mark for each character that a header cannot contain", () => {
    const headers = { ...binary, ce_subject: "Zoë €😀\r\nx" };
    expect(toMessage(record({ headers }), reader).headers["ce-subject"]).toBe("Zoë ????x");
  });
});

describe("a structured CloudEvent", () => {
  const structured = (event: unknown, contentType = "application/cloudevents+json; charset=utf-8") =>
    toMessage(
      record({
        headers: { "content-type": contentType },
        text: typeof event === "string" ? event : JSON.stringify(event),
      }),
      reader,
    );
  const event = { specversion: "1.0", id: "1", source: "/shop", type: "sold" };

  it("becomes a binary one", () => {
    const { headers, body } = structured({ ...event, datacontenttype: "application/json", count: 3, data: { a: 1 } });
    expect(headers).toEqual({
      ...position,
      "ce-specversion": "1.0",
      "ce-id": "1",
      "ce-source": "/shop",
      "ce-type": "sold",
      "ce-count": "3",
      "content-type": "application/json",
    });
    expect(body?.toString()).toBe('{"a":1}');
  });

  it("keeps the digits of its numbers", () => {
    const text = '{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{"amount":12345678901234567890.10}}';
    expect(structured(text).body?.toString()).toBe('{"amount":12345678901234567890.10}');
  });

  it("carries bytes in base64, and text of another media type", () => {
    expect(structured({ ...event, data_base64: "AAEC" }).body).toEqual(Buffer.from([0, 1, 2]));
    expect(structured({ ...event, datacontenttype: "text/plain", data: "hi" }).body?.toString()).toBe("hi");
  });

  it.each([
    ["is not JSON", "{"],
    ["is not an object", "[]"],
    ["has no id", { ...event, id: undefined }],
    ["has an id that is not a string", { ...event, id: 7 }],
    ["has data twice", { ...event, data: 1, data_base64: "AA==" }],
    ["is of an unknown version", { ...event, specversion: "2.0" }],
  ])("that %s is delivered as a plain record", (_, value) => {
    const { headers, body } = structured(value);
    expect(headers).toMatchObject({ "ce-type": "dev.knative.kafka.event", "ce-id": "partition:2/offset:7" });
    expect(headers["content-type"]).toContain("cloudevents");
    expect(body?.toString()).toBe(typeof value === "string" ? value : JSON.stringify(value));
  });
});

describe("a record that is not a CloudEvent", () => {
  it("is wrapped in a CloudEvent that names its topic and offset", () => {
    const headers = { "X-Trace.Id": "t" };
    const { headers: sent, body } = toMessage(record({ headers, key: Buffer.from("key"), text: "hello" }), reader);
    expect(sent).toEqual({
      ...position,
      "ce-specversion": "1.0",
      "ce-id": "partition:2/offset:7",
      "ce-type": "dev.knative.kafka.event",
      "ce-source": "/apis/v1/namespaces/lotus/kafkasources/notification-store#notification-requested",
      "ce-subject": "partition:2#7",
      "ce-time": "2023-11-14T22:13:20.000Z",
      "ce-key": "key",
      "ce-partitionkey": "key",
      "ce-kafkaheaderxtraceid": "t",
    });
    expect(body?.toString()).toBe("hello");
  });

  it("has the media type of its record, if any", () => {
    const sent = toMessage(record({ headers: { "content-type": "text/csv" }, text: "a,b" }), reader).headers;
    expect(sent["content-type"]).toBe("text/csv");
  });

  it.each([
    ["a required attribute is missing", { ...binary, ce_type: undefined }],
    ["the time is not a time", { ...binary, ce_time: "yesterday" }],
    ["the source is not a URI", { ...binary, ce_source: "a b" }],
    ["an attribute's name is not allowed", { ...binary, ce_trace_id: "1" }],
    ["the version is unknown", { ...binary, ce_specversion: "9" }],
    ["the prefix is that of HTTP", { "ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t" }],
  ])("is also an event of which %s", (_, headers) => {
    const sent = toMessage(record({ headers }), reader).headers;
    expect(sent["ce-type"]).toBe("dev.knative.kafka.event");
    expect(sent["ce-kafkaheaderceid"]).toBe("1");
  });

  it.each(["9007199254740993", "-9223372036854775808", "9223372036854775807", "8640000000000001", "-1"])(
    "has a time that functions can read when its timestamp is %s",
    (timestamp) => {
      const before = Date.now();
      const { headers } = toMessage(record({ timestamp, text: "{}" }), reader);
      const time = Date.parse(headers["ce-time"] ?? "");
      if (timestamp === "-1") expect(time).toBe(-1);
      else expect(time).toBeGreaterThanOrEqual(before);
    },
  );

  it("may be a tombstone", () => {
    expect(toMessage(record({ key: Buffer.from("gone") }), reader)).toMatchObject({ body: undefined });
  });
});
