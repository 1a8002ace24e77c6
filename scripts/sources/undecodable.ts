/**
 * Record batches that kafkajs cannot decompress. kafkajs ends the consumer at such a batch, and with it every partition of a source.
 * Here each record of the batch becomes a record with a reason, which the source moves to the dead letters.
 */
import { randomUUID } from "node:crypto";

/** Batches of Kafka's record format 2 have this magic byte. Brokers convert older formats since version 4. */
const MAGIC = 2;
/** Where the fields of a batch are, in bytes before its compressed records (Kafka protocol, "Record Batch"). */
const MAGIC_BEFORE = 45;
const LAST_OFFSET_DELTA_BEFORE = 38;
const COUNT_BEFORE = 4;
/** Records of one batch that are reported. A producer with default settings sends far fewer. */
const RECORDS_MAX = 100_000;
/** The header with the reason. Its name is unknown to producers. */
const HEADER = `undecodable-${randomUUID()}`;

/** Returns an integer as a zigzag varint. */
function varint(value: number): Buffer {
  const bytes: number[] = [];
  let rest = value < 0 ? -2 * value - 1 : 2 * value;
  for (; rest > 127; rest = Math.floor(rest / 128)) bytes.push((rest % 128) | 128);
  return Buffer.from([...bytes, rest]);
}

const text = (value: string) => Buffer.concat([varint(Buffer.byteLength(value)), Buffer.from(value)]);

/** Returns a record without key and value, and with the reason as its header. */
function record(offsetDelta: number, reason: string): Buffer {
  // Attributes and time, offset, key and value of length -1, one header.
  const content = Buffer.concat([
    Buffer.from([0, 0]),
    varint(offsetDelta),
    varint(-1),
    varint(-1),
    varint(1),
    text(HEADER),
    text(reason),
  ]);
  return Buffer.concat([varint(content.length), content]);
}

/**
 * Replaces the records of a batch.
 * @param compressed the records, in the buffer that also contains the head of the batch
 * @throws {unknown} `error` when the batch has another format or too many records
 */
function substitute(compressed: Buffer, error: unknown): Buffer {
  const { buffer, byteOffset } = compressed;
  if (byteOffset < MAGIC_BEFORE) throw error;
  const head = new DataView(buffer, byteOffset - MAGIC_BEFORE, MAGIC_BEFORE);
  const count = head.getInt32(MAGIC_BEFORE - COUNT_BEFORE);
  if (head.getInt8(0) !== MAGIC || count < 1 || count > RECORDS_MAX) throw error;
  // The offset of the last record counts for the next fetch; a compacted batch has gaps.
  const last = head.getInt32(MAGIC_BEFORE - LAST_OFFSET_DELTA_BEFORE);
  const reason = `its batch cannot be decompressed: ${(error as Error).message}`;
  return Buffer.concat(Array.from({ length: count }, (_, index) => record(index === count - 1 ? last : index, reason)));
}

interface CompressionCodec {
  decompress(compressed: Buffer): Promise<Buffer>;
}
type Codecs = Record<number, () => CompressionCodec>;

let guarded: Promise<void> | undefined;

async function guard(): Promise<void> {
  const { default: kafkajs } = await import("kafkajs");
  const codecs = kafkajs.CompressionCodecs as unknown as Codecs;
  const { GZIP, Snappy, LZ4, ZSTD } = kafkajs.CompressionTypes;
  for (const type of [GZIP, Snappy, LZ4, ZSTD]) {
    const original = codecs[type];
    if (original === undefined) continue;
    codecs[type] = () => ({
      ...(type === GZIP && original()),
      async decompress(compressed) {
        try {
          return await original().decompress(compressed);
        } catch (error) {
          return substitute(compressed, error);
        }
      },
    });
  }
}

/** Makes kafkajs read past batches that it cannot decompress, in this process. */
export function readPastUndecodable(): Promise<void> {
  guarded ??= guard();
  return guarded;
}

/** Returns why a record could not be decoded; undefined for every other record. */
export function undecodableReason(headers: Readonly<Record<string, unknown>>): string | undefined {
  const reason = headers[HEADER];
  return reason === undefined ? undefined : String(reason);
}
