/** The load: clients that register, move money, buy, refund and read, and that repeat a call whose answer they did not receive. */
import { randomUUID } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import type { Entry, History } from "./history.ts";
import type { Random } from "./random.ts";

/** A client waits this long for one answer. */
const ANSWER_MILLISECONDS_MAX = 15_000;
/** A client repeats a keyed call for this long. Afterwards its outcome counts as unknown. */
const REPEAT_MILLISECONDS_MAX = 60_000;
const PAUSE_MILLISECONDS_MIN = 50;
const PAUSE_MILLISECONDS_MAX = 1_000;
const PAUSE_BETWEEN_OPERATIONS_MILLISECONDS_MAX = 20;
/** Every so many operations a client sends without an Idempotency-Key. */
const KEYLESS_SHARE = 0.08;
const PASSWORD = "correct horse battery";

export interface Counters {
  operations: number;
  refused: number;
  unknown: number;
  /** Milliseconds from call to answer, of the answers of the last moment. */
  latencies: number[];
  /** Are called, once, at the next acknowledged movement of money. */
  readonly onMovement: (() => void)[];
}

/** One try of a call. Status 0: there was no answer. */
interface Attempt {
  readonly status: number;
  /** Nanoseconds since the start of the run, when the answer came. */
  readonly time: number;
  readonly milliseconds: number;
}

interface Answer {
  readonly status: number;
  readonly body: Readonly<Record<string, unknown>>;
  readonly attempts: readonly Attempt[];
}

export interface LoadOptions {
  /** The address of the gateway. */
  readonly url: string;
  readonly clients: number;
  readonly history: History;
  readonly random: Random;
  readonly counters: Counters;
}

interface User {
  readonly id: string;
  readonly email: string;
  token: string;
}

interface PaidOrder {
  readonly id: string;
  readonly amount: number;
}

const decimal = (cents: number) => (cents / 100).toFixed(2);

/** One client with one user. Its calls follow each other. Each amount occurs once for a user, so the checker finds each movement. */
class LoadClient {
  readonly #options: LoadOptions;
  readonly #process: number;
  readonly #random: Random;
  readonly #others: readonly User[];
  readonly #orders: PaidOrder[] = [];
  #user: User | undefined;
  #amounts = 0;

  constructor(options: LoadOptions, process: number, others: readonly User[]) {
    this.#options = options;
    this.#process = process;
    this.#random = options.random.fork(`client ${process}`);
    this.#others = others;
  }

  /** Sends one call until it is answered. A call without a key is sent once. */
  async #send(method: string, path: string, body: unknown, key: string | undefined, repeat: boolean): Promise<Answer> {
    const { url, history, counters } = this.#options;
    const attempts: Attempt[] = [];
    const until = performance.now() + REPEAT_MILLISECONDS_MAX;
    for (let pause = PAUSE_MILLISECONDS_MIN; ; pause = Math.min(2 * pause, PAUSE_MILLISECONDS_MAX)) {
      const began = performance.now();
      let status = 0;
      let answered: Record<string, unknown> = {};
      try {
        const response = await fetch(url + path, {
          method,
          headers: {
            ...(body !== undefined && { "content-type": "application/json" }),
            ...(this.#user !== undefined && { authorization: `Bearer ${this.#user.token}` }),
            ...(key !== undefined && { "idempotency-key": key }),
          },
          ...(body !== undefined && { body: JSON.stringify(body) }),
          signal: AbortSignal.timeout(ANSWER_MILLISECONDS_MAX),
        });
        answered = (await response.json()) as Record<string, unknown>;
        status = response.status;
      } catch {
        status = 0;
      }
      const milliseconds = performance.now() - began;
      counters.latencies.push(milliseconds);
      attempts.push({ status, time: history.now(), milliseconds: Math.round(milliseconds) });
      const isFinal = status !== 0 && status < 500 && status !== 429;
      if (isFinal || !repeat || performance.now() > until) return { status, body: answered, attempts };
      await delay(pause);
    }
  }

