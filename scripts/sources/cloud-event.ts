/** Turns a Kafka record into the CloudEvent over HTTP that Knative's KafkaSource delivers. */
import { LosslessNumber, parse, stringify } from "lossless-json";
import type { Message } from "./delivery.ts";

/** A record as a consumer reads it. A repeated header is a list; its last value counts. */
export interface KafkaRecord {
  readonly topic: string;
  readonly partition: number;
  readonly offset: string;
  /** The time of production in milliseconds since 1970, any 64-bit number. */
  readonly timestamp: string;
  readonly key: Buffer | null;
  readonly value: Buffer | null;
  readonly headers: Readonly<Record<string, Buffer | string | (Buffer | string)[] | undefined>>;
}

/** The KafkaSource that reads the record. */
export interface Reader {
  readonly name: string;
  readonly namespace: string;
}

type Attributes = Record<string, string>;
interface Event {
  /** Includes `datacontenttype`. */
  readonly attributes: Attributes;
  readonly data: Buffer | undefined;
}

const SPEC_VERSIONS = ["0.3", "1.0"];
const REQUIRED = ["id", "source", "type"];
const TIME = /^\d{4}-\d\d-\d\d[Tt]\d\d:\d\d(:\d\d(\.\d{1,9})?)?([Zz]|[+-]\d\d:\d\d)$/;
/** Matches what java.net.URI accepts: the characters of RFC 3986, and a percent sign only before two hex digits. */
const URI = /^(?:[^\s%<>"{}|\\^`]|%[0-9a-fA-F]{2})*$/;
const JSON_MEDIA_TYPE = /^(application|text)\/([\w.-]+\+)?json\s*(;.*)?$/i;

function headersOf({ headers }: KafkaRecord): [string, string][] {
  return Object.entries(headers).flatMap(([name, values]): [string, string][] => {
    const last = Array.isArray(values) ? values.at(-1) : values;
    return last === undefined || last === null ? [] : [[name, last.toString()]];
  });
}

/** Returns whether attributes follow the rules of CloudEvents 1.0 that Knative's SDK enforces. */
function isValid(attributes: Attributes): boolean {
  const { specversion, time, source, dataschema } = attributes;
  return (
    SPEC_VERSIONS.includes(specversion ?? "") &&
    REQUIRED.every((name) => (attributes[name] ?? "") !== "") &&
    Object.keys(attributes).every((name) => /^[a-z0-9]+$/.test(name)) &&
    URI.test(source ?? "") &&
    URI.test(dataschema ?? "") &&
    (time === undefined || (TIME.test(time) && !Number.isNaN(Date.parse(time))))
  );
}

/** Reads binary mode: attributes in `ce_` headers, unchanged data. Returns undefined for a record that is not a CloudEvent. */
function readBinary(headers: readonly [string, string][], value: Buffer | null): Event | undefined {
  const attributes: Attributes = {};
  for (const [name, text] of headers) {
    if (/^ce_./i.test(name)) attributes[name.slice(3).toLowerCase()] = text;
    if (name === "content-type") attributes.datacontenttype = text;
  }
  return isValid(attributes) ? { attributes, data: value ?? undefined } : undefined;
}

function readData(event: Record<string, unknown>): Buffer | undefined {
  const { data, data_base64: base64, datacontenttype } = event;
  if (base64 !== undefined) {
    if (data !== undefined || typeof base64 !== "string")
      throw new TypeError("data_base64 is not a string, or the event has data too");
    return Buffer.from(base64, "base64");
  }
  if (data === undefined) return undefined;
  if (datacontenttype === undefined || JSON_MEDIA_TYPE.test(String(datacontenttype))) {
    return Buffer.from(stringify(data) ?? "");
  }
  if (typeof data !== "string") throw new TypeError("data that is not JSON must be a string");
  return Buffer.from(data);
}

/** Reads structured mode: the whole event as JSON. Returns undefined for a value that is not a CloudEvent. */
function readStructured(value: Buffer | null): Event | undefined {
  try {
    const event = parse(value?.toString("utf8") ?? "") as Record<string, unknown>;
    if (typeof event !== "object" || event === null || Array.isArray(event)) return undefined;
    const { data: _data, data_base64: _base64, ...rest } = event;
    const attributes: Attributes = {};
    for (const [name, attribute] of Object.entries(rest)) {
      const own = ["specversion", ...REQUIRED, "datacontenttype", "dataschema", "schemaurl", "subject", "time"];
      if (own.includes(name) && typeof attribute !== "string") return undefined;
      const isText = typeof attribute === "string" || attribute instanceof LosslessNumber;
      attributes[name] = isText ? String(attribute) : (stringify(attribute) ?? "");
    }
    return isValid(attributes) ? { attributes, data: readData(event) } : undefined;
  } catch {
    // Knative treats a value that is not in this event format as a plain record, without a message.
    return undefined;
  }
}

/** Returns the record's time as RFC 3339, or the present time for a timestamp that JavaScript cannot represent. */
function timeOf(timestamp: string): string {
  const time = new Date(Number(timestamp));
  return (Number.isNaN(time.getTime()) ? new Date() : time).toISOString();
}

/** Wraps a plain record in a CloudEvent. */
function wrap(record: KafkaRecord, headers: readonly [string, string][], { name, namespace }: Reader): Event {
  const { topic, partition, offset, timestamp, key, value } = record;
  const attributes: Attributes = {
    specversion: "1.0",
    id: `partition:${partition}/offset:${offset}`,
    source: `/apis/v1/namespaces/${namespace}/kafkasources/${name}#${topic}`,
    type: "dev.knative.kafka.event",
    subject: `partition:${partition}#${offset}`,
    time: timeOf(timestamp),
  };
  if (key !== null) {
    attributes.key = key.toString();
    attributes.partitionkey = key.toString();
  }
  for (const [header, text] of headers) {
    if (header === "content-type") attributes.datacontenttype = text;
    else attributes[`kafkaheader${header.toLowerCase().replace(/[^a-z0-9]/g, "")}`] = text;
  }
  return { attributes, data: value ?? undefined };
}

/** Replaces each character outside Latin-1, and each control character, by a question mark, as the real data plane does. */
function toHeaderText(text: string): string {
  return text.replace(/[^\t\x20-\x7e\xa0-\xff]/gu, "?");
}

/** Returns the request that delivers a record: a CloudEvent in HTTP's binary mode, for every kind of record. */
export function toMessage(record: KafkaRecord, reader: Reader): Message {
  const headers = headersOf(record);
  const contentType = headers.find(([name]) => name === "content-type")?.[1] ?? "";
  const event =
    (/^application\/cloudevents\+json/i.test(contentType)
      ? readStructured(record.value)
      : readBinary(headers, record.value)) ?? wrap(record, headers, reader);
  const { datacontenttype, ...attributes } = event.attributes;
  const sent: Record<string, string> = { "kn-namespace": reader.namespace };
  if (datacontenttype !== undefined) sent["content-type"] = toHeaderText(datacontenttype);
  for (const [name, text] of Object.entries(attributes)) sent[`ce-${name}`] = toHeaderText(text);
  sent["ce-knativekafkapartition"] = String(record.partition);
  sent["ce-knativekafkaoffset"] = record.offset;
  return { headers: sent, body: event.data };
}
