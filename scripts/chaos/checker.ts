/**
 * Decides from a history and the database whether the invariants hold. The checker imports no file of functions/: it has a separate
 * model of the effect of each operation.
 */
import type { Client } from "pg";
import type { Entry } from "./history.ts";

/** Lotus may answer 5xx for this long after a fault, while connections and processes start again. */
const RECOVERY_MILLISECONDS_MAX = 10_000;
/** A function ends a statement on a vanished connection after 11 s, and drops the other connections of that time. */
const VANISHED_RECOVERY_MILLISECONDS_MAX = 11_000 + RECOVERY_MILLISECONDS_MAX;
const recoveryOf = (fault: string) =>
  fault === "vanish-database" ? VANISHED_RECOVERY_MILLISECONDS_MAX : RECOVERY_MILLISECONDS_MAX;

/** One violation of an invariant. */
export interface Violation {
  /** I1 to I8, or `5xx`, `reads`. */
  readonly invariant: string;
  readonly sentence: string;
  readonly user?: string;
  /** When the operation that shows it ended, in nanoseconds since the start of the run. */
  readonly at?: number;
}

/** Reports a violation. */
type Violate = (invariant: string, sentence: string, user?: string, at?: number) => void;

export interface Verdict {
  readonly violations: readonly Violation[];
  /** The number of checks of each kind. */
  readonly checked: Readonly<Record<string, number>>;
}

interface Operation {
  readonly f: string;
  readonly process: number;
  readonly user: string;
  readonly value: Readonly<Record<string, unknown>>;
  readonly type: "ok" | "fail" | "info";
  readonly result: Readonly<Record<string, unknown>>;
  readonly began: number;
  readonly ended: number;
}

interface TransferRow {
  id: string;
  kind: string;
  amount: number;
  reference: string | null;
  debit_user: string | null;
  credit_user: string | null;
}
interface EntryRow {
  account_id: string;
  number: number;
  transfer_id: string;
  amount: number;
  balance_after: number;
}
interface OrderRow {
  id: string;
  user_id: string;
  price: number;
  status: string;
}

/** Each operation that moves money, with the kind of its transfer. */
const KIND: Readonly<Record<string, string>> = {
  deposit: "deposit",
  withdraw: "withdrawal",
  transfer: "transfer",
  "create-order": "charge",
  refund: "refund",
};

/** The beginning of the message of a successful and of a refused operation. */
const DONE: Readonly<Record<string, string>> = {
  deposit: "Hello! You add money to account. Amount",
  withdrawal: "Hello! You withdraw money from account. Amount",
  charge: "Hello! You pay for order. Order cost amount",
  refund: "Hello! You receive a refund for order. Order cost amount",
};
const REFUSED: Readonly<Record<string, string>> = {
  deposit: "Hello! You cannot add money to account. Amount",
  withdraw: "Hello! You cannot withdraw money from account. Amount",
  "create-order": "Hello! You cannot pay for order. Order cost amount",
};

const euros = (cents: number) => String(cents / 100);

/** Pairs each `invoke` with the outcome of the same process. A call without an outcome is unknown. */
function operationsOf(history: readonly Entry[]): Operation[] {
  const open = new Map<number, Entry>();
  const operations: Operation[] = [];
  const close = (invoke: Entry, type: Operation["type"], result: Entry["value"], ended: number) =>
    operations.push({
      f: invoke.f,
      process: invoke.process as number,
      user: String(invoke.value.user ?? ""),
      value: invoke.value,
      type,
      result,
      began: invoke.time,
      ended,
    });
  for (const entry of history) {
    if (entry.process === "nemesis") continue;
    if (entry.type === "invoke") {
      open.set(entry.process, entry);
      continue;
    }
    const invoke = open.get(entry.process);
    if (invoke === undefined || invoke.f !== entry.f) continue;
    open.delete(entry.process);
    close(invoke, entry.type, entry.value, entry.time);
  }
  for (const invoke of open.values()) close(invoke, "info", {}, Number.POSITIVE_INFINITY);
  return operations;
}

/** The times, in nanoseconds, in which a fault was active or Lotus was still recovering. */
function disturbedTimes(history: readonly Entry[]): { from: number; to: number }[] {
  const times: { from: number; to: number; name: string }[] = [];
  for (const { process, type, f, time } of history) {
    if (process !== "nemesis") continue;
    if (type === "invoke") times.push({ from: time, to: Number.POSITIVE_INFINITY, name: f });
    else {
      const begun = times.findLast(({ name, to }) => name === f && to === Number.POSITIVE_INFINITY);
      if (begun !== undefined) begun.to = time + recoveryOf(f) * 1e6;
    }
  }
  return times;
}

