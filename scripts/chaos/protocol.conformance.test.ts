/**
 * Drives the real functions and the SQL of Lotus through traces of protocol.ts, and compares the database with the model after each
 * step. The transport is the test's: it loses, repeats and delays records as a trace says.
 */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { newUser, settled, startTestLotus, type TestLotus, type TestUser } from "../testing/lotus.ts";
import { isFinal, START, type State, type Step, stepsOf, violationOf } from "./protocol.ts";
import { randomFrom } from "./random.ts";

const TRACES = 25;
const STEPS_MAX = 60;
/** The consumers of the model. Consumer 1 refuses event 1 until a developer corrects it. */
const SUBSCRIBERS = ["notification-store", "billing-open-account"] as const;

interface Envelope {
  readonly topic: string;
  readonly event: Readonly<Record<string, unknown>> & { readonly id: string; readonly data: Record<string, unknown> };
}

/** The parts of one event that the database and the model both know. */
interface Seen {
  readonly awaiting: readonly boolean[];
  readonly attempts: number | undefined;
  readonly effects: readonly number[];
  readonly deadLetters: readonly boolean[];
}

/** One trace: two events of two users, and the memory of the processes that published them. */
class Trace {
  readonly #lotus: TestLotus;
  readonly #users: readonly TestUser[];
  readonly #envelopes: (Envelope | undefined)[] = [undefined, undefined];
  #corrected = false;

  constructor(lotus: TestLotus, users: readonly TestUser[]) {
    this.#lotus = lotus;
    this.#users = users;
  }

  async begin(): Promise<void> {
    const ids = this.#users.map(({ id }) => id);
    await this.#lotus.database.query("delete from billing.accounts where id = any($1)", [ids]);
    for (const table of ["notification.notifications", "events.outbox", "events.dead_letters"])
      await this.#lotus.database.query(`delete from ${table}`);
  }

