import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { readInstallation } from "../../database/installation.ts";
import { runScenario } from "../../scenario/run.ts";
import { expectInvariants } from "../invariants.ts";
import {
  call,
  eventually,
  holdAccount,
  killFunction,
  meanwhile,
  newUser,
  relayNow,
  settled,
  startTestLotus,
  type TestLotus,
  untilAnswered,
} from "../lotus.ts";

/** user-registered, and a notification of each: welcome, money added, an order paid, one refused. */
const EVENTS_OF_A_SCENARIO = 6;

let lotus: TestLotus;
beforeAll(async () => {
  // The relay runs when a test says so.
  lotus = await startTestLotus({ scheduled: false });
});
afterAll(() => lotus.stop());

/** The address at which the event bus accepts events and forwards requests to functions by name. */
const inside = () => ({ url: lotus.manifests.functions.get("order-pay")?.K_SINK ?? "" });

/** Publishes delayed events, as the relay does within a minute, and expects no loss and no duplicate. */
async function recovered(deadLetters = 0): Promise<void> {
  await relayNow(lotus);
  await expectInvariants(lotus, deadLetters);
}

describe("a function that is killed", () => {
  it("repeatedly during the scenario, fails no assertion", async () => {
    let kills = 0;
    const summary = await meanwhile(
      100,
      () => {
        if (killFunction(lotus, "notification-store")) kills++;
      },
      () => runScenario({ baseUrl: lotus.url, times: 2, quiet: true }),
    );
    expect(summary.failures).toEqual([]);
    expect(kills).toBeGreaterThan(0);
    await recovered();
  });

  it("in turn, loses no cent of payments that are repeated with their keys", async () => {
    const user = await newUser(lotus, 1000);
    const names = ["order-pay", "billing-add-money", "notification-store", "billing-open-account", "events-relay"];
    let kills = 0;
    let next = 0;
    const pay = async () => {
      while (next++ < 60) expect((await untilAnswered(user, "POST /order/pay?idSubscription=1")).status).toBe(200);
    };
    await meanwhile(
      50,
      () => {
        if (killFunction(lotus, names[Math.floor(Math.random() * names.length)] ?? "")) kills++;
      },
      () => Promise.all([pay(), pay(), pay(), pay()]),
    );
    expect(kills).toBeGreaterThan(0);
    expect((await user.call("GET /billing/balance")).body).toEqual({ balance: 400 });
    expect((await user.call("GET /order/list?limit=100")).body).toHaveLength(60);
    await recovered();
  });

  it.each(["reader", "relay"])("between its commit and its publication, leaves the event to the %s", async (who) => {
    const user = await newUser(lotus, 100);
    await settled(lotus);
    const account = await holdAccount(lotus, user);
    const paying = user.call("POST /order/pay?idSubscription=1");
    await eventually("the payment waits for the account", async () => (await account.waiting()) === 1);
    // The function does not learn that its statement was committed, as after a failure of the machine.
    const child = lotus.functions.get("order-pay")?.running?.child;
    child?.kill("SIGSTOP");
    await account.release();
    await eventually("the payment is committed", async () => {
      const { rows } = await lotus.database.query("select from events.outbox where subject = $1", [user.id]);
      return rows.length === 1;
    });
    child?.kill("SIGKILL");
    const { status, body } = await paying;
    expect([status, body.code]).toEqual([503, "outcome-unknown"]);
    expect((await user.call("GET /billing/balance")).body).toEqual({ balance: 90 });
    if (who === "relay") await relayNow(lotus);
    else {
      expect((await user.call("GET /notification")).body[0].message).toBe(
        "Hello! You pay for order. Order cost amount 10. You balance after 90",
      );
    }
    await expectInvariants(lotus);
  });
});