async function rows<Row>(database: Client, text: string): Promise<Row[]> {
  const { rows: read } = await database.query(text);
  return read.map((row: Record<string, unknown>) =>
    Object.fromEntries(
      Object.entries(row).map(([name, value]) => [
        name,
        typeof value === "string" && /^-?\d{1,15}$/.test(value) ? Number(value) : value,
      ]),
    ),
  ) as Row[];
}

/**
 * Checks a run whose outbox is empty.
 * @param database connected as the owner
 * @param settledMilliseconds how long the outbox needed to drain after the last fault had ended
 * @param poison the ids of the injected events: `sent` may be in the dead letters, `acknowledged` must be there
 */
export async function check(
  history: readonly Entry[],
  database: Client,
  settledMilliseconds: number,
  poison: { readonly sent: ReadonlySet<string>; readonly acknowledged: ReadonlySet<string> },
  settleMillisecondsMax: number,
): Promise<Verdict> {
  const violations: Violation[] = [];
  const checked: Record<string, number> = {};
  const count = (what: string, number = 1) => {
    checked[what] = (checked[what] ?? 0) + number;
  };
  const violate: Violate = (invariant, sentence, user, at) =>
    void violations.push({
      invariant,
      sentence,
      ...(user !== undefined && { user }),
      ...(at !== undefined && Number.isFinite(at) && { at }),
    });

  const operations = operationsOf(history);
  const accounts = await rows<{ id: string; kind: string; balance: number; entries: number }>(
    database,
    "select id, kind, balance, entries from billing.accounts",
  );
  const transfers = await rows<TransferRow>(
    database,
    `select t.id, t.kind, t.amount, t.reference, case d.kind when 'user' then d.id end as debit_user,
      case c.kind when 'user' then c.id end as credit_user
     from billing.transfers t left join billing.accounts d on d.id = t.debit_account
     left join billing.accounts c on c.id = t.credit_account`,
  );
  const entries = await rows<EntryRow>(
    database,
    "select account_id, number, transfer_id, amount, balance_after from billing.entries order by account_id, number",
  );
  const orders = await rows<OrderRow>(database, 'select id, user_id, price, status from "order".orders');
  // An existing installation may have other users, which no client of this run used.
  const emails = new Set(operations.flatMap(({ f, value }) => (f === "register" ? [value.email] : [])));
  const everyUser = await rows<{ id: string; email: string }>(database, "select id, email from profile.users");
  const users = everyUser.filter(({ email }) => emails.has(email));
  const emailOf = new Map(users.map(({ id, email }) => [id, email]));
  const notifications = await rows<{ user_id: string; message: string }>(
    database,
    "select user_id, message from notification.notifications",
  );
  const [waiting] = await rows<{ outbox: number }>(database, "select count(*) as outbox from events.outbox");
  const letters = await rows<{ event: string; subscriber: string; reason: string }>(
    database,
    "select coalesce(attributes ->> 'id', event_key::text) as event, subscriber, reason from events.dead_letters",
  );

  // I1: each account's entries add up to its balance, which is not negative.
  const entriesOf = groupBy(entries, ({ account_id }) => account_id);
  for (const { id, kind, balance, entries: last } of accounts) {
    if (kind !== "user") continue;
    count("accounts");
    if (balance < 0) violate("I1", `The balance of account ${id} is ${euros(balance)}.`, id);
    let sum = 0;
    for (const [index, entry] of (entriesOf.get(id) ?? []).entries()) {
      sum += entry.amount;
      if (entry.number !== index + 1)
        violate("I1", `Entry ${index + 1} of account ${id} has the number ${entry.number}.`, id);
      if (entry.balance_after !== sum || sum < 0)
        violate(
          "I1",
          `Entry ${entry.number} of account ${id} says ${euros(entry.balance_after)} after it; the entries make ${euros(sum)}.`,
          id,
        );
    }
    if (sum !== balance)
      violate("I1", `Account ${id} has the balance ${euros(balance)}; its entries make ${euros(sum)}.`, id);
    if ((entriesOf.get(id)?.length ?? 0) !== last)
      violate("I1", `Account ${id} says that it has ${last} entries; there are ${entriesOf.get(id)?.length ?? 0}.`, id);
  }

  // I2: all balances together are 0, and each transfer has its entries.
  const total = accounts.reduce((sum, { balance }) => sum + balance, 0);
  if (total !== 0) violate("I2", `All balances together are ${euros(total)}, not 0.`);
  const entriesOfTransfer = groupBy(entries, ({ transfer_id }) => transfer_id);
  for (const transfer of transfers) {
    count("transfers");
    const own = entriesOfTransfer.get(transfer.id) ?? [];
    for (const [user, amount] of [
      [transfer.debit_user, -transfer.amount],
      [transfer.credit_user, transfer.amount],
    ] as const) {
      const found = own.filter((entry) => entry.account_id === user);
      if (user !== null && (found.length !== 1 || found[0]?.amount !== amount))
        violate(
          "I2",
          `The ${transfer.kind} ${transfer.id} of ${euros(transfer.amount)} has ${found.length} entries for account ${user}.`,
          user,
        );
    }
  }

  // I2, from the history: each acknowledged movement happened once, a refused one never, an unknown one at most once.
  const movementsOf = groupBy(
    transfers,
    ({ kind, amount, debit_user, credit_user }) =>
      `${kind}/${kind === "deposit" || kind === "refund" ? credit_user : debit_user}/${amount}`,
  );
  const explained = new Set<string>();
  for (const { f, user, value, type, result, ended } of operations) {
    const kind = KIND[f];
    if (kind === undefined) continue;
    count("movements");
    const key = `${kind}/${user}/${value.amount}`;
    const found = (movementsOf.get(key) ?? []).filter(({ reference }) => f !== "refund" || reference === value.orderId);
    for (const { id } of found) explained.add(id);
    const most = type === "fail" ? 0 : 1;
    const least = type === "ok" ? 1 : 0;
    if (found.length > most || found.length < least)
      violate(
        "I2",
        `The ${f} of ${euros(Number(value.amount))} by user ${user} was answered ${result.status ?? "not at all"}; the ledger has ${found.length} transfers of it.`,
        user,
        ended,
      );
    const unknownKeyed = type === "info" && value.key !== undefined;
    if (unknownKeyed) count("unknown outcomes with a key");
    else if (type === "info") count("unknown outcomes without a key");
  }
  for (const { id, kind, amount, debit_user, credit_user } of transfers)
    if (!explained.has(id) && emailOf.has(kind === "transfer" ? (debit_user ?? "") : (debit_user ?? credit_user ?? "")))
      violate(
        "I2",
        `No client asked for the ${kind} ${id} of ${euros(amount)}.`,
        debit_user ?? credit_user ?? undefined,
      );

  // I3: a paid order has one charge, a refused one none, a refunded one a charge and a refund.
  const referencesOf = groupBy(transfers, ({ kind, reference }) => `${kind}/${reference}`);
  for (const { id, user_id, price, status } of orders) {
    count("orders");
    const charges = referencesOf.get(`charge/${id}`) ?? [];
    const refunds = referencesOf.get(`refund/${id}`) ?? [];
    const expected = status === "refused" ? [0, 0] : status === "paid" ? [1, 0] : [1, 1];
    if (charges.length !== expected[0] || refunds.length !== expected[1])
      violate(
        "I3",
        `The order ${id} (${status}) has ${charges.length} charges and ${refunds.length} refunds.`,
        user_id,
      );
    for (const { amount, debit_user, credit_user } of [...charges, ...refunds])
      if (amount !== price || (debit_user ?? credit_user) !== user_id)
        violate(
          "I3",
          `The order ${id} of ${euros(price)} has a transfer of ${euros(amount)} of account ${debit_user ?? credit_user}.`,
          user_id,
        );
  }
  const orderIds = new Set(orders.map(({ id }) => id));
  for (const { kind, reference, debit_user } of transfers)
    if (kind === "charge" && !orderIds.has(reference ?? ""))
      violate("I3", `A charge names the order ${reference}, which does not exist.`, debit_user ?? undefined);

  // I4: each outcome has exactly one notification.
  const messagesOf = groupBy(
    notifications,
    ({ user_id, message }) => `${user_id}/${message.replace(/\. You balance.*/, "")}`,
  );
  const expectOne = (user: string, message: string, least = 1) => {
    const number = messagesOf.get(`${user}/${message}`)?.length ?? 0;
    count("notifications");
    if (number > 1 || number < least) violate("I4", `User ${user} has ${number} notifications "${message} …".`, user);
  };
  for (const { id } of users) expectOne(id, "Hello! You are welcome. Your account is open");
  for (const { kind, amount, debit_user, credit_user } of transfers) {
    const user = debit_user ?? credit_user ?? "";
    const [sender, recipient] = [emailOf.get(debit_user ?? ""), emailOf.get(credit_user ?? "")];
    if (kind === "transfer" && sender !== undefined && recipient !== undefined) {
      expectOne(debit_user ?? "", `Hello! You transfer money to ${recipient}. Amount ${euros(amount)}`);
      expectOne(credit_user ?? "", `Hello! You receive money from ${sender}. Amount ${euros(amount)}`);
    } else if (DONE[kind] !== undefined && emailOf.has(user)) expectOne(user, `${DONE[kind]} ${euros(amount)}`);
  }
  for (const { f, user, value, type, result } of operations) {
    if (type === "ok" || (type === "fail" && result.code !== "insufficient-funds")) continue;
    const beginning =
      f === "transfer" ? `Hello! You cannot transfer money to ${emailOf.get(String(value.to))}. Amount` : REFUSED[f];
    if (beginning !== undefined)
      expectOne(user, `${beginning} ${euros(Number(value.amount))}`, type === "fail" ? 1 : 0);
  }

  // I5: a repeated key returns the same answer.
  for (const { f, type, value, time } of history) {
    if (f !== "repeat" || type !== "ok") continue;
    count("repeated keys");
    if (value.equal !== true)
      violate(
        "I5",
        `The key ${value.key} of a ${value.of} was answered ${JSON.stringify(value.first)}, then ${JSON.stringify(value.again)}.`,
        String(value.user),
        time,
      );
  }

  // I6: each registered user has one account.
  const open = groupBy(accounts, ({ id }) => id);
  for (const { id } of users) {
    count("users");
    const number = (open.get(id) ?? []).filter(({ kind }) => kind === "user").length;
    if (number !== 1) violate("I6", `User ${id} has ${number} accounts.`, id);
  }
  const known = new Set(everyUser.map(({ id }) => id));
  for (const { id, kind } of accounts)
    if (kind === "user" && !known.has(id)) violate("I6", `The account ${id} has no user.`, id);

  // I7: the outbox is empty, and the dead letters contain only injected poison.
  if ((waiting?.outbox ?? 0) > 0) violate("I7", `The outbox has ${waiting?.outbox} rows at the end.`);
  const lettersOf = groupBy(letters, ({ event }) => event);
  for (const id of poison.acknowledged) {
    count("poison events");
    const number = lettersOf.get(id)?.length ?? 0;
    if (number !== 1) violate("I7", `The poison event ${id} has ${number} dead letters.`);
  }
  for (const { event, subscriber, reason } of letters)
    if (!poison.sent.has(event))
      violate("I7", `The event ${event} is in the dead letters of ${subscriber}, and no fault caused it: ${reason}`);

  // I8: the outbox becomes empty within seconds after the last fault.
  if (settledMilliseconds > settleMillisecondsMax)
    violate(
      "I8",
      `The outbox drained ${Math.round(settledMilliseconds / 1000)} s after the last fault; at most ${settleMillisecondsMax / 1000} s are allowed.`,
    );

  checkReads(operations, entries, transfers, violate, count);
  checkAnswers(history, violate, count);
  return { violations, checked };
}

