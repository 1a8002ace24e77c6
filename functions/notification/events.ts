/** The events that the notification service handles. They contain facts; message.ts has the texts. */
import * as v from "valibot";
import { Email } from "#kernel/email";
import { AmountText } from "#kernel/money";

const MESSAGE_LENGTH_MAX = 1000;

const addressee = {
  userId: v.pipe(v.string(), v.uuid()),
  /** The email address that the message is for. */
  recipient: Email,
};
const money = { amount: AmountText, balance: AmountText };
const order = { ...money, orderId: v.pipe(v.string(), v.uuid()) };

/** notification-requested, version 1: asks for a notification to a user. */
export const NotificationRequested = v.variant("kind", [
  v.object({ ...addressee, kind: v.literal("welcome") }),
  v.object({ ...addressee, ...money, kind: v.literal("deposit-done") }),
  v.object({ ...addressee, ...money, kind: v.literal("deposit-refused") }),
  v.object({ ...addressee, ...money, kind: v.literal("withdrawal-done") }),
  v.object({ ...addressee, ...money, kind: v.literal("withdrawal-refused") }),
  v.object({ ...addressee, ...order, kind: v.literal("order-paid") }),
  v.object({ ...addressee, ...order, kind: v.literal("order-refused") }),
  v.object({ ...addressee, ...order, kind: v.literal("order-refunded") }),
  v.object({ ...addressee, ...order, kind: v.literal("order-refund-refused") }),
  v.object({ ...addressee, ...money, kind: v.literal("transfer-sent"), to: Email }),
  v.object({ ...addressee, ...money, kind: v.literal("transfer-refused"), to: Email }),
  v.object({ ...addressee, ...money, kind: v.literal("transfer-received"), from: Email }),
  /** A message whose text the producer wrote. */
  v.object({
    ...addressee,
    kind: v.literal("message"),
    message: v.pipe(
      v.string(),
      v.minLength(1),
      v.maxLength(MESSAGE_LENGTH_MAX),
      v.check((text) => !text.includes("\0"), "must be without NUL, which Postgres cannot keep"),
    ),
  }),
]);
