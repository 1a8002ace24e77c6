/** Group commit: calls that arrive while a statement is in flight share the next one. See docs/decisions/0015-group-commit.md. */
import { outcomeUnknown, query, type Repetition, RowLocked, unavailable } from "./database.ts";
import {
  BATCH_CALLS_MAX,
  BATCH_FILL_CALLS_MAX,
  BATCH_FILL_MILLISECONDS,
  BATCH_KEY_CALLS_MAX,
  BATCH_LANE_KEYS_MAX,
  BATCH_LANE_STATEMENTS_MAX,
  BATCH_QUEUE_MILLISECONDS_MAX,
  BATCH_ROW_PAUSE_MILLISECONDS,
  BATCH_ROWS_MAX,
  BATCH_SLOW_MILLISECONDS,
  BATCH_STATEMENTS_MAX,
  BATCH_WAIT_MILLISECONDS_MAX,
  REQUEST_ANSWER_MILLISECONDS,
} from "./limits.ts";
import { failure, log } from "./log.ts";
import { Problem } from "./problem.ts";
import { isRecording, measure, type Span, Statement } from "./telemetry.ts";

/** Describes the SQL and the rules of one kind of call, so that many calls can run in one statement. */
export interface BatchStatement<Call> {
  /** Name of the statement in logs and metrics, such as "order.place". */
  readonly name: string;
  /** One statement for many calls. It skips calls whose row is locked (`skip locked`): such a call has no row in the result. */
  readonly many: string;
  /** One statement for one call. It waits for a locked row, up to the role's `lock_timeout`. */
  readonly one: string;
  /** Returns the parameters of `many`: one array for each column, or one JSON array. */
  valuesOfMany(calls: readonly Call[]): unknown[];
  /** Returns the parameters of `one`. */
  valuesOfOne(call: Call): unknown[];
  /** Returns the key of a call. Calls with the same key are applied in order of arrival, never in two statements at a time. */
  keyOf(call: Call): string;
  /** Returns whether a call may be repeated after a lost connection. */
  repetitionOf(call: Call): Repetition;
  /** Returns when the request of a call must be answered, on the clock of `performance.now()`. The call ends its wait before that. */
  deadlineOf?(call: Call): number;
  /** Returns the telemetry span of a call. */
  spanOf?(call: Call): Span | undefined;
}

/** A row of `many`: `position` is the 0-based index of the call that it answers. */
export type Positioned<Row> = Row & { readonly position: number };

/** A call that waits or is in flight, with the promise of its caller. */
interface Entry<Call, Row> {
  readonly call: Call;
  readonly resolve: (row: Row) => void;
  readonly reject: (error: unknown) => void;
  /** The time at which its wait ends, on the clock of `performance.now()`. */
  readonly until: number;
  /** The time of its arrival, on the same clock. */
  readonly since: number;
  timer: NodeJS.Timeout | undefined;
  /** The call runs alone from now on, in the lane: its row was locked, or its batch failed. */
  alone: boolean;
  /** The connection was lost during a statement with this call. */
  mayBeCommitted: boolean;
}

/** A statement in flight outside the lane. */
interface Flight {
  /** It has been in flight for longer than BATCH_SLOW_MILLISECONDS. */
  slow: boolean;
}

/** The calls of one key that wait, oldest first. A queue is in `ready`, is in `lane`, or has calls in flight: exactly one of the three. */
interface KeyQueue<Call, Row> {
  readonly key: string;
  readonly waiting: Entry<Call, Row>[];
  /** At the last attempt the row stayed locked for the whole `lock_timeout`. */
  stuck: boolean;
}

const busy = (detail: string) =>
  new Problem("unavailable", `${detail} The request had no effect; try again in a moment.`, {
    headers: { "retry-after": "1" },
  });

