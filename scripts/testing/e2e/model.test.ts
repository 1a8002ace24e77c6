import { randomUUID } from "node:crypto";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { expectInvariants } from "../invariants.ts";
import {
  type Answer,
  eventually,
  killFunction,
  meanwhile,
  newUser,
  relayNow,
  startTestLotus,
  type TestLotus,
  type TestUser,
} from "../lotus.ts";
import { type Command, ModelAccount } from "../model.ts";

/** LOTUS_SEED=… repeats a run with the same commands and faults. Their timing differs. */
const SEED = Number(process.env.LOTUS_SEED ?? Date.now() % 2 ** 31);
const MILLISECONDS_MAX = 20_000;
const RUNS_MAX = 200;
const DISTURBANCE_PAUSE_MILLISECONDS = 80;

let lotus: TestLotus;
beforeAll(async () => {
  lotus = await startTestLotus();
});
afterAll(() => lotus.stop());

const cents = fc.integer({ min: 1, max: 30_000 });
const moving: fc.Arbitrary<Command> = fc.oneof(
  fc.record({
    kind: fc.constantFrom("deposit" as const, "withdrawal" as const, "create" as const, "transfer" as const),
    cents,
  }),
  fc.record({ kind: fc.constant("pay" as const), subscription: fc.integer({ min: 1, max: 4 }) }),
  fc.record({ kind: fc.constant("pay-at-once" as const), times: fc.integer({ min: 2, max: 8 }) }),
);
const looking = fc.record({
  kind: fc.constantFrom("balance" as const, "history" as const, "orders" as const, "notifications" as const),
});
const repeating = fc.record({
  kind: fc.constantFrom("repeat" as const, "reuse" as const, "refund" as const),
  which: fc.nat(),
});
const step = fc.oneof(
  { weight: 5, arbitrary: moving },
  { weight: 2, arbitrary: looking },
  { weight: 2, arbitrary: repeating },
);
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;

const KILLED = [
  "order-pay",
  "order-create",
  "billing-add-money",
  "billing-withdraw-money",
  "billing-transfer",
  "order-refund",
  "notification",
  "notification-store",
  "events-relay",
];
const fault = fc.constantFrom("cut" as const, "tick" as const, ...KILLED);
const plan = fc.record({
  users: fc.array(fc.array(step, { minLength: 5, maxLength: 20, size: "max" }), { minLength: 2, maxLength: 4 }),
  faults: fc.array(fault, { maxLength: 10 }),
});

function requestOf(command: Command, recipient: TestUser): [request: string, body?: object] {
  if (command.kind === "transfer") return [`POST /billing/transfer?money=${command.cents / 100}&to=${recipient.email}`];
  if (command.kind === "deposit") return [`POST /billing/add-money?money=${command.cents / 100}`];
  if (command.kind === "withdrawal") return [`POST /billing/withdraw-money?money=${command.cents / 100}`];
  if (command.kind === "create") return ["POST /order/create", { price: command.cents / 100 }];
  return [`POST /order/pay?idSubscription=${command.kind === "pay" ? command.subscription : 1}`];
}

/** A user who sends one command after the other, and compares each answer with that of the model. */
class ModelUser {
  readonly model: ModelAccount;
  readonly #user: TestUser;
  readonly #recipient: TestUser;
  readonly #answered: { command: Command; key: string; answer: Answer }[] = [];

  constructor(user: TestUser, recipient: TestUser) {
    this.#user = user;
    this.#recipient = recipient;
    this.model = new ModelAccount(recipient.email);
  }

