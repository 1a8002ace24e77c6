import { Client } from "pg";
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { startTestLotus, type TestLotus } from "../../scripts/testing/lotus.ts";
import { batched } from "./batch.ts";
import { outcomeUnknown, query, type Repetition, RowLocked, unavailable } from "./database.ts";
import {
  BATCH_CALLS_MAX,
  BATCH_FILL_CALLS_MAX,
  BATCH_FILL_MILLISECONDS,
  BATCH_KEY_CALLS_MAX,
  BATCH_LANE_STATEMENTS_MAX,
  BATCH_QUEUE_MILLISECONDS_MAX,
  BATCH_ROW_PAUSE_MILLISECONDS,
  BATCH_ROWS_MAX,
  BATCH_SLOW_MILLISECONDS,
  BATCH_STATEMENTS_MAX,
  BATCH_WAIT_MILLISECONDS_MAX,
  REQUEST_ANSWER_MILLISECONDS,
} from "./limits.ts";
import type { Problem } from "./problem.ts";
import { isRecording, measure } from "./telemetry.ts";

vi.mock("./database.ts", async (original) => {
  const actual = await original<typeof import("./database.ts")>();
  return { ...actual, query: vi.fn(actual.query) };
});

vi.mock("./telemetry.ts", async (original) => {
  const actual = await original<typeof import("./telemetry.ts")>();
  return { ...actual, isRecording: vi.fn(actual.isRecording), measure: vi.fn(actual.measure) };
});

interface Call {
  readonly key: string;
  readonly value: number;
  readonly repetition?: Repetition;
}
interface Row {
  readonly value: number;
}

const description = {
  name: "test",
  many: "many",
  one: "one",
  valuesOfMany: (calls: readonly Call[]) => [calls],
  valuesOfOne: (call: Call) => [call],
  keyOf: ({ key }: Call) => key,
  repetitionOf: ({ repetition }: Call) => repetition ?? "once",
};

/** A statement that the fake database has received and not answered yet. */
interface Sent {
  readonly kind: "many" | "one";
  readonly calls: readonly Call[];
  readonly repetition: Repetition | undefined;
  /** Answers the calls, except those with these values: their rows are locked. */
  reply(locked?: readonly number[]): Promise<void>;
  /** Answers the calls, and waits until the next batch is sent. */
  answer(locked?: readonly number[]): Promise<void>;
  fail(error: unknown): Promise<void>;
}

/** Waits until every promise that can settle has settled. */
const turn = () => vi.advanceTimersByTimeAsync(0);
/** Waits until a batch no longer waits for the next requests of the clients that were answered. */
const fillEnds = async () => {
  await vi.advanceTimersByTimeAsync(BATCH_FILL_MILLISECONDS);
  await new Promise((resolve) => setImmediate(resolve));
  await turn();
};

const codeOf = (promise: Promise<unknown>) =>
  promise.then(
    () => "done",
    (error: Problem | Error) => ("code" in error ? error.code : error.message),
  );

