/**
 * Recomputes the ledger from its transfers in chunks. Each chunk reads one short snapshot, so a verification beside payments finds
 * no false difference and delays no vacuum: entries, transfers and the price of an order never change after their commit.
 */
import type { Client } from "pg";

/** Rows of one chunk: entries, transfers, orders or users. */
const CHUNK_ROWS = 20_000;
/** Accounts of one chunk. */
const CHUNK_ACCOUNTS = 5_000;
const LAST_ID = "ffffffff-ffff-ffff-ffff-ffffffffffff";

/** The checks, in the words of the report. */
const CHECKS = {
  trialBalance: "all balances add up to 0",
  contiguous: "each account's entries are numbered without a gap",
  hashes: "each entry's hash follows from its columns, its transfer and the hash before it",
  balances: "each balance after an entry is the one before it, plus the amount",
  ends: "each account contains the sum of its entries, and its chain ends in its hash",
  kinds: "debits and credits belong to the accounts that the kind of transfer names",
  sides: "each side of a transfer is an entry of its amount, except for the system's accounts",
  system: "each system account contains the sum of its transfers",
  orders:
    "a paid order has one charge of its price and its user, a refunded one a refund as well, and no charge or refund lacks an order",
  users: "each user has an account, or an event on its way that opens it",
} as const;
type Check = keyof typeof CHECKS;

/** The first difference, as a sentence. */
class Difference extends Error {}

interface Found {
  readonly check: Check;
  readonly difference: string;
}

function refuse(found: Found | undefined): void {
  if (found === undefined) return;
  throw new Difference(`It does not hold that ${CHECKS[found.check]}: ${found.difference} (in minor units).`);
}

/**
 * Runs one query in one snapshot. The plan uses indexes only: the planner prefers to read whole tables for a chunk of them.
 * @param wholeTables the query reads whole tables
 */
async function read<Row extends object>(
  client: Client,
  sql: string,
  values: unknown[],
  wholeTables = false,
): Promise<Row[]> {
  const plan = wholeTables
    ? ""
    : "set local enable_seqscan = off; set local enable_hashjoin = off; set local enable_mergejoin = off";
  await client.query(`begin isolation level repeatable read read only; set local jit = off; ${plan}`);
  try {
    return (await client.query<Row>(sql, values)).rows;
  } finally {
    await client.query("rollback");
  }
}

const TRIAL_BALANCE = `
  select 'trialBalance' as check, format('the sum of all balances is %s', sum(balance)) as difference
  from billing.accounts having sum(balance) <> 0`;

/**
 * The next accounts of users, and their differences from their last entry and the number of their entries in the same snapshot.
 * $1: the account before. $2: accounts at most. $3: entries at most, unless the first account has more.
 */
const ACCOUNTS = `
  with listed as materialized (
    select a.id, a.balance, a.entries, a.last_hash from billing.accounts a
    where a.kind = 'user' and (a.id > $1 or $1::uuid is null) order by a.id limit $2
  ), page as materialized (
    select * from (select l.*, sum(l.entries) over (order by l.id) as total from listed l) l where l.total <= $3 or l.total = l.entries
  ), range as (
    select case when (select count(*) from page) < $2 and (select count(*) from page) = (select count(*) from listed)
      then '${LAST_ID}'::uuid else (select max_id.id from (select id from page order by id desc limit 1) max_id) end as upto
  ), counted as materialized (
    select e.account_id, count(*) as entries, max(e.number) as number
    from billing.entries e where (e.account_id > $1 or $1::uuid is null) and e.account_id <= (select upto from range) group by e.account_id
  ), found as (
    select coalesce(p.id, c.account_id) as id, case
      when p.id is null then jsonb_build_object('check', 'contiguous', 'difference',
        format('account %s: %s entries, but the account belongs to no user', c.account_id, c.entries))
      when coalesce(c.entries, 0) <> p.entries or coalesce(c.number, 0) <> p.entries then jsonb_build_object('check', 'contiguous', 'difference',
        format('account %s: %s entries, the last number is %s, the account says %s', p.id, coalesce(c.entries, 0), c.number, p.entries))
      when p.balance <> coalesce(e.balance_after, 0) then jsonb_build_object('check', 'ends', 'difference',
        format('account %s contains %s, its entries make %s', p.id, p.balance, coalesce(e.balance_after, 0)))
      when p.last_hash <> coalesce(e.hash, '') then jsonb_build_object('check', 'ends', 'difference',
        format('account %s contains another hash than its last entry', p.id))
      end as difference
    from page p full join counted c on c.account_id = p.id
    left join billing.entries e on e.account_id = p.id and e.number = p.entries
  )
  select (select upto from range) as upto,
    (select array_agg(p.id order by p.id) from page p where p.entries > 0) as ids,
    (select array_agg(p.entries order by p.id) from page p where p.entries > 0) as entries,
    (select f.difference from found f where f.difference is not null order by f.id limit 1) as difference`;

