import { once } from "node:events";
import { escapeIdentifier } from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { killFunction, newUser, settled, startTestLotus, type TestLotus, type TestUser } from "../testing/lotus.ts";
import { databaseOf } from "./roles.ts";

const PATHS = [
  "/profile/me",
  "/order/list",
  "/order/subscriptions",
  "/billing/history",
  "/billing/balance",
  "/notification",
];

let lotus: TestLotus;
let user: TestUser;
beforeAll(async () => {
  lotus = await startTestLotus();
  user = await newUser(lotus, 100);
  await user.call("POST /order/pay?idSubscription=1");
  await settled(lotus);
});
afterAll(() => lotus.stop());

async function answers(): Promise<[path: string, status: number, body: unknown][]> {
  const read: [string, number, unknown][] = [];
  for (const path of PATHS) {
    const { status, body } = await user.call(`GET ${path}`);
    read.push([path, status, body]);
  }
  return read;
}

/** Ends all functions: the next call opens a new session. */
async function endFunctions(): Promise<void> {
  for (const [name, { running }] of lotus.functions) {
    if (running === undefined) continue;
    const ended = once(running.child, "exit");
    killFunction(lotus, name);
    await ended;
  }
}

describe("a setting of the database does not change an answer:", () => {
  it.each([
    ["datestyle", "SQL, DMY"],
    ["intervalstyle", "iso_8601"],
    ["timezone", "Asia/Kolkata"],
    ["bytea_output", "escape"],
    ["default_transaction_isolation", "repeatable read"],
    ["lock_timeout", "1ms"],
    ["statement_timeout", "1ms"],
    ["search_path", "nowhere"],
  ])("%s = '%s'", async (name, value) => {
    const before = await answers();
    expect(before.map(([, status]) => status)).toEqual(PATHS.map(() => 200));
    const database = escapeIdentifier(databaseOf(lotus.adminUrl));
    await lotus.database.query(`alter database ${database} set ${name} = '${value}'`);
    await endFunctions();
    try {
      expect(await answers()).toEqual(before);
      const payer = await newUser(lotus, 100);
      const paid = await Promise.all(Array.from({ length: 12 }, () => payer.call("POST /billing/add-money?money=1")));
      expect(paid.map(({ status }) => status)).toEqual(paid.map(() => 200));
    } finally {
      await lotus.database.query(`alter database ${database} reset ${name}`);
      await endFunctions();
    }
  });
});
