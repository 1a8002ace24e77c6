/** Group commit: joins calls that arrive while a statement is in flight into the next statement. */
import { outcomeUnknown, query, type Repetition, RowLocked, unavailable } from "./database.ts";
import { failure, log } from "./log.ts";
import { Problem } from "./problem.ts";
import {
  BATCH_CALLS_MAX,
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
} from "./settings.ts";
import { isRecording, measure, type Span, Statement } from "./telemetry.ts";

/** Describes how many calls of one kind run in one statement. */
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
  /** Returns when the request of a call must be answered, on the clock of `performance.now()`. The call stops waiting before. */
  deadlineOf?(call: Call): number;
  /** Returns the span of a call. */
  spanOf?(call: Call): Span | undefined;
}

/** A row of `many`: `position` is the 0-based index of the call that it answers. */
export type Positioned<Row> = Row & { readonly position: number };

interface Entry<Call, Row> {
  readonly call: Call;
  readonly resolve: (row: Row) => void;
  readonly reject: (error: unknown) => void;
  /** The end of its wait, on the clock of `performance.now()`. */
  readonly until: number;
  /** Its arrival, on the same clock. */
  readonly since: number;
  timer: NodeJS.Timeout | undefined;
  /** The entry leaves the batches and goes alone: its row was locked, or its batch failed. */
  alone: boolean;
  /** A statement with this entry was cut off; it may have been committed. */
  lost: boolean;
}

/** A statement in flight. */
interface Flight {
  /** It has been in flight for longer than BATCH_SLOW_MILLISECONDS. */
  slow: boolean;
}

/** The calls of one key that wait. A line is in `ready`, in `lane` or in flight, never in two of them. */
interface Line<Call, Row> {
  readonly key: string;
  readonly waiting: Entry<Call, Row>[];
  /** The row was locked for the whole `lock_timeout` the last time. */
  stuck: boolean;
}

const busy = (detail: string) =>
  new Problem("unavailable", `${detail} The request had no effect; try again in a moment.`, {
    headers: { "retry-after": "1" },
  });

/**
 * Makes a function that runs calls in shared statements. A call that arrives at an idle function goes out at once, with `one`.
 * A call whose row is locked, and each call of a batch that fails, goes to a lane where it runs alone with `one`.
 * @returns a function that resolves to the row of its call. It rejects with the database's error, or with a {@link Problem}:
 *   `unavailable` when the call had no effect, `outcome-unknown` when the connection was lost and the call cannot be repeated
 */
