/** user-registered. Opens the billing account of a new user, once. */
import { batched } from "#kernel/batch";
import { subscriber } from "#kernel/subscriber";
import type { Span } from "#kernel/telemetry";
import { UserRegistered } from "../../functions/profile/events.ts";

const OPEN = 'select "position" from billing.open_accounts($1, $2, $3)';

interface Registration {
  readonly key: string;
  readonly data: { readonly userId: string };
  readonly span: Span;
}

const columnsOf = (registrations: readonly Registration[]) => [
  registrations.map(({ data }) => data.userId),
  registrations.map(({ key }) => key),
];

const openAccount = batched<Registration, { readonly position: number }>({
  name: "billing.open-accounts",
  many: OPEN,
  one: OPEN,
  valuesOfMany: (registrations) => [false, ...columnsOf(registrations)],
  valuesOfOne: (registration) => [true, ...columnsOf([registration])],
  keyOf: ({ key }) => key,
  repetitionOf: () => "repeatable",
  spanOf: ({ span }) => span,
});

export default subscriber({
  topic: "user-registered",
  data: UserRegistered,
  async handle(registration) {
    await openAccount(registration);
  },
});
