import { once } from "node:events";
import { Client, escapeIdentifier } from "pg";
import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { killFunction, newUser, settled, startTestLotus, type TestLotus, type TestUser } from "../testing/lotus.ts";
import { databaseOf, readPasswords, roleUrl } from "./roles.ts";
import { SERVICES } from "./sql.ts";

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

/** A setting of the database, and the value that each role has instead. */
const SETTINGS = [
  ["datestyle", "SQL, DMY", "ISO, MDY"],
  ["intervalstyle", "iso_8601", "postgres"],
  ["timezone", "Asia/Kolkata", "UTC"],
  ["bytea_output", "escape", "hex"],
  ["default_transaction_isolation", "repeatable read", "read committed"],
  ["lock_timeout", "1ms", "1s"],
  ["statement_timeout", "1ms", "10s"],
  ["search_path", "nowhere", "pg_catalog"],
] as const;

describe("a session", () => {
  it("of each role has the settings of the role, whatever the database says", async () => {
    const database = escapeIdentifier(databaseOf(lotus.adminUrl));
    const passwords = await readPasswords(inject("secrets"));
    for (const [name, value] of SETTINGS)
      await lotus.database.query(`alter database ${database} set ${name} = '${value}'`);
    try {
      for (const service of SERVICES) {
        const url = Object.assign(new URL(roleUrl(lotus.adminUrl, service)), { password: passwords[service] });
        const role = new Client({ connectionString: url.href });
        await role.connect();
        const { rows } = await role.query<{ name: string; value: string }>(
          "select name, current_setting(name) as value from unnest($1::text[]) name",
          [SETTINGS.map(([name]) => name)],
        );
        await role.end();
        expect([service, rows.map(({ name, value }) => [name, value])]).toEqual([
          service,
          SETTINGS.map(([name, , ofRole]) => [name, ofRole]),
        ]);
      }
    } finally {
      await lotus.database.query(`alter database ${database} reset all`);
    }
  });
});

describe("a setting of the database does not change an answer:", () => {
  it.each(SETTINGS)("%s = '%s'", async (name, value) => {
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