/** Groups values by a key. (`Map.groupBy` needs Node 21.) */
function groupBy<T>(values: readonly T[], keyOf: (value: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const value of values) {
    const key = keyOf(value);
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [value]);
    else group.push(value);
  }
  return groups;
}

/**
 * A balance that a client read existed at that moment, and later reads never go back. A read sees every movement that was answered
 * before the read began, by any client of the user.
 */
function checkReads(
  operations: readonly Operation[],
  entries: readonly EntryRow[],
  transfers: readonly TransferRow[],
  violate: Violate,
  count: (what: string) => void,
): void {
  const entriesOf = groupBy(entries, ({ account_id }) => account_id);
  const entryOf = new Map(entries.map((entry) => [`${entry.account_id}/${entry.transfer_id}`, entry]));
  const transferOf = groupBy(
    transfers,
    ({ kind, amount, debit_user, credit_user }) =>
      `${kind}/${kind === "deposit" || kind === "refund" ? credit_user : debit_user}/${amount}`,
  );
  /** The last entry that an answer has shown to a client, by user. */
  const shown = new Map<string, number>();
  const show = (user: string, number: number) => shown.set(user, Math.max(shown.get(user) ?? 0, number));
  const least = new Map<Operation, number>();
  const moments = operations.flatMap((operation) => [
    { time: operation.began, operation, begins: true },
    { time: operation.ended, operation, begins: false },
  ]);
  for (const { operation, begins } of moments.sort((a, b) => a.time - b.time)) {
    const { f, user, value, type, result, ended } = operation;
    if (begins) {
      least.set(operation, shown.get(user) ?? 0);
      continue;
    }
    if (type === "info") continue;
    const cents = typeof result.balance === "number" ? Math.round(result.balance * 100) : undefined;
    if (f === "read-notification") {
      count("reads of own notifications");
      if (result.found !== true)
        violate(
          "I4",
          `User ${user} did not see the notification of ${euros(Number(value.amount))} after the answer.`,
          user,
          ended,
        );
    } else if (f === "read-balance" && type === "ok" && cents !== undefined) {
      count("reads of balances");
      const from = least.get(operation) ?? 0;
      const possible = [{ number: 0, balance_after: 0 }, ...(entriesOf.get(user) ?? [])].find(
        (entry) => entry.number >= from && entry.balance_after === cents,
      );
      if (possible !== undefined) show(user, possible.number);
      else
        violate(
          "reads",
          `User ${user} read the balance ${euros(cents)}, which the account did not have after its entry ${from}.`,
          user,
          ended,
        );
    } else if (type === "ok") {
      const own = transferOf.get(`${KIND[f]}/${user}/${value.amount}`)?.[0];
      const entry = own === undefined ? undefined : entryOf.get(`${user}/${own.id}`);
      if (entry === undefined) continue;
      show(user, entry.number);
      if (cents === undefined || result.status === undefined) continue;
      count("balances in answers");
      if (cents !== entry.balance_after)
        violate(
          "reads",
          `The ${f} of ${euros(Number(value.amount))} by user ${user} was answered with the balance ${euros(cents)}; its entry says ${euros(entry.balance_after)}.`,
          user,
          ended,
        );
    }
  }
}

