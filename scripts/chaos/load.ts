/** The load: clients that register, move money, buy, refund and read, and that repeat a call whose answer they did not receive. */
import { randomUUID } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import type { Entry, History } from "./history.ts";
import type { Random } from "./random.ts";

/** A client waits this long for one answer. */
const ANSWER_MILLISECONDS_MAX = 15_000;
export const REPEAT_MILLISECONDS_MAX = 60_000;
const PAUSE_MILLISECONDS_MIN = 50;
const PAUSE_MILLISECONDS_MAX = 1_000;
const PAUSE_BETWEEN_OPERATIONS_MILLISECONDS_MAX = 20;
/** One in so many operations has no Idempotency-Key. */
const KEYLESS_SHARE = 0.08;
/** Clients that act for one user at the same time. */
const CLIENTS_PER_USER = 2;
/** One in so many operations is sent again with its key after its answer. */
const REPEAT_SHARE = 0.1;
/** One in so many refunds is sent again with another key. */
const SECOND_REFUND_SHARE = 0.5;
const READ_NOTIFICATION_SHARE = 0.3;
const NOTIFICATIONS_PER_PAGE = 100;
/** One in so many users never reads notifications: only the trigger and the relay settle the events of this user. */
const SILENT_USER_EVERY = 3;
const USER_WAIT_MILLISECONDS = 20;
const PASSWORD = "correct horse battery";

export interface Counters {
  operations: number;
  refused: number;
  unknown: number;
  /** Milliseconds from call to answer, of the answers of the last moment. */
  latencies: number[];
  /** Functions that are called once, at the next acknowledged movement of money. */
  readonly onMovement: (() => void)[];
}

/** One try of a call. Status 0: the call got no answer. */
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
  /** A client repeats a keyed call for this long. Afterwards its outcome counts as unknown. */
  readonly repeatMillisecondsMax: number;
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

/** Whether an answer states the outcome. After 401, 429 and 5xx an earlier attempt may have succeeded. */
const isDecided = (status: number) => status !== 0 && status < 500 && status !== 401 && status !== 429;

/** Logs a user in again, if that is possible now. */
async function renewToken(url: string, user: User): Promise<void> {
  const response = await fetch(`${url}/profile/login`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ email: user.email, password: PASSWORD }),
    signal: AbortSignal.timeout(ANSWER_MILLISECONDS_MAX),
  }).catch(() => undefined);
  if (response === undefined) return;
  const { token } = (await response.json().catch(() => ({}))) as { token?: string };
  user.token = token ?? user.token;
}

const decimal = (cents: number) => (cents / 100).toFixed(2);

/** The user, the paid orders and the amounts that several clients share. */
interface Account {
  user: User | undefined;
  readonly orders: PaidOrder[];
  readonly readsNotifications: boolean;
  amounts: number;
}

/**
 * One client. Its calls follow each other; other clients act for the same user at the same time. Each amount occurs once for a
 * user, so the checker finds each movement.
 */
class LoadClient {
  readonly #options: LoadOptions;
  readonly #process: number;
  readonly #random: Random;
  readonly #account: Account;
  readonly #others: readonly User[];

  constructor(options: LoadOptions, process: number, account: Account, others: readonly User[]) {
    this.#options = options;
    this.#process = process;
    this.#random = options.random.fork(`client ${process}`);
    this.#account = account;
    this.#others = others;
  }