  /** Writes the call, makes it, and writes its outcome. */
  async #operate(
    f: string,
    request: string,
    value: Record<string, unknown>,
    options: { body?: unknown; keyed?: boolean; repeat?: boolean } = {},
  ): Promise<Answer> {
    const { history, counters } = this.#options;
    const { body, keyed = false, repeat = true } = options;
    const key = keyed && this.#random.next() >= KEYLESS_SHARE ? randomUUID() : undefined;
    const [method = "GET", path = "/"] = request.split(" ");
    const user = this.#user?.id;
    history.write(this.#process, "invoke", f, { user, request, ...value, ...(key !== undefined && { key }) });
    const isMovement = keyed;
    const answer = await this.#send(method, path, body, key, repeat && (!isMovement || key !== undefined));
    const type = answer.status === 0 || answer.status >= 500 ? "info" : answer.status < 400 ? "ok" : "fail";
    const { status, attempts } = answer;
    const { balance, order, code } = answer.body;
    history.write(this.#process, type, f, {
      user,
      request,
      ...value,
      ...(key !== undefined && { key }),
      status,
      attempts,
      ...(balance !== undefined && { balance }),
      ...(order !== undefined && { order }),
      ...(code !== undefined && { code }),
    });
    counters.operations++;
    if (keyed && type !== "info") for (const notify of counters.onMovement.splice(0)) notify();
    if (type === "fail") counters.refused++;
    if (type === "info") counters.unknown++;
    // The same key must give the same answer, whatever happened in between.
    if (key !== undefined && type !== "info" && this.#random.next() < 0.1)
      await this.#repeat(f, method, path, body, key, answer);
    return answer;
  }

  async #repeat(f: string, method: string, path: string, body: unknown, key: string, first: Answer): Promise<void> {
    const again = await this.#send(method, path, body, key, true);
    if (again.status === 0 || again.status >= 500) return;
    const equal = again.status === first.status && JSON.stringify(again.body) === JSON.stringify(first.body);
    this.#options.history.write(this.#process, "ok", "repeat", {
      user: this.#user?.id,
      of: f,
      key,
      equal,
      first: { status: first.status, body: first.body },
      again: { status: again.status, body: again.body },
    });
  }

  /** An amount that no other operation of this user has, in cents. */
  #amount(): number {
    return 100 + this.#amounts++ * 7;
  }

  async #register(): Promise<User | undefined> {
    const email = `${randomUUID()}@example.com`;
    const registered = await this.#operate(
      "register",
      "POST /profile/register",
      { email },
      { body: { email, password: PASSWORD } },
    );
    // A repeated registration whose first answer was lost is refused: the user exists.
    if (registered.status !== 201 && registered.body.code !== "email-taken") return undefined;
    const login = await this.#operate(
      "login",
      "POST /profile/login",
      { email },
      { body: { email, password: PASSWORD } },
    );
    if (login.status !== 200) return undefined;
    const token = login.body.token as string;
    const payload = token.split(".")[1] ?? "";
    const { sub } = JSON.parse(Buffer.from(payload, "base64url").toString()) as { sub: string };
    return { id: sub, email, token };
  }

  async #once(): Promise<void> {
    const amount = this.#amount();
    const money = decimal(amount);
    const chance = this.#random.next();
    const other = this.#others.length > 1 ? this.#random.pick(this.#others) : undefined;
    const order = this.#orders.at(-1);
    let answer: Answer;
    let message: RegExp | undefined;
    if (chance < 0.3) {
      answer = await this.#operate("deposit", `POST /billing/add-money?money=${money}`, { amount }, { keyed: true });
      message = /^Hello! You (?:cannot )?add money/;
    } else if (chance < 0.42) {
      answer = await this.#operate(
        "withdraw",
        `POST /billing/withdraw-money?money=${money}`,
        { amount },
        { keyed: true },
      );
      message = /^Hello! You (?:cannot )?withdraw money/;
    } else if (chance < 0.52 && other !== undefined && other.id !== this.#user?.id) {
      const path = `POST /billing/transfer?money=${money}&to=${encodeURIComponent(other.email)}`;
      answer = await this.#operate("transfer", path, { amount, to: other.id }, { keyed: true });
    } else if (chance < 0.72) {
      answer = await this.#operate(
        "create-order",
        "POST /order/create",
        { amount },
        { keyed: true, body: { price: money } },
      );
      message = /^Hello! You (?:cannot )?pay for order/;
    } else if (chance < 0.78 && order !== undefined) {
      this.#orders.pop();
      answer = await this.#operate(
        "refund",
        `POST /order/refund?id=${order.id}`,
        { amount: order.amount, orderId: order.id },
        { keyed: true },
      );
    } else if (chance < 0.9) {
      answer = await this.#operate("read-balance", "GET /billing/balance", {});
      return;
    } else if (chance < 0.95) {
      answer = await this.#operate("read-orders", "GET /order/list?limit=5", {});
      return;
    } else {
      answer = await this.#operate("read-history", "GET /billing/history?limit=5", {});
      return;
    }
    const placed = answer.body.order as { id: string; status: string } | undefined;
    if (placed?.status === "paid") this.#orders.push({ id: placed.id, amount });
    if (
      message !== undefined &&
      (answer.status === 200 || answer.status === 201 || answer.body.code === "insufficient-funds")
    )
      if (this.#random.next() < 0.3) await this.#readNotification(amount, message);
  }

  /** Reads its own write: the notification of an answered operation is there at once. */
  async #readNotification(amount: number, message: RegExp): Promise<void> {
    const { history } = this.#options;
    history.write(this.#process, "invoke", "read-notification", { user: this.#user?.id, amount });
    const answer = await this.#send("GET", "/notification?limit=20", undefined, undefined, true);
    const rows = Array.isArray(answer.body) ? (answer.body as { message: string }[]) : [];
    const text = new RegExp(`mount ${String(amount / 100).replace(".", "\\.")}\\. `);
    const found = rows.some((row) => message.test(row.message) && text.test(row.message));
    const { status, attempts } = answer;
    history.write(this.#process, status === 200 ? "ok" : "info", "read-notification", {
      user: this.#user?.id,
      amount,
      found,
      status,
      attempts,
    });
  }

  /** Works until the signal ends it. A client whose user could not register tries again with another one. */
  async run(known: User[], end: AbortSignal): Promise<void> {
    while (!end.aborted) {
      if (this.#user === undefined) {
        this.#user = await this.#register();
        if (this.#user !== undefined) known.push(this.#user);
        continue;
      }
      await this.#once();
      await delay(this.#random.between(0, PAUSE_BETWEEN_OPERATIONS_MILLISECONDS_MAX));
    }
  }
}

/**
 * Runs the load until the signal ends it.
 * @returns the token of each user, when every call has its outcome
 */
export async function runLoad(options: LoadOptions, end: AbortSignal): Promise<ReadonlyMap<string, string>> {
  const users: User[] = [];
  await Promise.all(
    Array.from({ length: options.clients }, (_, process) => new LoadClient(options, process, users).run(users, end)),
  );
  return new Map(users.map(({ id, token }) => [id, token]));
}

/** Repeats each keyed call whose outcome is unknown: the same key tells what happened, or makes it happen. */
export async function resolveUnknown(
  history: readonly Entry[],
  tokens: ReadonlyMap<string, string>,
  { url, history: written }: Pick<LoadOptions, "url" | "history">,
): Promise<void> {
  for (const { type, f, process, value } of history) {
    const { user, request, key, amount } = value;
    const token = tokens.get(String(user));
    if (type !== "info" || typeof key !== "string" || typeof request !== "string" || token === undefined) continue;
    const [method = "POST", path = "/"] = request.split(" ");
    const body = f === "create-order" ? JSON.stringify({ price: decimal(Number(amount)) }) : undefined;
    const response = await fetch(url + path, {
      method,
      headers: {
        authorization: `Bearer ${token}`,
        "idempotency-key": key,
        ...(body !== undefined && { "content-type": "application/json" }),
      },
      ...(body !== undefined && { body }),
      signal: AbortSignal.timeout(ANSWER_MILLISECONDS_MAX),
    });
    const answer = (await response.json()) as Record<string, unknown>;
    const { attempts: _, ...known } = value;
    written.write(process, "invoke", f, known);
    written.write(process, response.ok ? "ok" : response.status < 500 ? "fail" : "info", f, {
      ...known,
      status: response.status,
      ...(answer.code !== undefined && { code: answer.code }),
    });
  }
}