describe("a database connection that is cut", () => {
  it("right after a commit, makes the outcome unknown without a key, and known with one", async () => {
    const user = await newUser(lotus, 100);
    const account = await holdAccount(lotus, user);
    const unkeyed = user.call("POST /billing/withdraw-money?money=30");
    const keyed = user.call("POST /order/pay?idSubscription=1", { headers: { "idempotency-key": "a" } });
    await eventually("both wait for the account", async () => (await account.waiting()) === 2);
    lotus.network.cut();
    await account.release();
    const { status, body } = await unkeyed;
    expect([status, body.code]).toEqual([503, "outcome-unknown"]);
    // The function repeats the statement on a new connection, while the first one still works.
    expect((await keyed).status).toBe(200);
    const again = await user.call("POST /order/pay?idSubscription=1", { headers: { "idempotency-key": "a" } });
    expect(again.body).toEqual((await keyed).body);
    await eventually("both are done", async () => (await user.call("GET /billing/balance")).body.balance === 60);
    await recovered();
  });

  it("repeatedly, executes no payment twice, and no refused payment", async () => {
    const user = await newUser(lotus, 10_000);
    const keyed = async () => {
      for (let times = 0; times < 25; times++) {
        expect((await untilAnswered(user, "POST /order/pay?idSubscription=1")).status).toBe(200);
      }
    };
    const outcomes: string[] = [];
    const unkeyed = async () => {
      for (let times = 0; times < 25; times++) {
        const { status, body } = await user.call("POST /billing/withdraw-money?money=0.01");
        outcomes.push(`${status} ${body.code ?? "done"}`);
      }
    };
    await meanwhile(
      25,
      () => lotus.network.cut(),
      () => Promise.all([keyed(), keyed(), unkeyed(), unkeyed()]),
    );
    expect(
      [...new Set(outcomes)].filter((outcome) => !/^(200 done|503 (outcome-unknown|unavailable))$/.test(outcome)),
    ).toEqual([]);
    const done = outcomes.filter((outcome) => outcome === "200 done").length;
    const unknown = outcomes.filter((outcome) => outcome === "503 outcome-unknown").length;
    await recovered();
    const { rows } = await lotus.database.query<{ kind: string; count: number }>(
      "select kind, count(*)::int from billing.transfers where $1 in (debit_account, credit_account) group by kind order by kind",
      [user.id],
    );
    const counts = Object.fromEntries(rows.map(({ kind, count }) => [kind, count]));
    expect(counts.charge).toBe(50);
    expect(counts.withdrawal ?? 0).toBeGreaterThanOrEqual(done);
    expect(counts.withdrawal ?? 0).toBeLessThanOrEqual(done + unknown);
    // A delivery that was cut off several times waits up to six seconds for the next attempt.
  }, 60_000);
});

describe("events that are delivered again", () => {
  const TABLES = [
    "profile.users",
    "billing.accounts",
    "billing.transfers",
    "billing.entries",
    '"order".orders',
    "notification.notifications",
    "events.outbox",
    "events.dead_letters",
    "events.idempotency_keys",
  ];
  const everything = async () =>
    Promise.all(
      TABLES.map(
        async (table) => (await lotus.database.query(`select t::text as row from ${table} t order by 1`)).rows,
      ),
    );

  beforeEach(async () => {
    // The test keeps all events, because the outbox deletes settled ones.
    await lotus.database.query(`
      create table if not exists public.told (envelope jsonb);
      create or replace function public.remember() returns trigger language plpgsql security definer as $$
        begin insert into public.told values (events.envelope(new)); return null; end $$;
      create or replace trigger remember after insert on events.outbox for each row execute function public.remember();`);
  });

  it("by a broker that has lost its offsets, and by two consumers at the same time, have no further effect", async () => {
    const summary = await runScenario({ baseUrl: lotus.url, times: 2, quiet: true });
    expect(summary.failed).toBe(0);
    await settled(lotus);
    const before = await everything();
    const { rows } = await lotus.database.query<{ envelope: { topic: string; event: Record<string, unknown> } }>(
      "select envelope from public.told",
    );
    expect(rows.length).toBe(2 * EVENTS_OF_A_SCENARIO);
    const deliver = async ({ topic, event }: (typeof rows)[number]["envelope"]) => {
      const { data, datacontenttype, ...attributes } = event;
      const headers = Object.entries(attributes).map(([name, value]) => [`ce-${name}`, String(value)]);
      const name = lotus.manifests.kafkaSources.find(({ spec }) => spec.topics.includes(topic))?.spec.sink.ref.name;
      return call(inside(), `POST /${name}`, { body: data, headers: Object.fromEntries(headers) });
    };
    const answers = await Promise.all([...rows, ...rows].map(({ envelope }) => deliver(envelope)));
    expect(answers.every(({ status }) => status === 204)).toBe(true);
    expect(await everything()).toEqual(before);
  });

  it("at the same time as the reader handles them, have one effect", async () => {
    const user = await newUser(lotus, 1000);
    await Promise.all(
      Array.from({ length: 30 }, async () => {
        await user.call("POST /billing/withdraw-money?money=1");
        await Promise.all([user.call("GET /notification"), relayNow(lotus)]);
      }),
    );
    await expectInvariants(lotus);
  });
});

