/** Counts the offsets and slots of a consumer with many records in flight. */

/**
 * The settled offsets of one partition. A consumer receives records in order and settles them in any order. After a rebalance, or
 * in a topic that was created again, it receives lower offsets.
 */
export class Progress {
  readonly #unsettled = new Set<bigint>();
  readonly topic: string;
  readonly partition: number;
  #next = 0n;
  /** The committed offset. */
  committed = 0n;

  constructor(topic: string, partition: number) {
    this.topic = topic;
    this.partition = partition;
  }

  take(offset: bigint): void {
    this.#unsettled.add(offset);
    this.#next = offset + 1n;
  }

  settle(offset: bigint): void {
    this.#unsettled.delete(offset);
  }

  /** The lowest offset that is not settled: where a new consumer must begin. */
  get position(): bigint {
    let lowest = this.#next;
    for (const offset of this.#unsettled) if (offset < lowest) lowest = offset;
    return lowest;
  }
}
