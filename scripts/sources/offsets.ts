/** The bookkeeping of a consumer that works on many records at once. */

/**
 * How far one partition is settled. Records are taken in order and settled in any; after a rebalance, or in a topic that was
 * made anew, the order begins again further down.
 */
export class Progress {
  readonly #unsettled = new Set<bigint>();
  readonly topic: string;
  readonly partition: number;
  #next = 0n;
  /** The offset that the brokers have. */
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

/** A bounded number of records in flight. */
export class Slots {
  readonly #max: number;
  #taken = 0;
  #waiting: (() => void)[] = [];

  constructor(max: number) {
    this.#max = max;
  }

  get taken(): number {
    return this.#taken;
  }

  take(): boolean {
    if (this.#taken >= this.#max) return false;
    this.#taken++;
    return true;
  }

  release(): void {
    this.#taken--;
    for (const wake of this.#waiting.splice(0)) wake();
  }

  /** Resolves when one is given back, or after that time. */
  released(milliseconds: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      this.#waiting.push(() => {
        clearTimeout(timer);
        resolve();
      });
    });
  }
}