  get #user(): User | undefined {
    return this.#account.user;
  }

  /** Sends one call until it is answered. A call without a key is sent once. */
  async #send(method: string, path: string, body: unknown, key: string | undefined, repeat: boolean): Promise<Answer> {
    const { url, history, counters } = this.#options;
    const attempts: Attempt[] = [];
    const until = performance.now() + this.#options.repeatMillisecondsMax;
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
      // A function whose clock has jumped issues tokens that others refuse, and refuses theirs.
      if (status === 401 && this.#user !== undefined) await renewToken(url, this.#user);
      const isFinal = isDecided(status);
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
    const type = !isDecided(answer.status) ? "info" : answer.status < 400 ? "ok" : "fail";
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
    // The same key must return the same answer, also after other operations and faults.
    if (key !== undefined && type !== "info" && this.#random.next() < REPEAT_SHARE)
      await this.#repeat(f, method, path, body, key, answer);
    return answer;
  }

  async #repeat(f: string, method: string, path: string, body: unknown, key: string, first: Answer): Promise<void> {
    const again = await this.#send(method, path, body, key, true);
    if (!isDecided(again.status)) return;
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
    return 100 + this.#account.amounts++ * 7;
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
    return this.#login(email);
  }

  async #login(email: string): Promise<User | undefined> {
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
    } else if (chance < 0.7) {
      answer = await this.#operate(
        "create-order",
        "POST /order/create",
        { amount },
        { keyed: true, body: { price: money } },
      );
      message = /^Hello! You (?:cannot )?pay for order/;
    } else if (chance < 0.78 && this.#account.orders.length > 0) {
      const order = this.#account.orders.pop() as PaidOrder;
      answer = await this.#operate(
        "refund",
        `POST /order/refund?id=${order.id}`,
        { amount: order.amount, orderId: order.id },
        { keyed: true },
      );
      if (answer.status === 200 && this.#random.next() < SECOND_REFUND_SHARE)
        await this.#operate("refund-again", `POST /order/refund?id=${order.id}`, { orderId: order.id });
    } else if (chance < 0.9) {
      answer = await this.#operate("read-balance", "GET /billing/balance", {});
      return;
    } else if (chance < 0.95) {
      answer = await this.#operate("read-orders", "GET /order/list?limit=5", {});
      return;
    } else if (chance < 0.96 && this.#user !== undefined) {
      const user = this.#user;
      user.token = (await this.#login(user.email))?.token ?? user.token;
      return;
    } else {
      answer = await this.#operate("read-history", "GET /billing/history?limit=5", {});
      return;
    }
    const placed = answer.body.order as { id: string; status: string } | undefined;
    if (placed?.status === "paid") this.#account.orders.push({ id: placed.id, amount });
    if (
      this.#account.readsNotifications &&
      message !== undefined &&
      (answer.status === 200 || answer.status === 201 || answer.body.code === "insufficient-funds")
    )
      if (this.#random.next() < READ_NOTIFICATION_SHARE) await this.#readNotification(amount, message);
  }

  /** Reads the notification of an answered operation, which must exist at once. */
  async #readNotification(amount: number, message: RegExp): Promise<void> {
    const { history } = this.#options;
    history.write(this.#process, "invoke", "read-notification", { user: this.#user?.id, amount });
    const answer = await this.#send("GET", `/notification?limit=${NOTIFICATIONS_PER_PAGE}`, undefined, undefined, true);
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

  /**
   * Sends operations until the signal ends it.
   * @param registers the user of the account; the other clients of the account wait for it
   */
  async run(known: User[], registers: boolean, end: AbortSignal): Promise<void> {
    while (!end.aborted) {
      if (this.#user !== undefined) await this.#once();
      else if (registers) {
        this.#account.user = await this.#register();
        if (this.#user !== undefined) known.push(this.#user);
      } else await delay(USER_WAIT_MILLISECONDS);
      await delay(this.#random.between(0, PAUSE_BETWEEN_OPERATIONS_MILLISECONDS_MAX));
    }
  }
}

/**
 * Runs the load until the signal ends it.
 * @returns the users by id, when every call has its outcome
 */
export async function runLoad(options: LoadOptions, end: AbortSignal): Promise<ReadonlyMap<string, User>> {
  const users: User[] = [];
  const accounts: Account[] = [];
  const clients = Array.from({ length: options.clients }, (_, process) => {
    const index = Math.floor(process / CLIENTS_PER_USER);
    accounts[index] ??= {
      user: undefined,
      orders: [],
      readsNotifications: (index + 1) % SILENT_USER_EVERY !== 0,
      amounts: 0,
    };
    const client = new LoadClient(options, process, accounts[index], users);
    return client.run(users, process % CLIENTS_PER_USER === 0, end);
  });
  await Promise.all(clients);
  return new Map(users.map((user) => [user.id, user]));
}

const RESOLVE_PAUSE_MILLISECONDS = 1_000;

/** Sends a call until its answer states the outcome. */
async function untilAnswered(
  url: string,
  path: string,
  user: User,
  init: RequestInit,
  until: number,
): Promise<Response | undefined> {
  for (;;) {
    const headers = { ...init.headers, authorization: `Bearer ${user.token}` };
    const signal = AbortSignal.timeout(ANSWER_MILLISECONDS_MAX);
    const response = await fetch(url + path, { ...init, headers, signal }).catch(() => undefined);
    if (response !== undefined && isDecided(response.status)) return response;
    if (performance.now() > until) return undefined;
    await response?.arrayBuffer().catch(() => undefined);
    if (response?.status === 401) await renewToken(url, user);
    await delay(RESOLVE_PAUSE_MILLISECONDS);
  }
}

/** Repeats each keyed call whose outcome is unknown: the answer to the same key is its outcome. */
export async function resolveUnknown(
  history: readonly Entry[],
  users: ReadonlyMap<string, User>,
  { url, history: written, repeatMillisecondsMax }: Pick<LoadOptions, "url" | "history" | "repeatMillisecondsMax">,
): Promise<void> {
  const until = performance.now() + repeatMillisecondsMax;
  for (const { type, f, process, value } of history) {
    const { user, request, key, amount } = value;
    const caller = users.get(String(user));
    if (type !== "info" || typeof key !== "string" || typeof request !== "string" || caller === undefined) continue;
    const [method = "POST", path = "/"] = request.split(" ");
    const body = f === "create-order" ? JSON.stringify({ price: decimal(Number(amount)) }) : undefined;
    const init = {
      method,
      headers: { "idempotency-key": key, ...(body !== undefined && { "content-type": "application/json" }) },
      ...(body !== undefined && { body }),
    };
    const response = await untilAnswered(url, path, caller, init, until);
    if (response === undefined) continue;
    const answer = (await response.json()) as Record<string, unknown>;
    const { attempts: _, ...known } = value;
    written.write(process, "invoke", f, known);
    written.write(process, response.ok ? "ok" : "fail", f, {
      ...known,
      status: response.status,
      ...(answer.code !== undefined && { code: answer.code }),
    });
  }
}
