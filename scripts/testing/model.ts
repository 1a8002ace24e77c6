/** The expected view of one user from outside. The model contains no database, no events and no processes. */
import { message } from "../../functions/notification/message.ts";

/** In cents. The last subscription does not exist. */
const SUBSCRIPTIONS: Readonly<Record<number, number>> = { 1: 1_000, 2: 9_500, 3: 120_000 };

export type Command =
  | { readonly kind: "deposit" | "withdrawal" | "create" | "transfer"; readonly cents: number }
  | { readonly kind: "pay"; readonly subscription: number }
  | { readonly kind: "pay-at-once"; readonly times: number };

/** The predictable part of an answer. */
export interface Expected {
  readonly status: number;
  readonly body: object;
}

const decimal = (cents: number) => String(cents / 100);

interface ModelOrder {
  readonly idSubscription: number | null;
  readonly price: number;
  status: "paid" | "refused" | "refunded";
}

export class ModelAccount {
  #cents = 0;
  /** The balances after refunds. */
  readonly #refunds = new Map<ModelOrder, number>();
  /** Oldest first. */
  readonly messages: string[] = [message({ kind: "welcome", userId: "", recipient: "" })];
  readonly transfers: object[] = [];
  readonly orders: ModelOrder[] = [];
  readonly #recipient: string;

  /** @param recipient the email to which this user transfers money */
  constructor(recipient: string) {
    this.#recipient = recipient;
  }

  get balance(): number {
    return this.#cents / 100;
  }

  /** Executes a command and returns the answers in the order of their effects: one for each request. */
  run(command: Command): Expected[] {
    switch (command.kind) {
      case "deposit":
      case "withdrawal":
        return [this.#move(command.kind, command.cents)];
      case "transfer":
        return [this.#send(command.cents)];
      case "create":
        return [this.#order(command.cents, null, 201)];
      case "pay":
        return [this.#pay(command.subscription)];
      case "pay-at-once":
        return Array.from({ length: command.times }, () => this.#pay(1));
    }
  }

  /** Refunds the order at an index of the list, newest first, and returns the answer. */
  refund(index: number): Expected {
    const order = this.orders.at(-1 - index);
    if (order === undefined) return { status: 404, body: { code: "unknown-order" } };
    if (order.status === "refused") return { status: 409, body: { code: "order-not-paid" } };
    if (order.status === "paid") {
      const cents = Math.round(order.price * 100);
      this.#transfer("refund", cents);
      order.status = "refunded";
      this.#refunds.set(order, this.balance);
      this.#record("order-refunded", cents);
    }
    return { status: 200, body: { balance: this.#refunds.get(order), order } };
  }

  #send(cents: number): Expected {
    const done = this.#transfer("transfer-out", -cents);
    const facts = {
      userId: "",
      recipient: "",
      to: this.#recipient,
      amount: decimal(cents),
      balance: decimal(this.#cents),
    };
    this.messages.push(message({ ...facts, kind: done ? "transfer-sent" : "transfer-refused" }));
    if (!done) return { status: 400, body: { code: "insufficient-funds", balance: this.balance } };
    return { status: 200, body: { balance: this.balance } };
  }

  #pay(subscription: number): Expected {
    const price = SUBSCRIPTIONS[subscription];
    if (price === undefined) return { status: 404, body: { code: "unknown-subscription" } };
    return this.#order(price, subscription, 200);
  }

  #order(price: number, idSubscription: number | null, status: number): Expected {
    const paid = this.#transfer("charge", -price);
    const order: ModelOrder = { idSubscription, price: price / 100, status: paid ? "paid" : "refused" };
    this.orders.push(order);
    this.#record(paid ? "order-paid" : "order-refused", price);
    if (!paid) return { status: 400, body: { code: "insufficient-funds", balance: this.balance, order } };
    return { status, body: { balance: this.balance, order } };
  }

  #move(kind: "deposit" | "withdrawal", cents: number): Expected {
    const done = this.#transfer(kind, kind === "deposit" ? cents : -cents);
    this.#record(`${kind}-${done ? "done" : "refused"}`, cents);
    if (!done) return { status: 400, body: { code: "insufficient-funds", balance: this.balance } };
    return { status: 200, body: { balance: this.balance } };
  }

  #transfer(kind: string, change: number): boolean {
    if (this.#cents + change < 0) return false;
    this.#cents += change;
    const number = this.transfers.length + 1;
    this.transfers.push({ number, kind, amount: Math.abs(change) / 100, balanceAfter: this.balance });
    return true;
  }

  #record(
    kind: `${"deposit" | "withdrawal"}-${"done" | "refused"}` | `order-${"paid" | "refused" | "refunded"}`,
    cents: number,
  ): void {
    const amounts = { amount: decimal(cents), balance: decimal(this.#cents) };
    this.messages.push(message({ kind, userId: "", recipient: "", orderId: "", ...amounts }));
  }
}