/**
 * Makes a function that runs calls in shared statements. A call that arrives while no statement is in flight is sent at once, with `one`,
 * unless a batch waits for further calls.
 * A call whose row is locked, and each call of a batch that fails, goes to a lane where it runs alone with `one`.
 * @returns a function that resolves to the row of its call. It rejects with the database's error, or with a {@link Problem}:
 *   `unavailable` when the call had no effect, `outcome-unknown` when the connection was lost and the call cannot be repeated
 */
export function batched<Call, Row>(statement: BatchStatement<Call>): (call: Call) => Promise<Row> {
  const { name, many, one } = statement;
  const queues = new Map<string, KeyQueue<Call, Row>>();
  /** The queues whose next call may join a batch. */
  const ready: KeyQueue<Call, Row>[] = [];
  /** The queues whose next call runs alone. */
  const lane: KeyQueue<Call, Row>[] = [];
  /** The calls that wait or are in flight. */
  let calls = 0;
  /** The statements in flight outside the lane. */
  const flights = new Set<Flight>();
  /** The next batch waits for this number of calls, until the timer ends. Undefined: it does not wait. */
  let fill: { readonly calls: number; readonly timer: NodeJS.Timeout } | undefined;
  /** The statements with `one` in flight, in the lane or for a single call. */
  let laneStatements = 0;
  /** The statements of the lane in flight whose row stayed locked at the attempt before. */
  let stuckStatements = 0;
  /** The queues whose next call is in the lane, or whose call in flight waits for its row. */
  const blocked = new Set<KeyQueue<Call, Row>>();
  /** The calls of these queues that are in flight. */
  let blockedInFlight = 0;

  /** Refuses an entry whose wait is over. The call had no effect, unless the connection was lost during an earlier attempt. */
  function expire(queue: KeyQueue<Call, Row>, entry: Entry<Call, Row>): void {
    const index = queue.waiting.indexOf(entry);
    if (index < 0) return;
    queue.waiting.splice(index, 1);
    calls--;
    refuse(entry, unavailable());
    for (const list of queue.waiting.length > 0 ? [] : [ready, lane]) {
      const position = list.indexOf(queue);
      if (position < 0) continue;
      list.splice(position, 1);
      queues.delete(queue.key);
      blocked.delete(queue);
    }
    measureLane();
  }

  /** Rejects a call. `unavailable` would promise that the call had no effect, so it becomes `outcome-unknown` after a lost connection. */
  function refuse(entry: Entry<Call, Row>, error: unknown): void {
    const isUndecided = entry.mayBeCommitted && statement.repetitionOf(entry.call) !== "repeatable";
    const promisesNoEffect = error instanceof Problem && error.code === "unavailable";
    entry.reject(isUndecided && promisesNoEffect ? outcomeUnknown() : error);
  }

  function startWaiting(queue: KeyQueue<Call, Row>, entry: Entry<Call, Row>): void {
    entry.timer ??= setTimeout(expire, Math.max(0, entry.until - performance.now()), queue, entry);
  }

  function stopWaiting(entry: Entry<Call, Row>): void {
    clearTimeout(entry.timer);
    entry.timer = undefined;
  }

  /** Takes the calls of the next batch: one of each queue, then a second of each. A key with many calls does not displace others. */
  function takeBatch(): { entries: Entry<Call, Row>[]; sources: KeyQueue<Call, Row>[] } {
    const sources = ready.splice(0, BATCH_ROWS_MAX);
    const entries: Entry<Call, Row>[] = [];
    for (let taken = -1; entries.length < BATCH_ROWS_MAX && taken !== entries.length; ) {
      taken = entries.length;
      for (const queue of sources) {
        const [entry] = queue.waiting;
        if (entry === undefined || entry.alone || entries.length === BATCH_ROWS_MAX) continue;
        queue.waiting.shift();
        stopWaiting(entry);
        entries.push(entry);
      }
    }
    return { entries, sources };
  }

  /** Adds a queue without calls in flight to `ready` or to `lane`, as its next call requires. Refuses calls when the lane is full. */
  function enqueue(queue: KeyQueue<Call, Row>): void {
    const [next] = queue.waiting;
    blocked.delete(queue);
    if (next === undefined) queues.delete(queue.key);
    else if (!next.alone) ready.push(queue);
    else if (lane.length < BATCH_LANE_KEYS_MAX) {
      lane.push(queue);
      blocked.add(queue);
    } else {
      const refused = queue.waiting.filter(({ alone }) => alone);
      for (const entry of refused) {
        stopWaiting(entry);
        calls--;
        queue.waiting.splice(queue.waiting.indexOf(entry), 1);
        refuse(entry, busy(`${BATCH_LANE_KEYS_MAX} users or events already wait for locked rows.`));
      }
      enqueue(queue);
    }
  }

  /** Returns entries without an answer to the front of their queues, to run alone. */
  function requeueAlone(entries: readonly Entry<Call, Row>[]): void {
    for (const entry of entries.toReversed()) {
      const queue = queues.get(statement.keyOf(entry.call));
      if (queue === undefined) throw new Error(`${name}: a call in flight has no queue`);
      entry.alone = true;
      queue.waiting.unshift(entry);
      startWaiting(queue, entry);
    }
  }

  /** Refuses the entries of a failed batch that must not run again. Returns the entries to run alone. */
  function handleFailedBatch(entries: readonly Entry<Call, Row>[], error: unknown): Entry<Call, Row>[] {
    const isLost = error instanceof Problem && error.code === "outcome-unknown";
    const alone: Entry<Call, Row>[] = [];
    for (const entry of entries) {
      if (isLost && statement.repetitionOf(entry.call) !== "once") {
        entry.mayBeCommitted = true;
        alone.push(entry);
      } else if (isLost || (entries.length === 1 && error instanceof Problem && !(error instanceof RowLocked))) {
        calls--;
        refuse(entry, error);
      } else alone.push(entry);
    }
    return alone;
  }

  function countReadyCalls(): number {
    return ready.reduce((sum, queue) => sum + queue.waiting.length, 0);
  }

  /** Records in traces and metrics that a statement begins and that the wait of its calls ends. Returns undefined when telemetry is off. */
  function beginStatement(entries: readonly Entry<Call, Row>[], text: string, inLane: boolean): Statement | undefined {
    if (!isRecording()) return undefined;
    const spans = entries.flatMap(({ call }) => statement.spanOf?.(call) ?? []);
    const begun = new Statement(name, text, spans, entries.length);
    measure("lotus.batch.calls", entries.length, { "db.query.summary": name });
    measure("lotus.queue.calls", countReadyCalls(), { "db.query.summary": name });
    // A single call outside the lane usually did not wait.
    if (entries.length === 1 && !inLane) return begun;
    for (const { call, since } of entries) {
      const caller = statement.spanOf?.(call);
      if (!caller?.sampled) continue;
      caller.child(`wait ${name}`, "internal", since).set({ "lotus.lane": inLane }).link(begun.span).end();
    }
    return begun;
  }

  /**
   * Sends one batch. Calls that the statement skipped, or that may run again after its failure, return to their queues.
   * @returns the number of answered calls
   */
  async function sendMany(entries: readonly Entry<Call, Row>[]): Promise<number> {
    let answered = 0;
    let unanswered: (Entry<Call, Row> | undefined)[] = [...entries];
    try {
      const begun = beginStatement(entries, many, false);
      const values = statement.valuesOfMany(entries.map(({ call }) => call));
      for (const row of await query<Positioned<Row>>(`${name} (many)`, many, values, "once", begun)) {
        const entry = unanswered[row.position];
        if (entry === undefined) continue;
        unanswered[row.position] = undefined;
        answered++;
        calls--;
        entry.resolve(row);
      }
    } catch (error) {
      log("warning", "a batch failed", { statement: name, count: entries.length, reason: failure(error).reason ?? "" });
      unanswered = handleFailedBatch(entries, error);
    }
    requeueAlone(unanswered.filter((entry) => entry !== undefined));
    return answered;
  }

  /** Sends one call. Resolves to true when its row stayed locked and the entry waits again. */
  async function sendOne(queue: KeyQueue<Call, Row>, entry: Entry<Call, Row>): Promise<boolean> {
    try {
      const { call } = entry;
      const begun = beginStatement([entry], one, entry.alone);
      const [row] = await query<Row>(name, one, statement.valuesOfOne(call), statement.repetitionOf(call), begun);
      if (row === undefined) throw new Error(`${name} returned no row`);
      calls--;
      entry.resolve(row);
    } catch (error) {
      if (error instanceof RowLocked && performance.now() < entry.until) {
        // A server without the role's lock_timeout may refuse at once. The pause limits the number of attempts.
        await new Promise((resolve) => setTimeout(resolve, BATCH_ROW_PAUSE_MILLISECONDS));
        entry.alone = true;
        queue.waiting.unshift(entry);
        startWaiting(queue, entry);
        return true;
      }
      calls--;
      refuse(entry, error);
    }
    return false;
  }

  /** Counts a statement as in flight until `endFlight` is called. Calls `onSlow` after BATCH_SLOW_MILLISECONDS. */
  function beginFlight(onSlow: (flight: Flight) => void): { endFlight(): void } {
    const flight: Flight = { slow: false };
    flights.add(flight);
    const timer = setTimeout(() => {
      onSlow(flight);
      sendNext();
    }, BATCH_SLOW_MILLISECONDS);
    return {
      endFlight() {
        clearTimeout(timer);
        flights.delete(flight);
      },
    };
  }

  /**
   * Lets the next batch wait for the next requests of the clients that receive their answers now, because a larger batch costs less
   * for each call. It waits for as many calls as the last statement answered and as wait already.
   * @param answered the calls of the last statement
   */
  function beginFill(answered: number): void {
    endFill();
    const calls = Math.min(answered + countReadyCalls(), BATCH_FILL_CALLS_MAX);
    if (calls < 2) return;
    const end = () => {
      endFill();
      sendNext();
    };
    // The answers of a large batch may take longer than the timer. Node reads the requests that have arrived before an immediate.
    fill = { calls, timer: setTimeout(() => setImmediate(end), BATCH_FILL_MILLISECONDS) };
  }

  function endFill(): void {
    clearTimeout(fill?.timer);
    fill = undefined;
  }

  /** One statement at a time makes the largest batches. A slow statement must not delay other calls, so a second one may run beside it. */
  function mayBeginFlight(): boolean {
    if (fill !== undefined && countReadyCalls() < fill.calls) return false;
    return flights.size < BATCH_STATEMENTS_MAX && [...flights].every(({ slow }) => slow);
  }

  async function runBatch(
    entries: readonly Entry<Call, Row>[],
    sources: readonly KeyQueue<Call, Row>[],
  ): Promise<void> {
    const { endFlight } = beginFlight((flight) => {
      flight.slow = true;
    });
    const answered = await sendMany(entries);
    endFlight();
    for (const queue of sources) enqueue(queue);
    beginFill(answered);
    sendNext();
  }

  /**
   * Runs a single call with `one`, which waits for a locked row. It occupies one of the lane's statements. When it is slow, it no longer
   * counts as a batch, so that the next batch can begin.
   */
  async function runSingle(entry: Entry<Call, Row>, queue: KeyQueue<Call, Row>): Promise<void> {
    let isBlocked = false;
    const { endFlight } = beginFlight((flight) => {
      flights.delete(flight);
      isBlocked = true;
      blocked.add(queue);
      blockedInFlight++;
      measureLane();
    });
    laneStatements++;
    queue.stuck = await sendOne(queue, entry);
    laneStatements--;
    endFlight();
    if (isBlocked) blockedInFlight--;
    enqueue(queue);
    if (isBlocked) measureLane();
    else beginFill(1);
    sendNext();
  }

  /** Measures the calls that wait for a locked row, in flight or behind such a call. */
  function measureLane(): void {
    if (!isRecording()) return;
    let waiting = blockedInFlight;
    for (const queue of blocked) waiting += queue.waiting.length;
    measure("lotus.lane.calls", waiting, { "db.query.summary": name });
  }

  async function runInLane(queue: KeyQueue<Call, Row>, entry: Entry<Call, Row>): Promise<void> {
    blockedInFlight++;
    measureLane();
    const { stuck } = queue;
    laneStatements++;
    if (stuck) stuckStatements++;
    queue.stuck = await sendOne(queue, entry);
    laneStatements--;
    blockedInFlight--;
    if (stuck) stuckStatements--;
    enqueue(queue);
    measureLane();
    sendNext();
  }

  /** Removes the next queue from the lane, and returns it. Rows that stay locked never occupy all statements of the lane. */
  function nextInLane(): KeyQueue<Call, Row> | undefined {
    const notStuck = lane.findIndex(({ stuck }) => !stuck);
    if (notStuck >= 0) return lane.splice(notStuck, 1)[0];
    return stuckStatements < Math.max(1, BATCH_LANE_STATEMENTS_MAX - 1) ? lane.shift() : undefined;
  }

  /** Sends as many waiting calls as the limits allow: first those of the lane, then batches. */
  function sendNext(): void {
    while (laneStatements < BATCH_LANE_STATEMENTS_MAX && lane.length > 0) {
      const queue = nextInLane();
      const entry = queue?.waiting.shift();
      if (queue === undefined || entry === undefined) break;
      stopWaiting(entry);
      void runInLane(queue, entry);
    }
    while (ready.length > 0 && mayBeginFlight()) {
      endFill();
      const { entries, sources } = takeBatch();
      const [entry] = entries;
      const [queue] = sources;
      const single = entries.length === 1 && sources.length === 1 && laneStatements < BATCH_LANE_STATEMENTS_MAX;
      if (single && entry !== undefined && queue !== undefined) void runSingle(entry, queue);
      else void runBatch(entries, sources);
    }
  }

  return (call) =>
    new Promise<Row>((resolve, reject) => {
      const key = statement.keyOf(call);
      const known = queues.get(key);
      if (calls >= BATCH_CALLS_MAX) return reject(busy(`${BATCH_CALLS_MAX} requests already wait for the database.`));
      if (known !== undefined && known.waiting.length >= BATCH_KEY_CALLS_MAX)
        return reject(busy(`${BATCH_KEY_CALLS_MAX} of your requests already wait.`));
      const since = performance.now();
      const [first] = ready[0]?.waiting ?? [];
      if (first !== undefined && since - first.since > BATCH_QUEUE_MILLISECONDS_MAX)
        return reject(busy(`Calls wait for the database for ${BATCH_QUEUE_MILLISECONDS_MAX / 1000} s already.`));
      const until = Math.min(
        since + BATCH_WAIT_MILLISECONDS_MAX,
        (statement.deadlineOf?.(call) ?? Number.POSITIVE_INFINITY) - REQUEST_ANSWER_MILLISECONDS,
      );
      const entry: Entry<Call, Row> = {
        call,
        resolve,
        reject,
        until,
        since,
        timer: undefined,
        alone: false,
        mayBeCommitted: false,
      };
      const queue = known ?? { key, waiting: [], stuck: false };
      queue.waiting.push(entry);
      calls++;
      if (known === undefined) {
        queues.set(key, queue);
        ready.push(queue);
      }
      if (known === undefined || fill !== undefined) sendNext();
      // The call was not sent at once.
      if (queue.waiting.at(-1) === entry) startWaiting(queue, entry);
      if (blocked.has(queue)) measureLane();
    });
}
