import { Client } from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { eventually, newUser, startTestLotus, type TestLotus, type TestUser } from "../testing/lotus.ts";
import { migrateSchemas } from "./migration-runner.ts";
import { databaseOf, rolesOf } from "./roles.ts";
import { readSqlFiles, type SqlFile } from "./sql.ts";

/** Calls of each endpoint before the migration, so that its process has prepared its statements. */
const CALLS_BEFORE = 3;
const REQUESTS = [
  "POST /order/pay?idSubscription=1",
  "POST /billing/add-money?money=20",
  "POST /billing/withdraw-money?money=1",
  "GET /order/list",
  "GET /order/subscriptions",
  "GET /billing/history",
  "GET /billing/balance",
  "GET /notification",
  "GET /profile/me",
];

let lotus: TestLotus;
let owner: Client;
let users: TestUser[];
beforeAll(async () => {
  lotus = await startTestLotus();
  owner = new Client({ connectionString: lotus.adminUrl });
  await owner.connect();
  users = await Promise.all(REQUESTS.map(() => newUser(lotus, 1000)));
});
afterAll(async () => {
  await owner.end();
  await lotus.stop();
});

const migration = (service: string, text: string): SqlFile => ({
  service,
  name: `${service}/900-later`,
  path: `functions/${service}/schema/900-later.sql`,
  text,
  transaction: true,
});

describe("a migration beside running functions", () => {
  it("does not wait for a transaction that moves money when only functions change", async () => {
    const mover = new Client({ connectionString: lotus.adminUrl });
    await mover.connect();
    await mover.query("begin");
    await mover.query("update billing.accounts set balance = balance where id = $1", [users[0]?.id]);
    await mover.query("delete from billing.entries where false");
    const name = databaseOf(lotus.adminUrl);
    const { migrations, functions } = await readSqlFiles(rolesOf(name));
    const applied = await migrateSchemas(owner, name, rolesOf(name), {
      migrations,
      functions: functions.map((file) => ({ ...file, text: `${file.text}\n-- changed alone` })),
    });
    await mover.query("rollback");
    await mover.end();
    expect(applied).toContain("billing/functions");
  });

  it("causes no answer of 5xx: new columns, changed types, and every function replaced", async () => {
    const failures: string[] = [];
    const answered = REQUESTS.map(() => 0);
    let migrated = false;
    const loads = REQUESTS.map(async (request, index) => {
      let afterwards = 0;
      while (afterwards < CALLS_BEFORE) {
        if (migrated) afterwards++;
        const { status, body } = await (users[index] as TestUser).call(request);
        if (status >= 500) failures.push(`${request}: ${status} ${JSON.stringify(body)}`);
        answered[index] = (answered[index] ?? 0) + 1;
      }
    });
    await eventually("each endpoint has answered", () => answered.every((count) => count >= CALLS_BEFORE));
    const name = databaseOf(lotus.adminUrl);
    const files = await readSqlFiles(rolesOf(name));
    const applied = await migrateSchemas(owner, name, rolesOf(name), {
      migrations: [
        ...files.migrations,
        migration(
          "billing",
          "alter table billing.transfers add note text; alter table billing.accounts add note text;",
        ),
        migration(
          "events",
          "alter table events.outbox add note text; alter table events.idempotency_keys add note text;",
        ),
        migration("notification", "alter table notification.notifications alter message type varchar;"),
        migration(
          "order",
          'alter table "order".orders alter subscription_id type bigint; alter table "order".subscriptions alter name type varchar;',
        ),
        migration("profile", "alter table profile.users alter username type varchar;"),
      ],
      functions: files.functions.map((file) => ({ ...file, text: `${file.text}\n-- changed` })),
    }).finally(() => {
      migrated = true;
    });
    await Promise.all(loads);
    expect(applied).toHaveLength(10);
    expect(failures).toEqual([]);
  }, 60_000);
});
