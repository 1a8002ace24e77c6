/** The runbook "Restore to a point in time" of docs/operations.md, against a real Kafka and a real Postgres. */
import { randomUUID } from "node:crypto";
import { cp, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Client } from "pg";
import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { rolesOf } from "../../database/roles.ts";
import type { Kafka } from "../../kafka/cluster.ts";
import { createTopics } from "../../kafka/topics.ts";
import { type Lotus, startLotus } from "../../local/lotus.ts";
import { attempt } from "../../process/run.ts";
import { PROGRAM } from "../../project/paths.ts";
import { asAdmin, canStartKafka, endOf, startTestKafka } from "../kafka.ts";
import { call, eventually, newUser, relayNow, settled } from "../lotus.ts";

const PREFIX = "restored.";
const name = `restore_${randomUUID().replaceAll("-", "")}`;
const snapshot = `${name}_snapshot`;

describe.skipIf(!canStartKafka)("a restore to a point in time", () => {
  let kafka: Kafka;
  let server: Client;
  let folder: string;
  let url: string;
  beforeAll(async () => {
    kafka = await startTestKafka();
    const base = inject("templateUrl").replace(/\/lotus$/, "");
    url = `${base}/${name}`;
    server = new Client({ connectionString: `${base}/postgres` });
    await server.connect();
    await server.query(`create database ${name} template lotus`);
    folder = await mkdtemp(join(tmpdir(), "lotus-restore-"));
    await cp(inject("secrets"), join(folder, "secrets"), { recursive: true });
  });
  afterAll(async () => {
    for (const database of [name, snapshot]) await server?.query(`drop database if exists ${database} with (force)`);
    await server?.query(`drop role if exists ${[...rolesOf(name).values()].join(", ")}`);
    await server?.end();
    await kafka?.stop();
    await rm(folder, { recursive: true, force: true });
  });

  /** Runs Lotus during the work. Without `deliver` the events stay in the outbox and in Kafka. */
  async function withLotus<T>(
    deliver: boolean,
    work: (lotus: Lotus & { readonly database: Client }) => Promise<T>,
  ): Promise<T> {
    const options = { port: 0, folder, databaseUrl: url, built: true, kafka, kafkaPrefix: PREFIX };
    const lotus = await startLotus({ ...options, deliver, scheduled: false });
    const database = new Client({ connectionString: url });
    await database.connect();
    try {
      return await work({ ...lotus, database });
    } finally {
      await database.end();
      await lotus.stop();
      await eventually("all connections are closed", async () => {
        const { rowCount } = await server.query("select from pg_stat_activity where datname = $1", [name]);
        return rowCount === 0;
      });
    }
  }

  it("keeps every payment before it, forgets every event after it, and matches the last seal", async () => {
    const ada = await withLotus(true, async (lotus) => {
      const user = await newUser(lotus, 100);
      await settled(lotus);
      return user;
    });
    const seal = await withLotus(false, async (lotus) => {
      const paid = await call(lotus, "POST /order/pay?idSubscription=1", { token: ada.token });
      expect(paid.status).toBe(200);
      await lotus.tick("billing-seal");
      const { rows } = await lotus.database.query<{ moment: string; hash: string }>(
        `select to_char(moment at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as moment, encode(hash, 'hex') as hash
         from billing.seals order by moment desc limit 1`,
      );
      return `${rows[0]?.moment}=${rows[0]?.hash}`;
    });
    await server.query(`create database ${snapshot} template ${name}`);
    const later = await withLotus(false, async (lotus) => {
      const user = await newUser(lotus);
      expect((await call(lotus, "POST /order/pay?idSubscription=1", { token: ada.token })).status).toBe(200);
      await eventually("the events are in Kafka", async () => {
        const registered = await endOf(kafka.bootstrap, `${PREFIX}user-registered`);
        return registered === 2 && (await endOf(kafka.bootstrap, `${PREFIX}notification-requested`)) > 2;
      });
      return user;
    });

    // Step 3 of the runbook: the database.
    await server.query(`drop database ${name}`);
    await server.query(`alter database ${snapshot} rename to ${name}`);
    // Step 4: topics and consumer groups.
    await asAdmin(kafka.bootstrap, async (admin) => {
      const groups = (await admin.listGroups()).groups.map(({ groupId }) => groupId);
      await admin.deleteGroups(groups.filter((group) => group.startsWith(PREFIX)));
      const topics = (await admin.listTopics()).filter((topic) => topic.startsWith(PREFIX));
      await admin.deleteTopics({ topics });
      await eventually(
        "the topics are deleted",
        async () => !(await admin.listTopics()).some((topic) => topic.startsWith(PREFIX)),
      );
    });
    await createTopics(kafka.bootstrap, { prefix: PREFIX });
    // Step 5: the ledger.
    const verified = await attempt(process.execPath, [PROGRAM, "verify-ledger", "--database", url, "--seal", seal]);
    expect(verified).toMatchObject({ code: 0, stdout: expect.stringMatching(/The ledger is right/) });

    // Step 6: the same program, and the relay publishes the outbox.
    await withLotus(true, async (lotus) => {
      await relayNow(lotus);
      await settled(lotus);
      const { rows } = await lotus.database.query<{ user_id: string; count: number }>(
        `select user_id, count(*)::int as count from notification.notifications
         where message like '%paid%' or message like '%order%' group by user_id`,
      );
      expect(rows).toEqual([{ user_id: ada.id, count: 1 }]);
      const balance = await call(lotus, "GET /billing/balance", { token: ada.token });
      expect(balance.body).toMatchObject({ balance: 90 });
      const login = await call(lotus, "POST /profile/login", {
        body: { email: later.email, password: later.password },
      });
      expect(login.status).toBe(401);
      expect((await lotus.database.query("select reason from events.dead_letters")).rows).toEqual([]);
    });
  });
});