export function batched<Call, Row>(statement: BatchStatement<Call>): (call: Call) => Promise<Row> {
  const { name, many, one } = statement;
  const lines = new Map<string, Line<Call, Row>>();
  const ready: Line<Call, Row>[] = [];
  const lane: Line<Call, Row>[] = [];
  let calls = 0;
  /** The statements in flight outside the lane. */
  const flights = new Set<Flight>();
  let laneStatements = 0;
  let stuckStatements = 0;
  /** The lines whose next call is in the lane, or whose call in flight waits for its row. */
  const held = new Set<Line<Call, Row>>();
  /** The calls of these lines that are in flight. */
  let heldInFlight = 0;

  /** Ends the wait of an entry that has no answer in time. The call has had no effect, unless an earlier statement was lost. */
  function expire(line: Line<Call, Row>, entry: Entry<Call, Row>): void {
    const index = line.waiting.indexOf(entry);
    if (index < 0) return;
    line.waiting.splice(index, 1);
    calls--;
    refuse(entry, unavailable());
    for (const place of line.waiting.length > 0 ? [] : [ready, lane]) {
      const at = place.indexOf(line);
      if (at < 0) continue;
      place.splice(at, 1);
      lines.delete(line.key);
      held.delete(line);
    }
    measureLane();
  }

  function refuse(entry: Entry<Call, Row>, error: unknown): void {
    const undecided = entry.lost && statement.repetitionOf(entry.call) !== "repeatable";
    const unchanged = error instanceof Problem && error.code === "unavailable";
    entry.reject(undecided && unchanged ? outcomeUnknown() : error);
  }

  function wait(line: Line<Call, Row>, entry: Entry<Call, Row>): void {
    entry.timer ??= setTimeout(expire, Math.max(0, entry.until - performance.now()), line, entry);
  }

  function leave(entry: Entry<Call, Row>): void {
    clearTimeout(entry.timer);
    entry.timer = undefined;
  }

  /** Takes one call of each line, then a second of each: a key with many calls shares the statement with the others. */
  function take(): { entries: Entry<Call, Row>[]; from: Line<Call, Row>[] } {
    const from = ready.splice(0, BATCH_ROWS_MAX);
    const entries: Entry<Call, Row>[] = [];
    for (let taken = -1; entries.length < BATCH_ROWS_MAX && taken !== entries.length; ) {
      taken = entries.length;
      for (const line of from) {
        const [entry] = line.waiting;
        if (entry === undefined || entry.alone || entries.length === BATCH_ROWS_MAX) continue;
        line.waiting.shift();
        leave(entry);
        entries.push(entry);
      }
    }
    return { entries, from };
  }

  /** Puts a line where its next call belongs, after its calls in flight have ended. */
  function place(line: Line<Call, Row>): void {
    const [next] = line.waiting;
    held.delete(line);
    if (next === undefined) lines.delete(line.key);
    else if (!next.alone) ready.push(line);
    else if (lane.length < BATCH_LANE_KEYS_MAX) {
      lane.push(line);
      held.add(line);
    } else {
      const refused = line.waiting.filter(({ alone }) => alone);
      for (const entry of refused) {
        leave(entry);
        calls--;
        line.waiting.splice(line.waiting.indexOf(entry), 1);
        refuse(entry, busy(`${BATCH_LANE_KEYS_MAX} keys wait for locked rows already.`));
      }
      place(line);
    }
  }

  /** Puts entries without an answer back to the front of their lines, to go alone. */
  function putBack(entries: readonly Entry<Call, Row>[]): void {
    for (const entry of entries.toReversed()) {
      const line = lines.get(statement.keyOf(entry.call));
      if (line === undefined) throw new Error(`${name}: a call in flight has no line`);
      entry.alone = true;
      line.waiting.unshift(entry);
      wait(line, entry);
    }
  }

  /** Judges a batch whose statement failed. Entries that may succeed alone stay; the others are refused. */
  function judge(entries: readonly Entry<Call, Row>[], error: unknown): Entry<Call, Row>[] {
    const lost = error instanceof Problem && error.code === "outcome-unknown";
    const alone: Entry<Call, Row>[] = [];
    for (const entry of entries) {
      if (lost && statement.repetitionOf(entry.call) !== "once") {
        entry.lost = true;
        alone.push(entry);
      } else if (lost || (entries.length === 1 && error instanceof Problem && !(error instanceof RowLocked))) {
        calls--;
        refuse(entry, error);
      } else alone.push(entry);
    }
    return alone;
  }

  function callsReady(): number {
    return ready.reduce((sum, line) => sum + line.waiting.length, 0);
  }

  /** Begins the statement in traces and metrics, and ends the wait of its calls. Undefined: telemetry is off. */
  function beginStatement(entries: readonly Entry<Call, Row>[], text: string, inLane: boolean): Statement | undefined {
    if (!isRecording()) return undefined;
    const spans = entries.flatMap(({ call }) => statement.spanOf?.(call) ?? []);
    const begun = new Statement(name, text, spans, entries.length);
    measure("lotus.batch.calls", entries.length, { "db.query.summary": name });
    measure("lotus.queue.calls", callsReady(), { "db.query.summary": name });
    // A single call that found the function idle did not wait.
    if (entries.length === 1 && !inLane) return begun;
    for (const { call, since } of entries)
      statement
        .spanOf?.(call)
        ?.child(`wait ${name}`, "internal", since)
        .set({ "lotus.lane": inLane })
        .link(begun.span)
        .end();
    return begun;
  }

  async function sendMany(entries: readonly Entry<Call, Row>[]): Promise<void> {
    let open: (Entry<Call, Row> | undefined)[] = [...entries];
    try {
      const begun = beginStatement(entries, many, false);
      const values = statement.valuesOfMany(entries.map(({ call }) => call));
      for (const row of await query<Positioned<Row>>(`${name} (many)`, many, values, "once", begun)) {
        const entry = open[row.position];
        if (entry === undefined) continue;
        open[row.position] = undefined;
        calls--;
        entry.resolve(row);
      }
    } catch (error) {
      log("warning", "a batch failed", { statement: name, count: entries.length, reason: failure(error).reason ?? "" });
      open = judge(entries, error);
    }
    putBack(open.filter((entry) => entry !== undefined));
  }

  /** Sends one call. Resolves to true when its row stayed locked: the entry waits again. */
  async function sendOne(line: Line<Call, Row>, entry: Entry<Call, Row>): Promise<boolean> {
    try {
      const { call } = entry;
      const begun = beginStatement([entry], one, entry.alone);
      const [row] = await query<Row>(name, one, statement.valuesOfOne(call), statement.repetitionOf(call), begun);
      if (row === undefined) throw new Error(`${name} returned no row`);
      calls--;
      entry.resolve(row);
    } catch (error) {
      if (error instanceof RowLocked && performance.now() < entry.until) {
        // A server without the role's lock_timeout refuses at once: the pause bounds the attempts.
        await new Promise((resolve) => setTimeout(resolve, BATCH_ROW_PAUSE_MILLISECONDS));
        entry.alone = true;
        line.waiting.unshift(entry);
        wait(line, entry);
        return true;
      }
      calls--;
      refuse(entry, error);
    }
    return false;
  }

  /** Counts a statement as in flight until `land` is called. Calls `late` when it takes long. */
  function takeOff(late: (flight: Flight) => void): { land(): void } {
    const flight: Flight = { slow: false };
    flights.add(flight);
    const timer = setTimeout(() => {
      late(flight);
      pump();
    }, BATCH_SLOW_MILLISECONDS);
    return {
      land() {
        clearTimeout(timer);
        flights.delete(flight);
      },
    };
  }

  /** One statement at a time makes the largest batches. A slow one must not delay the others: a second goes out beside it. */
  function hasRoom(): boolean {
    return flights.size < BATCH_STATEMENTS_MAX && [...flights].every(({ slow }) => slow);
  }

  async function runBatch(entries: readonly Entry<Call, Row>[], from: readonly Line<Call, Row>[]): Promise<void> {
    const { land } = takeOff((flight) => {
      flight.slow = true;
    });
    await sendMany(entries);
    land();
    for (const line of from) place(line);
    pump();
  }

  /** Runs a single call. A slow one waits for its row, as a statement of the lane does, and no longer counts as a batch. */
  async function runSingle(entry: Entry<Call, Row>, line: Line<Call, Row>): Promise<void> {
    let isHeld = false;
    const { land } = takeOff((flight) => {
      flights.delete(flight);
      isHeld = true;
      held.add(line);
      heldInFlight++;
      measureLane();
    });
    laneStatements++;
    line.stuck = await sendOne(line, entry);
    laneStatements--;
    land();
    if (isHeld) heldInFlight--;
    place(line);
    if (isHeld) measureLane();
    pump();
  }

  /** Measures the calls that wait for a locked row, in flight or behind such a call. */
  function measureLane(): void {
    if (!isRecording()) return;
    let waiting = heldInFlight;
    for (const line of held) waiting += line.waiting.length;
    measure("lotus.lane.calls", waiting, { "db.query.summary": name });
  }

  async function runInLane(line: Line<Call, Row>, entry: Entry<Call, Row>): Promise<void> {
    heldInFlight++;
    measureLane();
    const { stuck } = line;
    laneStatements++;
    if (stuck) stuckStatements++;
    line.stuck = await sendOne(line, entry);
    laneStatements--;
    heldInFlight--;
    if (stuck) stuckStatements--;
    place(line);
    measureLane();
    pump();
  }

  /** Finds the next line of the lane. Rows that stay locked never occupy all statements of the lane. */
  function nextInLane(): Line<Call, Row> | undefined {
    const fresh = lane.findIndex(({ stuck }) => !stuck);
    if (fresh >= 0) return lane.splice(fresh, 1)[0];
    return stuckStatements < Math.max(1, BATCH_LANE_STATEMENTS_MAX - 1) ? lane.shift() : undefined;
  }

  function pump(): void {
    while (laneStatements < BATCH_LANE_STATEMENTS_MAX && lane.length > 0) {
      const line = nextInLane();
      const entry = line?.waiting.shift();
      if (line === undefined || entry === undefined) break;
      leave(entry);
      void runInLane(line, entry);
    }
    while (ready.length > 0 && hasRoom()) {
      const { entries, from } = take();
      const [entry] = entries;
      const [line] = from;
      const single = entries.length === 1 && from.length === 1 && laneStatements < BATCH_LANE_STATEMENTS_MAX;
      if (single && entry !== undefined && line !== undefined) void runSingle(entry, line);
      else void runBatch(entries, from);
    }
  }

  return (call) =>
    new Promise<Row>((resolve, reject) => {
      const key = statement.keyOf(call);
      const known = lines.get(key);
      if (calls >= BATCH_CALLS_MAX) return reject(busy(`${BATCH_CALLS_MAX} calls wait for the database already.`));
      if (known !== undefined && known.waiting.length >= BATCH_KEY_CALLS_MAX)
        return reject(busy(`${BATCH_KEY_CALLS_MAX} requests of yours wait already.`));
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
        lost: false,
      };
      const line = known ?? { key, waiting: [], stuck: false };
      line.waiting.push(entry);
      calls++;
      if (known === undefined) {
        lines.set(key, line);
        ready.push(line);
        pump();
      }
      if (line.waiting.at(-1) === entry) wait(line, entry);
      if (held.has(line)) measureLane();
    });
}
