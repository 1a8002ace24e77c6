/** Users who pay without pause. Each payment has a new key, and is repeated until it receives an answer. */
import { randomUUID } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { Client } from "pg";
import { verifyLedger } from "../../database/verify-ledger.ts";

import { TARGET_DEFAULT } from "../../generate/knative.ts";

export const BASE_URL = `http://${TARGET_DEFAULT.host}`;
const DEPOSIT = 1_000_000;
const SETTLE_SECONDS_MAX = 90;
/** The notifications of a new user: the welcome, and the deposit. */
const NOTIFICATIONS_BEFORE = 2;

interface Payer {
  readonly id: string;
  readonly token: string;
  payments: number;
  paid: number;
}

export interface LoadResult {
  /** Payments that were answered 200. */
  readonly payments: number;
  /** The unexpected answers, with their counts. */
  readonly failures: ReadonlyMap<string, number>;
  readonly slowestMilliseconds: number;
  /** The first violated invariant after everything has settled; undefined when all hold. */
  readonly difference: string | undefined;
}

async function post(path: string, body: object | undefined, token?: string): Promise<{ id: string; token: string }> {
  const answer = await fetch(BASE_URL + path, {
    method: "POST",
    headers: {
      ...(body && { "content-type": "application/json" }),
      ...(token !== undefined && { authorization: `Bearer ${token}` }),
    },
    ...(body && { body: JSON.stringify(body) }),
  });
  if (!answer.ok) throw new Error(`${path} answered ${answer.status}: ${await answer.text()}`);
  return (await answer.json()) as { id: string; token: string };
}

async function newPayer(): Promise<Payer> {
  const credentials = { email: `${randomUUID()}@example.com`, password: "correct horse battery" };
  const { id } = await post("/profile/register", credentials);
  const { token } = await post("/profile/login", credentials);
  await post(`/billing/add-money?money=${DEPOSIT}`, undefined, token);
  return { id, token, payments: 0, paid: 0 };
}

/** The two payments: subscription 1 costs 10, and an order with a free price costs 1 here. */
const REQUESTS = {
  "order-pay": { path: "/order/pay?idSubscription=1", body: undefined, price: 10 },
  "order-create": { path: "/order/create", body: { price: 1 }, price: 1 },
} as const;

/** The balances and notifications of these payers in the database. */
async function differenceOf(client: Client, payers: readonly Payer[]): Promise<string | undefined> {
  const wrong = await verifyLedger(client);
  if (wrong !== undefined) return wrong;
  for (const { id, payments, paid } of payers) {
    const { rows } = await client.query<{ balance: string; notifications: number }>(
      `select (select a.balance from billing.accounts a where a.id = $1) as balance,
         (select count(*)::int from notification.notifications n where n.user_id = $1) as notifications`,
      [id],
    );
    const balance = Number(rows[0]?.balance) / 100;
    if (balance !== DEPOSIT - paid) return `user ${id} has ${balance} and should have ${DEPOSIT - paid}`;
    const expected = payments + NOTIFICATIONS_BEFORE;
    if (rows[0]?.notifications !== expected) {
      return `user ${id} has ${rows[0]?.notifications} notifications and should have ${expected}`;
    }
  }
  return undefined;
}

/** Compares until the differences disappear, or until the time limit. */
async function settle(databaseUrl: string, payers: readonly Payer[]): Promise<string | undefined> {
  const client = new Client({ connectionString: databaseUrl });
  await client.connect();
  try {
    for (let waited = 0; ; waited++) {
      const difference = await differenceOf(client, payers);
      if (difference === undefined || waited >= SETTLE_SECONDS_MAX) return difference;
      await delay(1000);
    }
  } finally {
    await client.end();
  }
}

/** Starts the payments: each user sends one request at a time. `stop` waits until everything has settled. */
export async function startLoad(
  databaseUrl: string,
  users: number,
  fn: keyof typeof REQUESTS,
): Promise<{ stop(): Promise<LoadResult> }> {
  const { path, body, price } = REQUESTS[fn];
  const payers = await Promise.all(Array.from({ length: users }, newPayer));
  const failures = new Map<string, number>();
  let slowestMilliseconds = 0;
  let stopping = false;

  const payOnce = async (payer: Payer): Promise<void> => {
    const headers = {
      authorization: `Bearer ${payer.token}`,
      "idempotency-key": randomUUID(),
      ...(body && { "content-type": "application/json" }),
    };
    for (;;) {
      const began = performance.now();
      const outcome = await fetch(BASE_URL + path, {
        method: "POST",
        headers,
        ...(body && { body: JSON.stringify(body) }),
      }).then(
        async (answer) => `${answer.status}${answer.ok ? "" : ` ${(await answer.text()).trim().slice(0, 120)}`}`,
        (error: Error) => `${error.message}: ${(error.cause as Error | undefined)?.message}`,
      );
      slowestMilliseconds = Math.max(slowestMilliseconds, performance.now() - began);
      if (outcome.startsWith("2")) break;
      failures.set(outcome, (failures.get(outcome) ?? 0) + 1);
      await delay(200);
    }
    payer.payments += 1;
    payer.paid += price;
  };
  const working = payers.map(async (payer) => {
    while (!stopping) await payOnce(payer);
  });
  return {
    async stop() {
      stopping = true;
      await Promise.all(working);
      const payments = payers.reduce((sum, payer) => sum + payer.payments, 0);
      return { payments, failures, slowestMilliseconds, difference: await settle(databaseUrl, payers) };
    },
  };
}

/** The result in a line, for people. */
export function describeLoad({ payments, failures, slowestMilliseconds }: LoadResult): string {
  const failed = [...failures].map(([what, count]) => `${count} × ${what}`);
  return `${payments} payments, slowest ${slowestMilliseconds.toFixed(0)} ms, ${failed.length === 0 ? "no request failed" : `failed: ${failed.join("; ")}`}`;
}
