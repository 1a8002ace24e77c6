/** The texts of all notifications. */
import type * as v from "valibot";
import type { NotificationRequested } from "./events.ts";

/** Returns the message for the facts of an event. */
export function message(fact: v.InferOutput<typeof NotificationRequested>): string {
  switch (fact.kind) {
    case "welcome":
      return "Hello! You are welcome. Your account is open";
    case "deposit-done":
      return `Hello! You add money to account. Amount ${fact.amount}. You balance after ${fact.balance}`;
    case "deposit-refused":
      return `Hello! You cannot add money to account. Amount ${fact.amount}. You balance ${fact.balance}`;
    case "withdrawal-done":
      return `Hello! You withdraw money from account. Amount ${fact.amount}. You balance after ${fact.balance}`;
    case "withdrawal-refused":
      return `Hello! You cannot withdraw money from account. Amount ${fact.amount}. You balance ${fact.balance}`;
    case "order-paid":
      return `Hello! You pay for order. Order cost amount ${fact.amount}. You balance after ${fact.balance}`;
    case "order-refused":
      return `Hello! You cannot pay for order. Order cost amount ${fact.amount}. You balance ${fact.balance}`;
    case "order-refunded":
      return `Hello! You receive a refund for order. Order cost amount ${fact.amount}. You balance after ${fact.balance}`;
    case "order-refund-refused":
      return `Hello! You cannot receive a refund for order. Order cost amount ${fact.amount}. You balance ${fact.balance}`;
    case "transfer-sent":
      return `Hello! You transfer money to ${fact.to}. Amount ${fact.amount}. You balance after ${fact.balance}`;
    case "transfer-refused":
      return `Hello! You cannot transfer money to ${fact.to}. Amount ${fact.amount}. You balance ${fact.balance}`;
    case "transfer-received":
      return `Hello! You receive money from ${fact.from}. Amount ${fact.amount}. You balance after ${fact.balance}`;
    case "message":
      return fact.message;
  }
}
