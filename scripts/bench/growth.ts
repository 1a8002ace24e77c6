/** Requests against a large database, beside the same requests against an empty one. */
import type { BenchOptions } from "./flags.ts";
import type { LoadRequest } from "./programs/load.ts";
import type { Figure } from "./report.ts";
import { alternate, type Database, payments, startFunction, type User, type World, withWorld } from "./world.ts";

export const about =
  "1 000 000 ledger entries, 100 000 notifications of one user, 100 000 outbox rows, beside empty tables";

const USERS = 500;
const ENTRIES = 1_000_000;
const NOTIFICATIONS = 100_000;
const OUTBOX_ROWS = 100_000;
const CONNECTIONS = 16;
const RATIO_MIN = 0.95;

/** Writes entries of the past for existing accounts. Their hashes are random: only their number matters here. */
async function fillLedger({ admin }: Database): Promise<void> {
  await admin.query(`alter table billing.entries disable trigger user`);
  await admin.query(
    `insert into billing.transfers (id, kind, debit_account, credit_account, amount, reference, created_at)
     select id, 'deposit', '00000000-0000-0000-0001-000000000001', gen_random_uuid(), 100, id, now() - n * interval '1 second'
     from (select gen_random_uuid() as id, n from generate_series(1, $1::integer) n) t`,
    [ENTRIES],
  );
  await admin.query(`
    insert into billing.entries (account_id, number, transfer_id, amount, balance_after, hash)
    select credit_account, 1, id, amount, amount, sha256(uuid_send(id)) from billing.transfers where amount = 100`);
  await admin.query("alter table billing.entries enable trigger user");
  await admin.query("vacuum analyze billing.transfers, billing.entries");
}

async function fillNotifications({ admin }: Database, { id, email }: User): Promise<void> {
  await admin.query(
    `insert into notification.notifications (id, user_id, email, message, created_at)
     select gen_random_uuid(), $1, $2, 'number ' || n, now() - n * interval '1 second' from generate_series(1, $3::integer) n`,
    [id, email, NOTIFICATIONS],
  );
  await admin.query("vacuum analyze notification.notifications");
}

async function fillOutbox({ admin }: Database): Promise<void> {
  await admin.query(
    `insert into events.outbox (id, topic, type, source, subject, time, data, awaiting)
     select gen_random_uuid(), 'notification-requested', 'lotus.notification-requested.v1', '/lotus/order-pay',
       gen_random_uuid(), now(), '{}', '{notification-store}' from generate_series(1, $1::integer) n`,
    [OUTBOX_ROWS],
  );
  await admin.query("vacuum analyze events.outbox");
}

interface Case {
  readonly what: string;
  readonly name: string;
  readonly requestsOf: (users: readonly User[]) => LoadRequest[];
  readonly fill: (database: Database, users: readonly User[]) => Promise<void>;
}

const listNotifications = ([user]: readonly User[]): LoadRequest[] =>
  user === undefined ? [] : [{ method: "GET", path: "/notification?limit=20", token: user.token }];

const CASES: readonly Case[] = [
  { what: "payments/s with 1 000 000 entries", name: "order-pay", requestsOf: payments, fill: fillLedger },
  { what: "payments/s with 100 000 outbox rows", name: "order-pay", requestsOf: payments, fill: fillOutbox },
  {
    what: "GET /notification/s of a user with 100 000",
    name: "notification",
    requestsOf: listNotifications,
    fill: async (database, [user]) => {
      if (user !== undefined) await fillNotifications(database, user);
    },
  },
];

async function compare(world: World, { node, rounds, seconds }: BenchOptions, one: Case): Promise<Figure> {
  const sides = [];
  for (const isFull of [true, false]) {
    const database = await world.database();
    const users = await database.users(USERS);
    // A page of the same length, with a next page, on both sides.
    for (const user of users.slice(0, 1))
      await database.admin.query(
        `insert into notification.notifications (id, user_id, email, message, created_at)
         select gen_random_uuid(), $1, $2, 'number ' || n, now() from generate_series(1, 40) n`,
        [user.id, user.email],
      );
    if (isFull) await one.fill(database, users);
    const side = await startFunction(database, one.name, node);
    const requests = one.requestsOf(users);
    sides.push({
      side,
      measure: async () => (await world.load(side, { connections: CONNECTIONS, seconds, requests })).perSecond,
    });
  }
  const [full = [], empty = []] = await alternate(
    rounds,
    sides.map(({ measure }) => measure),
  );
  await Promise.all(sides.map(({ side }) => side.stop()));
  return { what: `${one.what}; floor: empty`, lotus: full, floor: empty, targets: [{ of: "floor", min: RATIO_MIN }] };
}

export default async function growth(options: BenchOptions): Promise<Figure[]> {
  return withWorld(async (world) => {
    const figures: Figure[] = [];
    for (const one of CASES) figures.push(await compare(world, options, one));
    return figures;
  });
}