  /** Sends a request until it is answered. A request that moves money has a key, so that it may be repeated. */
  async #send(request: string, key?: string, body?: object): Promise<Answer> {
    return eventually(`${request} is answered`, async () => {
      const headers = key === undefined ? {} : { "idempotency-key": key };
      const answer = await this.#user.call(request, { headers, ...(body === undefined ? {} : { body }) });
      return answer.status < 500 && answer;
    });
  }

  async #move(command: Command): Promise<void> {
    const expected = this.model.run(command);
    const [request, body] = requestOf(command, this.#recipient);
    const answers = await Promise.all(
      expected.map(async () => {
        const key = randomUUID();
        const answer = await this.#send(request, key, body);
        this.#answered.push({ command, key, answer });
        return answer;
      }),
    );
    // The order of simultaneous requests is unknown. The number of paid requests is that of the model.
    const order = ({ status, body }: Answer) => status * 1e9 - body.balance;
    answers.sort((one, other) => order(one) - order(other));
    expect(answers).toMatchObject(expected);
  }

  async #look(kind: "balance" | "history" | "orders" | "notifications"): Promise<void> {
    const { balance, transfers, orders, messages } = this.model;
    const look = async (path: string) => (await this.#send(`GET ${path}`)).body;
    if (kind === "balance") expect(await look("/billing/balance")).toEqual({ balance });
    else if (kind === "history") expect(await look("/billing/history?limit=100")).toMatchObject(newest(transfers));
    else if (kind === "orders") expect(await look("/order/list?limit=100")).toMatchObject(newest(orders));
    else {
      const told = (await look("/notification?limit=100")) as { message: string }[];
      expect(told.map(({ message }) => message)).toEqual(newest(messages));
    }
  }

  async #repeat(kind: "repeat" | "reuse", which: number): Promise<void> {
    const earlier = this.#answered[which % (this.#answered.length || 1)];
    if (earlier === undefined) return;
    const { command, key, answer } = earlier;
    if (kind === "repeat") {
      const again = await this.#send(...requestWith(command, key, this.#recipient));
      return expect([again.status, again.body]).toEqual([answer.status, answer.body]);
    }
    // A refusal without an effect does not use the key.
    if (answer.status === 404) return;
    const ofOrders = command.kind === "create" || command.kind.startsWith("pay");
    const other: Command = { kind: ofOrders ? "create" : "deposit", cents: 12_345_678 };
    const again = await this.#send(...requestWith(other, key, this.#recipient));
    expect([again.status, again.body.code]).toEqual([422, "idempotency-key-reused"]);
  }

  /** Refunds one of the newest orders, with any status. */
  async #refund(which: number): Promise<void> {
    const shown = (await this.#send("GET /order/list?limit=100")).body as { id: string }[];
    const index = which % (shown.length || 1);
    const order = shown[index];
    if (order === undefined) return;
    const answer = await this.#send(`POST /order/refund?id=${order.id}`, randomUUID());
    expect(answer).toMatchObject(this.model.refund(index));
  }

  async run(step: Step): Promise<void> {
    switch (step.kind) {
      case "balance":
      case "history":
      case "orders":
      case "notifications":
        return this.#look(step.kind);
      case "repeat":
      case "reuse":
        return this.#repeat(step.kind, step.which);
      case "refund":
        return this.#refund(step.which);
      default:
        return this.#move(step);
    }
  }

  async lookAtAll(): Promise<void> {
    for (const kind of ["balance", "history", "orders", "notifications"] as const) await this.#look(kind);
  }
}

const newest = <T>(list: readonly T[]): T[] => list.toReversed().slice(0, 100);

function requestWith(command: Command, key: string, recipient: TestUser): [string, string, object | undefined] {
  const [request, body] = requestOf(command, recipient);
  return [request, key, body];
}

const ticks: Promise<void>[] = [];

function disturb(fault: string | undefined): void {
  if (fault === "cut") lotus.network.cut();
  else if (fault === "tick") ticks.push(relayNow(lotus));
  else if (fault !== undefined) killFunction(lotus, fault);
}

describe(`Lotus against its model (LOTUS_SEED=${SEED})`, () => {
  it("answers like the model, for random commands and faults", async () => {
    const until = performance.now() + MILLISECONDS_MAX;
    const property = fc.asyncProperty(plan, async ({ users, faults }) => {
      if (performance.now() > until) return;
      const recipient = await newUser(lotus);
      const people = await Promise.all(
        users.map(async (steps) => ({ steps, user: new ModelUser(await newUser(lotus), recipient) })),
      );
      let disturbances = 0;
      await meanwhile(
        DISTURBANCE_PAUSE_MILLISECONDS,
        () => disturb(faults[disturbances++ % faults.length]),
        () =>
          Promise.all(
            people.map(async ({ steps, user }) => {
              for (const step of steps) await user.run(step);
            }),
          ),
      );
      for (const { user } of people) await user.lookAtAll();
      await Promise.all(ticks.splice(0));
      await relayNow(lotus);
      await expectInvariants(lotus);
    });
    // No shrinking: each attempt would take as long as a run.
    await fc.assert(property, { seed: SEED, numRuns: RUNS_MAX, endOnFailure: true });
  }, 90_000);
});