describe("calls in shared statements, with a fake database", () => {
  let sent: Sent[];

  beforeEach(() => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "performance"] });
    vi.spyOn(process.stdout, "write").mockReturnValue(true);
    sent = [];
    vi.mocked(query).mockImplementation((_, text, values, repetition) => {
      const kind = text as "many" | "one";
      const calls = (kind === "many" ? values[0] : values) as readonly Call[];
      return new Promise((resolve, reject) => {
        sent.push({
          kind,
          calls,
          repetition,
          reply(locked = []) {
            const rows = calls.map(({ value }, position) => ({ value, position }));
            resolve(rows.filter(({ value }) => !locked.includes(value)) as never);
            return turn().then(() => undefined);
          },
          answer(locked) {
            return this.reply(locked).then(fillEnds);
          },
          fail(error) {
            reject(error);
            return fillEnds();
          },
        });
      });
    });
    return () => {
      vi.useRealTimers();
      vi.restoreAllMocks();
    };
  });

  const next = (): Sent => {
    const statement = sent.shift();
    if (statement === undefined) throw new Error("The database has received no statement.");
    return statement;
  };
  const values = ({ calls }: Sent) => calls.map(({ value }) => value);
  /** Answers all statements, in order, until no more come. */
  const answerAll = async (locked: readonly number[] = []) => {
    while (sent.length > 0) await next().answer(locked);
  };
  /** Keeps all statements of batches busy, so that later calls wait for the next one. Returns the statements. */
  const occupy = async (run: (call: Call) => Promise<Row>): Promise<Sent[]> => {
    let value = 0;
    const begin = () => void run({ key: `busy ${--value}`, value });
    begin();
    begin();
    begin();
    await next().answer();
    for (let batch = 1; batch < BATCH_STATEMENTS_MAX; batch++) {
      begin();
      begin();
      await vi.advanceTimersByTimeAsync(BATCH_SLOW_MILLISECONDS);
    }
    await vi.advanceTimersByTimeAsync(BATCH_SLOW_MILLISECONDS);
    expect(sent.map(({ kind }) => kind)).toEqual(Array(BATCH_STATEMENTS_MAX).fill("many"));
    return sent.splice(0);
  };
  const call = (value: number, extra: Partial<Call> = {}): Call => ({ key: `key ${value}`, value, ...extra });

  it("sends a call that arrives at an idle function at once, with the statement for one", async () => {
    const run = batched<Call, Row>(description);
    const answered = run(call(1, { repetition: "keyed" }));
    expect(sent).toMatchObject([{ kind: "one", repetition: "keyed" }]);
    await next().answer();
    expect(await answered).toEqual({ value: 1, position: 0 });
  });

  it("joins the calls that arrive while statements are in flight, and gives each its own row", async () => {
    const run = batched<Call, Row>(description);
    const [first] = await occupy(run);
    const answers = [1, 2, 3].map((value) => run(call(value)));
    expect(sent).toEqual([]);
    await first?.answer();
    expect(sent.map((statement) => [statement.kind, values(statement)])).toEqual([["many", [1, 2, 3]]]);
    await next().answer();
    expect((await Promise.all(answers)).map(({ value }) => value)).toEqual([1, 2, 3]);
  });

  it("applies calls of one key in order of arrival, and never in two statements at a time", async () => {
    const run = batched<Call, Row>(description);
    const first = run({ key: "a", value: 1 });
    const rest = [2, 3].map((value) => run({ key: "a", value }));
    expect(sent).toHaveLength(1);
    await next().answer();
    expect(values(next())).toEqual([2, 3]);
    void [first, ...rest];
  });

  it("shares a statement between keys: one call of each, then a second of each", async () => {
    const run = batched<Call, Row>(description);
    const [first] = await occupy(run);
    for (let value = 0; value < BATCH_ROWS_MAX + 10; value++) void run({ key: "many", value });
    void run({ key: "few", value: 1000 });
    await first?.answer();
    const batch = next();
    expect(values(batch)).toHaveLength(BATCH_ROWS_MAX);
    expect(values(batch).slice(0, 3)).toEqual([0, 1000, 1]);
  });

  it("keeps the number of statements in flight within its limits", async () => {
    const run = batched<Call, Row>(description);
    await occupy(run);
    for (let value = 0; value < BATCH_ROWS_MAX * 4; value++) void run(call(value));
    expect(sent).toEqual([]);
  });

  it("waits with the next batch for the clients that were answered, and sends it when as many calls are ready", async () => {
    const run = batched<Call, Row>(description);
    for (const value of [1, 2, 3]) void run(call(value));
    await next().reply();
    expect(sent).toEqual([]);
    void run(call(4));
    const batch = next();
    expect(values(batch)).toEqual([2, 3, 4]);
    await batch.reply();
    for (const value of [5, 6]) void run(call(value));
    expect(sent).toEqual([]);
    void run(call(7));
    expect(values(next())).toEqual([5, 6, 7]);
  });

  it("waits no longer than the limit, and not at all for a single client or with enough calls", async () => {
    const run = batched<Call, Row>(description);
    for (const value of [1, 2, 3]) void run(call(value));
    await next().reply();
    await vi.advanceTimersByTimeAsync(BATCH_FILL_MILLISECONDS - 1);
    expect(sent).toEqual([]);
    await fillEnds();
    expect(values(next())).toEqual([2, 3]);

    const runSingle = batched<Call, Row>(description);
    void runSingle(call(1));
    await next().reply();
    void runSingle(call(2));
    expect(values(next())).toEqual([2]);

    const runMany = batched<Call, Row>(description);
    for (let value = 0; value <= BATCH_FILL_CALLS_MAX; value++) void runMany(call(value));
    await next().reply();
    expect(values(next())).toHaveLength(BATCH_FILL_CALLS_MAX);
  });

  it("waits for further calls of one key too", async () => {
    const run = batched<Call, Row>(description);
    for (const value of [1, 2]) void run({ key: "a", value });
    await next().reply();
    expect(sent).toEqual([]);
    void run({ key: "a", value: 3 });
    expect(sent.map(values)).toEqual([[2, 3]]);
  });

  it("sends a call whose row is locked alone, while the others continue in batches", async () => {
    const run = batched<Call, Row>(description);
    const [first] = await occupy(run);
    const locked = run(call(1));
    const free = run(call(2));
    await first?.answer();
    await next().answer([1]);
    await free;
    const alone = next();
    expect([alone.kind, values(alone)]).toEqual(["one", [1]]);
    await alone.answer();
    expect(await locked).toMatchObject({ value: 1 });
  });

  it("sends one batch at a time, and a second one beside a slow one", async () => {
    const run = batched<Call, Row>(description);
    void run(call(0));
    for (let value = 1; value < 3; value++) void run(call(value));
    await next().answer();
    for (let value = 3; value < 5; value++) void run(call(value));
    expect(sent.map(values)).toEqual([[1, 2]]);
    await vi.advanceTimersByTimeAsync(BATCH_SLOW_MILLISECONDS);
    expect(sent.map(values)).toEqual([
      [1, 2],
      [3, 4],
    ]);
  });

  it("measures the calls of a statement, those that wait for the next one, and those that wait for a locked row", async () => {
    const run = batched<Call, Row>(description);
    const flying = await occupy(run);
    vi.mocked(isRecording).mockReturnValue(true);
    vi.mocked(measure).mockClear();
    const measured = (metric: string) =>
      vi.mocked(measure).mock.calls.flatMap(([name, value]) => (name === metric ? [value] : []));
    for (const value of [1, 2, 3]) void run(call(value));
    await flying[0]?.answer();
    void run(call(4));
    void run(call(5));
    expect(measured("lotus.batch.calls")).toEqual([3]);
    await next().answer([2, 3]);
    expect(measured("lotus.batch.calls").slice(1)).toEqual([1, 1, 2]);
    expect(measured("lotus.queue.calls")).toEqual([0, 2, 2, 0]);
    expect(Math.max(...measured("lotus.lane.calls"))).toBe(2);
    await answerAll();
    expect(measured("lotus.lane.calls").at(-1)).toBe(0);
    vi.mocked(isRecording).mockReset();
  });

  it("continues with other keys at once while two rows stay locked", async () => {
    const run = batched<Call, Row>(description);
    const stuck = [run(call(1)), run(call(2))];
    const outcomes = stuck.map(codeOf);
    await vi.advanceTimersByTimeAsync(BATCH_SLOW_MILLISECONDS);
    const held = sent.splice(0);
    expect(held).toHaveLength(2);
    const others = [3, 4, 5].map((value) => run(call(value)));
    await vi.advanceTimersByTimeAsync(BATCH_SLOW_MILLISECONDS);
    await answerAll();
    expect((await Promise.all(others)).map(({ value }) => value)).toEqual([3, 4, 5]);
    for (const statement of held) await statement.fail(new RowLocked());
    await vi.advanceTimersByTimeAsync(BATCH_ROW_PAUSE_MILLISECONDS);
    // One statement of the lane is free for rows that are locked for a moment only.
    expect(sent.filter(({ kind }) => kind === "one")).toHaveLength(BATCH_LANE_STATEMENTS_MAX - 1);
    while (sent.length > 0) {
      await vi.advanceTimersByTimeAsync(1_000);
      await next().fail(new RowLocked());
      await vi.advanceTimersByTimeAsync(BATCH_ROW_PAUSE_MILLISECONDS);
    }
    expect(await Promise.all(outcomes)).toEqual(["unavailable", "unavailable"]);
  });

  it("refuses a call that waits too long, with a Retry-After, and takes it out of the queue", async () => {
    const run = batched<Call, Row>(description);
    const [first] = await occupy(run);
    const late = run(call(1)).catch((error: Problem) => error);
    await vi.advanceTimersByTimeAsync(BATCH_WAIT_MILLISECONDS_MAX);
    expect(await late).toMatchObject({ code: "unavailable", headers: { "retry-after": "1" } });
    await first?.answer();
    expect(sent).toEqual([]);
  });

  it("refuses calls at once while the first call of the queue has waited too long, and accepts them afterwards", async () => {
    const run = batched<Call, Row>(description);
    const busy = await occupy(run);
    const first = codeOf(run({ key: "a", value: 1 }));
    await vi.advanceTimersByTimeAsync(BATCH_QUEUE_MILLISECONDS_MAX);
    const second = codeOf(run({ key: "b", value: 2 }));
    await vi.advanceTimersByTimeAsync(1);
    await expect(run({ key: "c", value: 3 })).rejects.toMatchObject({
      code: "unavailable",
      headers: { "retry-after": "1" },
    });
    for (const statement of busy) await statement.answer();
    await answerAll();
    expect(await Promise.all([first, second])).toEqual(["done", "done"]);
    const fourth = codeOf(run({ key: "d", value: 4 }));
    await answerAll();
    expect(await fourth).toBe("done");
  });

  it("refuses a call before the deadline of its request, and reports that the call had no effect", async () => {
    const run = batched<Call, Row>({
      ...description,
      deadlineOf: ({ key, value }) => (key === "a" ? value : Number.POSITIVE_INFINITY),
    });
    const flying = await occupy(run);
    const deadline = performance.now() + 2_000;
    const code = codeOf(run({ key: "a", value: deadline }));
    let answered = false;
    void code.then(() => {
      answered = true;
    });
    await vi.advanceTimersByTimeAsync(2_000 - REQUEST_ANSWER_MILLISECONDS - 1);
    expect(answered).toBe(false);
    await vi.advanceTimersByTimeAsync(1);
    expect(await code).toBe("unavailable");
    for (const statement of flying) await statement.answer();
    expect(sent).toEqual([]);
  });

  it("refuses at once the calls beyond the limit of one key, and those beyond the limit of the queue", async () => {
    const run = batched<Call, Row>(description);
    const [first] = await occupy(run);
    const waiting = Array.from({ length: BATCH_KEY_CALLS_MAX }, (_, value) => run({ key: "a", value }));
    expect(await codeOf(run({ key: "a", value: 0 }))).toBe("unavailable");
    const room = BATCH_CALLS_MAX - BATCH_KEY_CALLS_MAX - 2 * BATCH_STATEMENTS_MAX;
    const others = Array.from({ length: room }, (_, value) => run(call(value)));
    expect(await codeOf(run(call(room)))).toBe("unavailable");
    await first?.answer();
    await answerAll();
    await Promise.all([...waiting, ...others]);
    const again = run(call(1));
    await answerAll();
    expect(await codeOf(again)).toBe("done");
  });

  it.each([0, 1, 2, 3])("fails the call in position %i alone, and answers the others of its batch", async (bad) => {
    const run = batched<Call, Row>(description);
    const [first] = await occupy(run);
    const outcomes = [0, 1, 2, 3].map((value) => codeOf(run(call(value))));
    await first?.answer();
    await next().fail(new Error("injected"));
    while (sent.length > 0) {
      const statement = next();
      expect(statement.kind).toBe("one");
      await (values(statement)[0] === bad ? statement.fail(new Error("injected")) : statement.answer());
    }
    expect(await Promise.all(outcomes)).toEqual([0, 1, 2, 3].map((value) => (value === bad ? "injected" : "done")));
  });

  it("fails a call alone whose parameters cannot be made", async () => {
    const valuesOfOne = (one: Call) => {
      if (one.value === 1) throw new Error("no parameters");
      return [one];
    };
    const valuesOfMany = (calls: readonly Call[]) => [calls.flatMap(valuesOfOne)];
    const run = batched<Call, Row>({ ...description, valuesOfOne, valuesOfMany });
    const [first] = await occupy(run);
    const outcomes = [0, 1, 2].map((value) => codeOf(run(call(value))));
    await first?.answer();
    await answerAll();
    expect(await Promise.all(outcomes)).toEqual(["done", "no parameters", "done"]);
  });

  it("keeps the order of one key when its batch has failed", async () => {
    const run = batched<Call, Row>(description);
    const [first] = await occupy(run);
    const order: number[] = [];
    for (const value of [1, 2, 3]) void run({ key: "a", value }).then(() => order.push(value));
    await first?.answer();
    const batch = next();
    void run({ key: "a", value: 4 }).then(() => order.push(4));
    await batch.fail(new Error("injected"));
    await answerAll();
    expect(order).toEqual([1, 2, 3, 4]);
  });

  describe("when the connection is lost under a batch", () => {
    const repetitions: Repetition[] = ["once", "keyed", "repeatable"];
    const lose = async () => {
      const run = batched<Call, Row>(description);
      const [first] = await occupy(run);
      const outcomes = repetitions.map((repetition, value) => codeOf(run(call(value, { repetition }))));
      await first?.answer();
      await next().fail(outcomeUnknown());
      return outcomes;
    };

    it("repeats the calls that may be repeated, and answers the others outcome-unknown", async () => {
      const outcomes = await lose();
      expect(sent.flatMap(values)).toEqual([1, 2]);
      await answerAll();
      expect(await Promise.all(outcomes)).toEqual(["outcome-unknown", "done", "done"]);
    });

    it("answers a call with a key outcome-unknown while the database stays unavailable", async () => {
      const outcomes = await lose();
      while (sent.length > 0) await next().fail(unavailable());
      expect(await Promise.all(outcomes)).toEqual(["outcome-unknown", "outcome-unknown", "unavailable"]);
    });

    it("answers outcome-unknown when the repetition does not start in time", async () => {
      const outcomes = await lose();
      const held = sent.splice(0);
      await vi.advanceTimersByTimeAsync(BATCH_WAIT_MILLISECONDS_MAX);
      for (const statement of held) await statement.fail(new RowLocked());
      expect(await Promise.all(outcomes)).toEqual(["outcome-unknown", "outcome-unknown", "unavailable"]);
    });
  });

  it("runs each call of a batch alone when the database cannot work: one call may be the cause", async () => {
    const run = batched<Call, Row>(description);
    const [first] = await occupy(run);
    const outcomes = [1, 2].map((value) => codeOf(run(call(value))));
    await first?.answer();
    await next().fail(unavailable());
    expect(sent.map(({ kind }) => kind)).toEqual(["one", "one"]);
    await next().fail(unavailable());
    await next().answer();
    expect(await Promise.all(outcomes)).toEqual(["unavailable", "done"]);
  });
});