interface AccountsPage {
  /** The last account that the page covers. */
  readonly upto: string;
  readonly ids: string[] | null;
  readonly entries: string[] | null;
  readonly difference: Found | null;
}

/** Entries $2 to $3 of the accounts $1, each with the entry before it and its transfer. */
const ENTRIES = `
  with chained as materialized (
    select e.*, lag(e.hash, 1, '') over w as previous_hash, lag(e.balance_after, 1, 0::bigint) over w as previous_balance, b.first
    from unnest($1::uuid[], $2::bigint[], $3::bigint[]) b (account_id, first, last)
    join billing.entries e on e.account_id = b.account_id and e.number between b.first - 1 and b.last
    window w as (partition by e.account_id order by e.number)
  ), found as (
    select x.account_id, x.number, case
      when x.hash is distinct from billing.entry_hash(x.previous_hash, x.account_id, x.number, x.transfer_id, t.kind, t.debit_account,
        t.credit_account, x.amount, x.balance_after, t.reference, t.created_at) then 1
      when x.balance_after <> x.previous_balance + x.amount then 2
      when x.amount is distinct from case x.account_id when t.debit_account then -t.amount when t.credit_account then t.amount end then 3
      end as place, x.balance_after, x.previous_balance, x.amount, x.transfer_id,
      case x.account_id when t.debit_account then -t.amount when t.credit_account then t.amount end as expected
    from chained x left join billing.transfers t on t.id = x.transfer_id where x.number >= x.first
  )
  select (array['hashes', 'balances', 'sides'])[place] as check, case place
    when 1 then format('account %s, entry %s: the hash is not that of its columns', account_id, number)
    when 2 then format('account %s, entry %s: the balance after it is %s, it should be %s', account_id, number, balance_after, previous_balance + amount)
    else format('transfer %s, account %s: the entry is %s, it should be %s', transfer_id, account_id, amount, expected) end as difference
  from found where place is not null order by account_id, number, place limit 1`;

/** Transfers after $1, at most $2: the kinds of their accounts, and an entry for each account of a user. */
const TRANSFERS = `
  with page as materialized (select * from billing.transfers t where (t.id > $1 or $1::uuid is null) order by t.id limit $2), found as (
    select p.id, case
      when d.kind is null or c.kind is null or (p.kind, d.kind, c.kind) not in (('deposit', 'cash-in', 'user'),
        ('withdrawal', 'user', 'cash-out'), ('charge', 'user', 'revenue'), ('refund', 'revenue', 'user'), ('transfer', 'user', 'user'))
        then jsonb_build_object('check', 'kinds', 'difference', format('transfer %s: a %s from %s to %s', p.id, p.kind, d.kind, c.kind))
      when d.kind = 'user' and debit.amount is distinct from -p.amount then jsonb_build_object('check', 'sides', 'difference',
        format('transfer %s, account %s: the entry is %s, it should be %s', p.id, p.debit_account, debit.amount, -p.amount))
      when c.kind = 'user' and credit.amount is distinct from p.amount then jsonb_build_object('check', 'sides', 'difference',
        format('transfer %s, account %s: the entry is %s, it should be %s', p.id, p.credit_account, credit.amount, p.amount))
      end as difference
    from page p
    left join billing.accounts d on d.id = p.debit_account left join billing.accounts c on c.id = p.credit_account
    left join billing.entries debit on debit.transfer_id = p.id and debit.account_id = p.debit_account
    left join billing.entries credit on credit.transfer_id = p.id and credit.account_id = p.credit_account
  )
  select (select p.id from page p order by p.id offset $2 - 1) as upto,
    (select f.difference from found f where f.difference is not null order by f.id limit 1) as difference`;