  async #one(text: string, values: unknown[]): Promise<Record<string, unknown>> {
    const { rows } = await this.#lotus.database.query(text, values);
    return rows[0] ?? {};
  }

  async #commit(index: number): Promise<void> {
    const user = this.#users[index] as TestUser;
    // The data fits both subscribers.
    const data = { userId: user.id, email: user.email, recipient: user.email, kind: "welcome" };
    const { envelope } = await this.#one(
      "select events.emit('notification-requested', 1, 'test', $1, null, $2) as envelope",
      [user.id, JSON.stringify(data)],
    );
    this.#envelopes[index] = envelope as Envelope;
  }

  #envelope(index: number): Envelope {
    const envelope = this.#envelopes[index];
    if (envelope === undefined) throw new Error(`Event ${index} is not committed.`);
    return envelope;
  }

  async #deliver(index: number, consumer: number): Promise<void> {
    const { data, ...attributes } = this.#envelope(index).event;
    const { email, ...incomplete } = data;
    const refuses = index === 1 && consumer === 1 && !this.#corrected;
    // The type names one topic, and this event has a subscriber of another one.
    const headers = { ...attributes, ...(consumer === 1 && { type: "test" }) };
    const answer = await fetch(`${this.#lotus.insideUrl}/${SUBSCRIBERS[consumer]}`, {
      method: "POST",
      headers: {
        "content-type": "application/json",
        ...Object.fromEntries(Object.entries(headers).map(([name, value]) => [`ce-${name}`, String(value)])),
      },
      body: JSON.stringify(refuses ? incomplete : { ...incomplete, email }),
    });
    expect(answer.ok).toBe(true);
    await answer.arrayBuffer();
  }

  async #read(index: number, consumer: number): Promise<void> {
    const user = this.#users[index] as TestUser;
    if (consumer === 0) {
      const { status, body } = await user.call("GET /notification");
      expect(status).toBe(200);
      expect(body).toHaveLength(1);
      return;
    }
    // The statements of billing.open_registered_unchecked, for the topic of this event.
    await this.#one(
      `select billing.open_account($1, (u -> 'event' ->> 'id')::uuid)
       from jsonb_array_elements(events.unsettled_unchecked($1, 'notification-requested', 'billing-open-account', 1)) u`,
      [user.id],
    );
  }

  async #relay(index: number): Promise<void> {
    const { id } = this.#envelope(index).event;
    await this.#one("update events.outbox set attempted_at = clock_timestamp()", []);
    await this.#one("update events.outbox set attempted_at = '-infinity' where id = $1", [id]);
    const { claimed } = await this.#one("select events.claim('10 seconds', 500, 1000000) as claimed", []);
    expect((claimed as Envelope[]).map(({ event }) => event.id)).toEqual([id]);
  }

  async #replay(index: number, consumer: number): Promise<void> {
    const replayed = await this.#one(
      "select events.replay(id) as done from events.dead_letters where event_key = $1 and subscriber = $2",
      [this.#envelope(index).event.id, SUBSCRIBERS[consumer]],
    );
    expect(replayed).toEqual({ done: true });
  }

  /** Does what a step of the model names. Steps of the transport and crashes leave the database alone. */
  async take({ name }: Step): Promise<string> {
    const [index = 0, consumer = 0] = [...name.matchAll(/\d/g)].map(([digit]) => Number(digit));
    const kinds: readonly (readonly [RegExp, () => Promise<void> | void])[] = [
      [/^commit event/, () => this.#commit(index)],
      [/^deliver event/, () => this.#deliver(index, consumer)],
      [/^a reader settles/, () => this.#read(index, consumer)],
      [/^the relay publishes/, () => this.#relay(index)],
      [/^replay/, () => this.#replay(index, consumer)],
      [
        /^a developer corrects/,
        () => {
          this.#corrected = true;
        },
      ],
      [/^(?:publish|crash|lose a record|duplicate a record)/, () => undefined],
    ];
    const kind = kinds.find(([pattern]) => pattern.test(name));
    if (kind === undefined) throw new Error(`The test knows no step "${name}". Add it beside the step of the model.`);
    await kind[1]();
    return kind[0].source;
  }

  async see(index: number): Promise<Seen> {
    const id = this.#envelopes[index]?.event.id ?? null;
    const row = await this.#one(
      `select
        (select awaiting from events.outbox where id = $1) as awaiting,
        (select attempts from events.outbox where id = $1) as attempts,
        (select count(*)::int from notification.notifications where id = $1) as notifications,
        (select count(*)::int from billing.accounts where id = $2) as accounts,
        array(select subscriber from events.dead_letters where event_key = $1) as letters`,
      [id, this.#users[index]?.id],
    );
    const has = (list: unknown) => SUBSCRIBERS.map((subscriber) => ((list ?? []) as string[]).includes(subscriber));
    return {
      awaiting: has(row.awaiting),
      attempts: row.attempts === null ? undefined : (row.attempts as number),
      effects: [row.notifications as number, row.accounts as number],
      deadLetters: has(row.letters),
    };
  }
}

/** The same parts of the model. An event without an outbox row has no attempts. */
function expected({ events }: State, index: number): Seen {
  const { awaiting, attempts, effects, deadLetters } = events[index as 0 | 1];
  return { awaiting, attempts: awaiting[0] || awaiting[1] ? attempts : undefined, effects, deadLetters };
}

describe("the functions and the SQL", () => {
  let lotus: TestLotus;
  let users: TestUser[];
  beforeAll(async () => {
    lotus = await startTestLotus({ scheduled: false });
    users = [await newUser(lotus), await newUser(lotus)];
    await settled(lotus);
    await lotus.database.query(
      "update events.subscriptions set topic = 'notification-requested' where subscriber = $1",
      [SUBSCRIBERS[1]],
    );
  });
  afterAll(() => lotus.stop());

  /** Follows one trace. `choose` returns the next step; undefined ends the trace. */
  async function follow(
    choose: (steps: readonly Step[], state: State, taken: number) => Step | undefined,
  ): Promise<{ state: State; kinds: string[] }> {
    const trace = new Trace(lotus, users);
    await trace.begin();
    const names: string[] = [];
    const kinds: string[] = [];
    let state = START;
    for (let step = choose(stepsOf(state), state, 0); step !== undefined; ) {
      names.push(step.name);
      kinds.push(await trace.take(step));
      state = step.next;
      const seen = await Promise.all([0, 1].map((index) => trace.see(index)));
      const model = [expected(state, 0), expected(state, 1)];
      expect(seen, `after: ${names.join("; ")}`).toEqual(model);
      step = choose(stepsOf(state), state, names.length);
    }
    expect(violationOf(state)).toBeUndefined();
    return { state, kinds };
  }

  it("follow the model of the outbox protocol through a sample of its traces", async () => {
    const random = randomFrom(1);
    const kinds = new Set<string>();
    let finished = 0;
    for (let number = 0; number < TRACES; number++) {
      const followed = await follow((steps, state, taken) =>
        taken < STEPS_MAX && !isFinal(state) ? random.pick(steps) : undefined,
      );
      for (const kind of followed.kinds) kinds.add(kind);
      if (isFinal(followed.state)) finished++;
    }
    expect(finished).toBeGreaterThan(TRACES / 2);
    // The relay gives up after more publications than a trace of the model can have.
    expect([...kinds].sort()).toEqual([
      "^(?:publish|crash|lose a record|duplicate a record)",
      "^a developer corrects",
      "^a reader settles",
      "^commit event",
      "^deliver event",
      "^replay",
      "^the relay publishes",
    ]);
  });

  it("count the publications of a replayed event anew while another subscriber still awaits it", async () => {
    const names = [
      "commit event 1 and crash before the answer",
      "the relay publishes event 1",
      "deliver event 1 to consumer 1",
      "lose a record of event 1 for consumer 0",
      "a developer corrects the consumer",
      "replay event 1 for consumer 1",
      "the relay publishes event 1",
    ];
    const { kinds } = await follow((steps, _, taken) => steps.find(({ name }) => name === names[taken]));
    expect(kinds).toHaveLength(names.length);
  });
});