describe("calls in shared statements, with the database", () => {
  let lotus: TestLotus;
  let run: (call: Call) => Promise<{ readonly total: string }>;
  let closeDatabase: () => Promise<void>;

  beforeAll(async () => {
    lotus = await startTestLotus();
    await lotus.database.query(`
      create schema test;
      create table test.sums (key text primary key, total bigint not null);
      insert into test.sums (key, total) select 'key ' || n, 0 from generate_series(1, 100) n;
      create function test.add_many(calls jsonb) returns table ("position" integer, total bigint) language plpgsql
        security definer set search_path = pg_catalog, pg_temp as $$
      declare c record; begin
        for c in select (n - 1)::integer as place, value from jsonb_array_elements(calls) with ordinality as e(value, n) order by n loop
          perform from test.sums s where s.key = c.value ->> 'key' for update skip locked;
          if not found then continue; end if;
          "position" := c.place;
          total := test.add_one(c.value ->> 'key', (c.value ->> 'value')::integer);
          return next;
        end loop;
      end $$;
      create function test.add_one(key text, value integer) returns bigint language plpgsql
        security definer set search_path = pg_catalog, pg_temp as $$
      declare result bigint; begin
        if value < 0 then raise 'negative'; end if;
        update test.sums s set total = s.total + add_one.value where s.key = add_one.key returning s.total into result;
        return result;
      end $$;
      grant usage on schema test to public;
      grant execute on all functions in schema test to public`);
    Object.assign(process.env, lotus.manifests.functions.get("order-pay"));
    // Fresh modules read the settings again: this process has read them before it knew the database.
    vi.resetModules();
    vi.doUnmock("./database.ts");
    const { batched: freshlyBatched } = await import("./batch.ts");
    ({ closeDatabase } = await import("./database.ts"));
    run = freshlyBatched({
      ...description,
      name: "test.add",
      many: 'select "position", total from test.add_many($1)',
      one: "select test.add_one($1, $2) as total",
      valuesOfMany: (calls) => [JSON.stringify(calls)],
      valuesOfOne: ({ key, value }) => [key, value],
    });
  });
  afterAll(async () => {
    await closeDatabase();
    await lotus.stop();
  });

  const total = async (key: string) => {
    const { rows } = await lotus.database.query("select total::int from test.sums where key = $1", [key]);
    return rows[0].total as number;
  };

  it("adds up exactly over many calls of a few keys", async () => {
    const outcomes = await Promise.all(
      Array.from({ length: 600 }, (_, n) => run({ key: `key ${1 + (n % 7)}`, value: 1 })),
    );
    expect(outcomes).toHaveLength(600);
    for (let key = 1; key <= 7; key++) expect(await total(`key ${key}`)).toBe(Math.ceil((600 - key + 1) / 7));
  });

  it("fails a call in each position alone", async () => {
    for (let bad = 0; bad < 8; bad++) {
      const outcomes = Array.from({ length: 8 }, (_, n) =>
        codeOf(run({ key: `key ${20 + n}`, value: n === bad ? -1 : 1 })),
      );
      expect((await Promise.all(outcomes)).map((outcome) => outcome === "done")).toEqual(
        Array.from({ length: 8 }, (_, n) => n !== bad),
      );
    }
    for (let n = 0; n < 8; n++) expect(await total(`key ${20 + n}`)).toBe(7);
  });

  it("delays only calls whose rows another transaction has locked, and applies exactly the calls that it answers", async () => {
    const holder = new Client({ connectionString: lotus.adminUrl });
    await holder.connect();
    await holder.query("begin");
    await holder.query("select from test.sums where key in ('key 40', 'key 41') for update");
    const held = ["key 40", "key 41"].flatMap((key) => [1, 2, 3].map(() => codeOf(run({ key, value: 1 }))));
    for (let n = 0; n < 300; n++) await run({ key: `key ${50 + (n % 20)}`, value: 1 });
    let ended = 0;
    for (const outcome of held) void outcome.then(() => ended++);
    await Promise.resolve();
    expect(ended).toBe(0);
    await holder.query("rollback");
    await holder.end();
    expect(await Promise.all(held)).toEqual(Array(6).fill("done"));
    expect([await total("key 40"), await total("key 41")]).toEqual([3, 3]);
  });
});