/** The balances of system accounts change with each payment, so this check reads all transfers in one snapshot. */
const SYSTEM_ACCOUNTS = `
  select 'system' as check, format('account %s (%s) contains %s, its transfers make %s', a.id, a.kind, a.balance, coalesce(s.amount, 0)) as difference
  from billing.accounts a left join (
    select account_id, sum(amount) as amount from (
      select debit_account as account_id, -sum(amount) as amount from billing.transfers where kind in ('deposit', 'refund') group by 1
      union all select credit_account, sum(amount) from billing.transfers where kind in ('withdrawal', 'charge') group by 1) x
    group by account_id) s on s.account_id = a.id
  where a.kind <> 'user' and a.balance <> coalesce(s.amount, 0) order by a.id limit 1`;

/** Orders after $1, at most $2, and the charges and refunds whose reference is in the same range. */
const ORDERS = `
  with upto as materialized (
    select (select o.id from "order".orders o where (o.id > $1 or $1::uuid is null) order by o.id offset $2 - 1 limit 1) as id
  ), range as materialized (select coalesce(u.id, '${LAST_ID}') as last from upto u
  ), ids as (
    select o.id from "order".orders o, range r where (o.id > $1 or $1::uuid is null) and o.id <= r.last
    union select t.reference from billing.transfers t, range r
    where t.kind in ('charge', 'refund') and (t.reference > $1 or $1::uuid is null) and t.reference <= r.last
  ), found as (
    select i.id, jsonb_build_object('check', 'orders', 'difference', format('order %s (%s, %s, user %s): its charge is %s of account %s, its refund %s to account %s',
      i.id, o.status, o.price, o.user_id, c.amount, c.debit_account, r.amount, r.credit_account)) as difference
    from ids i left join "order".orders o on o.id = i.id
    left join billing.transfers c on c.kind = 'charge' and c.reference = i.id
    left join billing.transfers r on r.kind = 'refund' and r.reference = i.id
    where o.id is null
      or (c.amount, c.debit_account) is distinct from
        (case when o.status <> 'refused' then o.price end, case when o.status <> 'refused' then o.user_id end)
      or (r.amount, r.credit_account) is distinct from
        (case when o.status = 'refunded' then o.price end, case when o.status = 'refunded' then o.user_id end)
    order by i.id limit 1
  )
  select (select u.id from upto u) as upto, (select f.difference from found f) as difference`;

/** Users after $1, at most $2. */
const USERS = `
  with page as materialized (select u.id from profile.users u where (u.id > $1 or $1::uuid is null) order by u.id limit $2), found as (
    select jsonb_build_object('check', 'users', 'difference', format('user %s has no account, and no event will open one', p.id)) as difference
    from page p left join billing.accounts a on a.id = p.id
    where a.id is null and not exists (select from events.outbox o where o.subject = p.id::text and o.topic = 'user-registered')
    order by p.id limit 1
  )
  select (select p.id from page p order by p.id offset $2 - 1) as upto, (select f.difference from found f) as difference`;

/** The number of checks of a whole verification. */
export const CHECKS_COUNT = Object.keys(CHECKS).length;

/** A copy of a seal, kept outside the database. */
export interface Seal {
  /** The moment, as the log and the event of the seal name it. */
  readonly moment: string;
  /** SHA-256 in hexadecimal digits. */
  readonly hash: string;
}

/** The progress of a verification. */
export interface Progress {
  /** Entries that were verified, and all entries. */
  readonly entries: number;
  readonly of: number;
}

/** The options of a verification. */
export interface VerifyOptions {
  /** Compares the sum of all balances only. */
  readonly quick?: boolean;
  readonly seals?: readonly Seal[];
  /** Receives the name of each check that succeeded. */
  readonly report?: (name: string) => void;
  /** Is called after each chunk of entries. */
  readonly progress?: (progress: Progress) => void;
  /** Rows of one chunk; for tests. */
  readonly chunkRows?: number;
}