describe("a trigger that fails", () => {
  it("receives the event again, first from the source, then from the relay, then as a replayed dead letter", async () => {
    const user = await newUser(lotus, 100);
    await settled(lotus);
    const failures = () =>
      (lotus.lines.get("notification-store") ?? []).filter(
        (line) => line.includes(user.id) && line.includes("failed; the source delivers the event again"),
      ).length;
    const heard = lotus.news.length;
    const { rows: roles } = await lotus.database.query(
      "select quote_ident(role) as role from events.roles where service = 'notification'",
    );
    await lotus.database.query(`revoke insert on notification.notifications from ${roles[0].role}`);
    try {
      for (const id of [1, 1]) await user.call(`POST /order/pay?idSubscription=${id}`);
      // One of the two has as many attempts as after an hour.
      await lotus.database.query(
        "update events.outbox set attempts = 12 where id = (select id from events.outbox where subject = $1 order by time limit 1)",
        [user.id],
      );
      const given = () => lotus.news.slice(heard).filter((text) => /event \S+: dead letter$/.test(text));
      await eventually("their source has stopped delivering both", () => given().length === 2);
    } finally {
      await lotus.database.query(`grant insert on notification.notifications to ${roles[0].role}`);
    }
    await eventually("the log contains each failure", () => failures() >= 2 * 6);
    expect(failures()).toBe(2 * 6);
    const { rows } = await lotus.database.query("select id, subscriber, reason from events.dead_letters");
    expect(rows).toEqual([
      {
        id: expect.any(String),
        subscriber: "notification-store",
        reason: expect.stringMatching(/^Every delivery failed: the function answered 500\. .*permission denied/),
      },
    ]);
    await relayNow(lotus);
    await settled(lotus);
    await lotus.database.query("select events.replay($1)", [rows[0]?.id]);
    await recovered();
  });

  it("after its effect, with a lost answer, causes no dead letter", async () => {
    const user = await newUser(lotus);
    await settled(lotus);
    const [told] = (
      await lotus.database.query("select id from notification.notifications where user_id = $1", [user.id])
    ).rows;
    const undelivered = (id: string, source: string) =>
      call(inside(), "POST /events-dead-letter", {
        body: {},
        headers: {
          "ce-specversion": "1.0",
          "ce-id": id,
          "ce-source": source,
          "ce-type": "lotus.notification-requested.v1",
          "ce-knativeerrordest": "http://notification-store.lotus.svc.cluster.local",
        },
      });
    const own = await readInstallation(lotus.adminUrl);
    expect((await undelivered(told.id, `/lotus/${own}/profile-register`)).status).toBe(204);
    await expectInvariants(lotus);
    // A foreign event has no outbox row that shows its effect, so a person decides.
    expect((await undelivered("1", "/elsewhere")).status).toBe(204);
    const { rows } = await lotus.database.query("delete from events.dead_letters returning subscriber, reason");
    expect(rows).toEqual([
      { subscriber: "notification-store", reason: "Every delivery failed: the function did not answer." },
    ]);
  });

  it("because of the event, moves it to the dead letters with its reason, and continues with the others", async () => {
    const user = await newUser(lotus);
    const fact = { userId: user.id, recipient: user.email, kind: "deposit-done", amount: "1", balance: "1" };
    const tell = (id: string, body: unknown, type = "lotus.notification-requested.v1") =>
      call(inside(), "POST /", {
        body,
        headers: { "ce-specversion": "1.0", "ce-id": id, "ce-source": "/elsewhere", "ce-type": type },
      });
    const poison = [
      await tell("no-json", "{half"),
      await tell("no-amount", { ...fact, amount: undefined }),
      await tell("wrong-kind", { ...fact, kind: "gossip" }),
      await tell("version-2", fact, "lotus.notification-requested.v2"),
      await tell("not-utf-8", new Uint8Array([0x22, 0xff, 0x22])),
    ];
    expect(poison.map(({ status }) => status)).toEqual([202, 202, 202, 202, 202]);
    await user.call("POST /billing/add-money?money=5");
    const read = async () =>
      (
        await lotus.database.query(
          "select attributes ->> 'id' as id, reason from events.dead_letters where attributes ->> 'source' = '/elsewhere' order by 1",
        )
      ).rows;
    await eventually("all are dead letters", async () => (await read()).length === poison.length);
    expect(await read()).toEqual([
      { id: "no-amount", reason: "The data is not that of notification-requested: amount: is missing." },
      { id: "no-json", reason: expect.stringMatching(/^The data is not JSON in UTF-8: .+\.$/) },
      { id: "not-utf-8", reason: expect.stringMatching(/^The data is not JSON in UTF-8: .+\.$/) },
      {
        id: "version-2",
        reason:
          "The type lotus.notification-requested.v2 is not known here; this subscriber knows lotus.notification-requested.v1.",
      },
      {
        id: "wrong-kind",
        reason: expect.stringMatching(/^The data is not that of notification-requested: kind: must be .*"order-paid"/),
      },
    ]);
    expect((await tell("no-topic", fact, "foreign.thing")).status).toBe(400);
    await recovered(poison.length);
  });
});