/** Without a fault, a function answers, and its status is below 500. */
function checkAnswers(history: readonly Entry[], violate: Violate, count: (what: string) => void): void {
  const disturbed = disturbedTimes(history);
  for (const { value, f } of history) {
    if (!Array.isArray(value.attempts)) continue;
    for (const { status, time, milliseconds } of value.attempts as {
      status: number;
      time: number;
      milliseconds: number;
    }[]) {
      count("answers");
      const began = time - milliseconds * 1e6;
      if (disturbed.some(({ from, to }) => from <= time && to >= began)) continue;
      count("answers while no fault was active");
      if (status !== 0 && status < 500) continue;
      violate(
        "5xx",
        `A ${f} was answered ${status === 0 ? "not at all" : status} at ${(time / 1e9).toFixed(1)} s, when no fault was active.`,
        String(value.user ?? ""),
        time,
      );
    }
  }
}

/** Operations of a user that a report shows for one violation. */
const SHOWN_OPERATIONS_MAX = 20;

/**
 * Describes operations of the user of a violation, with their times: the operations around the violation, or else the last ones.
 * @returns a line for each operation
 */
export function describeOperations(history: readonly Entry[], { user, at }: Violation): string[] {
  const own = operationsOf(history)
    .filter((operation) => operation.user === user)
    .sort((a, b) => a.ended - b.ended);
  const seconds = (time: number) => (Number.isFinite(time) ? `${(time / 1e9).toFixed(3)} s` : "the end");
  const index = at === undefined ? own.length : own.findIndex(({ ended }) => ended >= at);
  const from = Math.max(0, Math.min(own.length, index + SHOWN_OPERATIONS_MAX / 2) - SHOWN_OPERATIONS_MAX);
  return own.slice(from, from + SHOWN_OPERATIONS_MAX).map(({ f, process, value, type, result, began, ended }) => {
    const amount = value.amount === undefined ? "" : ` of ${euros(Number(value.amount))}`;
    const answer = type === "info" ? "unknown" : [result.status, result.code].filter(Boolean).join(" ");
    const balance = result.balance === undefined ? "" : `, balance ${result.balance}`;
    return `${seconds(began)} to ${seconds(ended)}, client ${process}: ${f}${amount}: ${answer}${balance}`;
  });
}