/** Verifies all accounts of users with their entries. */
async function verifyAccounts(
  client: Client,
  chunkRows: number,
  progress: (progress: Progress) => void,
): Promise<void> {
  const [sum] = await read<{ of: string }>(
    client,
    "select coalesce(sum(entries), 0) as of from billing.accounts",
    [],
    true,
  );
  const of = Number(sum?.of);
  let verified = 0;
  for (let after: string | null = null; after !== LAST_ID; ) {
    const [page]: AccountsPage[] = await read(client, ACCOUNTS, [
      after,
      Math.min(CHUNK_ACCOUNTS, chunkRows),
      chunkRows,
    ]);
    if (page === undefined) throw new Error("The page of accounts has no row.");
    refuse(page.difference ?? undefined);
    const ids = page.ids ?? [];
    const lasts = (page.entries ?? []).map(Number);
    // Only an account with more entries than a chunk needs more than one step. New entries have higher numbers.
    for (let first = 1; first <= Math.max(0, ...lasts); first += chunkRows) {
      const until = lasts.map((last) => Math.min(last, first + chunkRows - 1));
      refuse((await read<Found>(client, ENTRIES, [ids, ids.map(() => first), until]))[0]);
      verified += until.reduce((count, last) => count + last - first + 1, 0);
      progress({ entries: verified, of: Math.max(of, verified) });
    }
    after = page.upto;
  }
}

/** Verifies the rows of a table in the order of their ids. */
async function verifyRows(client: Client, sql: string, chunkRows: number): Promise<void> {
  let after: string | null = null;
  do {
    const [page]: { upto: string | null; difference: Found | null }[] = await read(client, sql, [after, chunkRows]);
    refuse(page?.difference ?? undefined);
    after = page?.upto ?? null;
  } while (after !== null);
}

/** Recomputes the seals up to a moment from the rows that they cover, and compares the last one and the rows. */
async function verifySeal(client: Client, { moment, hash }: Seal): Promise<void> {
  const seals = await read<{ moment: string; requested: boolean }>(
    client,
    `select to_char(s.moment at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as moment, s.moment = $1 as requested
     from billing.seals s where s.sealed_at is not null and s.moment <= $1 order by s.moment`,
    [moment],
  );
  if (seals.at(-1)?.requested !== true) throw new Difference(`The database has no seal of ${moment}.`);
  let state = "";
  for (const seal of seals) {
    const sql = "select encode(billing.recomputed_seal(decode($1, 'hex'), $2), 'hex') as state";
    state = (await read<{ state: string }>(client, sql, [state, seal.moment]))[0]?.state ?? "";
  }
  if (state !== hash.toLowerCase())
    throw new Difference(
      `The seal of ${moment} is ${state} in the database, not ${hash}: the seal or the entries that it covers were changed.`,
    );
  for (const seal of seals.toReversed()) {
    const [changed] = await read<{ difference: string }>(
      client,
      `select format('account %s, entry %s: the entry is %s', s.account_id, s.number,
         case when e.hash is null then 'gone' else 'not the one that was sealed' end) as difference
       from billing.sealed_entries s left join billing.entries e on e.account_id = s.account_id and e.number = s.number
       where s.moment = $1 and e.hash is distinct from s.hash order by s.account_id limit 1`,
      [seal.moment],
    );
    if (changed !== undefined)
      throw new Difference(`The ledger does not match the seal of ${moment}: ${changed.difference}.`);
  }
}

/**
 * Verifies the ledger, also beside payments.
 * @returns the first difference as a sentence; undefined when the ledger is right
 */
export async function verifyLedger(client: Client, options: VerifyOptions = {}): Promise<string | undefined> {
  const {
    quick = false,
    seals = [],
    report = () => undefined,
    progress = () => undefined,
    chunkRows = CHUNK_ROWS,
  } = options;
  const succeeded = (...checks: Check[]) => {
    for (const check of checks) report(CHECKS[check]);
  };
  try {
    refuse((await read<Found>(client, TRIAL_BALANCE, [], true))[0]);
    succeeded("trialBalance");
    if (!quick) {
      await verifyAccounts(client, chunkRows, progress);
      succeeded("contiguous", "hashes", "balances", "ends");
      await verifyRows(client, TRANSFERS, chunkRows);
      succeeded("kinds", "sides");
      refuse((await read<Found>(client, SYSTEM_ACCOUNTS, [], true))[0]);
      succeeded("system");
      await verifyRows(client, ORDERS, chunkRows);
      succeeded("orders");
      await verifyRows(client, USERS, chunkRows);
      succeeded("users");
    }
    for (const seal of seals) {
      await verifySeal(client, seal);
      report(`the ledger matches the seal of ${seal.moment}`);
    }
    return undefined;
  } catch (error) {
    if (error instanceof Difference) return error.message;
    throw error;
  }
}
