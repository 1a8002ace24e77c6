/** Recomputes the ledger from its transfers: every chain, every balance, the total, and every order's charge. */
import type { Client } from "pg";

interface Check {
  /** The name of the check in the report. */
  readonly name: string;
  /** Gives one row, `difference`, for what does not hold; none when all is well. */
  readonly sql: string;
}

const CHECKS: readonly Check[] = [
  {
    name: "all balances add up to 0",
    sql: `select format('the sum of all balances is %s', sum(balance)) as difference from billing.accounts having sum(balance) <> 0`,
  },
  {
    name: "each account's entries are numbered without a gap",
    sql: `select format('account %s: %s entries, the last number is %s, the account says %s', a.id, count(e.*), max(e.number), a.entries) as difference
      from billing.accounts a left join billing.entries e on e.account_id = a.id
      group by a.id having count(e.*) <> a.entries or coalesce(max(e.number), 0) <> a.entries limit 1`,
  },
  {
    name: "each entry's hash follows from its columns, its transfer and the hash before it",
    sql: `select format('account %s, entry %s: the hash is not that of its columns', x.account_id, x.number) as difference
      from (select e.*, t.kind, t.debit_account, t.credit_account, t.reference, t.created_at,
          coalesce(lag(e.hash) over (partition by e.account_id order by e.number), '') as previous
        from billing.entries e left join billing.transfers t on t.id = e.transfer_id) x
      where x.hash <> billing.entry_hash(x.previous, x.account_id, x.number, x.transfer_id, x.kind, x.debit_account,
        x.credit_account, x.amount, x.balance_after, x.reference, x.created_at) limit 1`,
  },
  {
    name: "each balance after an entry is the one before it, plus the amount",
    sql: `select format('account %s, entry %s: the balance after it is %s, it should be %s', account_id, number, balance_after, expected) as difference
      from (select e.account_id, e.number, e.balance_after, sum(e.amount) over (partition by e.account_id order by e.number) as expected
        from billing.entries e) x where balance_after <> expected limit 1`,
  },
  {
    name: "each account contains the sum of its entries, and its chain ends in its hash",
    sql: `select format('account %s contains %s, its entries make %s', a.id, a.balance, coalesce(e.total, 0)) as difference
      from billing.accounts a
      left join (select e.account_id, sum(e.amount) as total, (array_agg(e.hash order by e.number desc))[1] as hash
        from billing.entries e group by e.account_id) e on e.account_id = a.id
      where a.kind = 'user' and (a.balance <> coalesce(e.total, 0) or a.last_hash <> coalesce(e.hash, '')) limit 1`,
  },
  {
    name: "debits and credits belong to the accounts that the kind of transfer names",
    sql: `select format('transfer %s: a %s from %s to %s', t.id, t.kind, d.kind, c.kind) as difference
      from billing.transfers t
      left join billing.accounts d on d.id = t.debit_account left join billing.accounts c on c.id = t.credit_account
      where (t.kind, d.kind, c.kind) not in (('deposit', 'cash-in', 'user'), ('withdrawal', 'user', 'cash-out'),
          ('charge', 'user', 'revenue'), ('refund', 'revenue', 'user'), ('transfer', 'user', 'user'))
        or d.kind is null or c.kind is null limit 1`,
  },
  {
    name: "each side of a transfer is an entry of its amount, except for the system's accounts",
    sql: `select format('transfer %s, account %s: the entry is %s, it should be %s', coalesce(s.id, e.transfer_id), coalesce(s.account_id, e.account_id), e.amount, s.amount) as difference
      from (select t.id, t.debit_account as account_id, -t.amount as amount from billing.transfers t
          union all select t.id, t.credit_account, t.amount from billing.transfers t) s
      full join billing.entries e on e.transfer_id = s.id and e.account_id = s.account_id
      left join billing.accounts a on a.id = s.account_id and a.kind <> 'user'
      where e.amount is distinct from case when a.id is null then s.amount end limit 1`,
  },
  {
    name: "each system account contains the sum of its transfers",
    sql: `select format('account %s (%s) contains %s, its transfers make %s', a.id, a.kind, a.balance, coalesce(s.amount, 0)) as difference
      from billing.accounts a left join (
        select account_id, sum(amount) as amount from (
          select debit_account as account_id, -amount as amount from billing.transfers
          union all select credit_account, amount from billing.transfers) x group by account_id) s on s.account_id = a.id
      where a.kind <> 'user' and a.balance <> coalesce(s.amount, 0) limit 1`,
  },
  {
    name: "a paid order has one charge of its price and its user, a refunded one a refund as well, and no charge or refund lacks an order",
    sql: `select format('order %s (%s, %s, user %s): its charge is %s of account %s, its refund %s to account %s', coalesce(o.id, c.reference, r.reference),
        o.status, o.price, o.user_id, c.amount, c.debit_account, r.amount, r.credit_account) as difference
      from "order".orders o
      full join (select * from billing.transfers where kind = 'charge') c on c.reference = o.id
      full join (select * from billing.transfers where kind = 'refund') r on r.reference = coalesce(o.id, c.reference)
      where o.id is null
        or (c.amount, c.debit_account) is distinct from
          (case when o.status <> 'refused' then o.price end, case when o.status <> 'refused' then o.user_id end)
        or (r.amount, r.credit_account) is distinct from
          (case when o.status = 'refunded' then o.price end, case when o.status = 'refunded' then o.user_id end)
      limit 1`,
  },
  {
    name: "each user has an account, or an event on its way that opens it",
    sql: `select format('user %s has no account, and no event will open one', u.id) as difference
      from profile.users u left join billing.accounts a on a.id = u.id
      where a.id is null and not exists (select from events.outbox o where o.subject = u.id::text and o.topic = 'user-registered')
      limit 1`,
  },
];

/** A copy of a seal that was kept outside the database. */
export interface Seal {
  /** The moment, as the log and the event of the seal name it. */
  readonly moment: string;
  /** SHA-256 in hexadecimal digits. */
  readonly hash: string;
}

/** Recomputes the seals up to a moment from the rows that they cover, in their order. Gives the hash of the last one. */
const RECOMPUTED_SEAL = `
  with recursive covered as (
    select s.moment, null::uuid as account_id, null::bigint as number, null::bytea as hash
      from billing.seals s where s.sealed_at is not null and s.moment <= $1
    union all
    select e.moment, e.account_id, e.number, e.hash from billing.sealed_entries e
      join billing.seals s on s.moment = e.moment and s.sealed_at is not null where e.moment <= $1
  ), steps as (
    select c.*, row_number() over (order by c.moment, c.account_id nulls first) as place from covered c
  ), states as (
    select 0::bigint as place, ''::bytea as state
    union all
    select t.place, case when t.account_id is null then billing.seal_start(previous.state, t.moment)
      else billing.seal_hash(previous.state, t.account_id, t.number, t.hash) end
    from states previous join steps t on t.place = previous.place + 1
  )
  select encode(state, 'hex') as hash from states order by place desc limit 1`;

const SEALED_ENTRY_CHANGED = `
  select format('account %s, entry %s: the entry is %s', s.account_id, s.number,
    case when e.hash is null then 'gone' else 'not the one that was sealed' end) as difference
  from billing.sealed_entries s left join billing.entries e on e.account_id = s.account_id and e.number = s.number
  where s.moment <= $1 and e.hash is distinct from s.hash order by s.moment desc limit 1`;

/** Compares the ledger with a seal. @returns the first difference as a sentence */
async function compareWithSeal(client: Client, { moment, hash }: Seal): Promise<string | undefined> {
  const seals = await client.query("select from billing.seals where moment = $1 and sealed_at is not null", [moment]);
  if (seals.rowCount === 0) return `The database has no seal of ${moment}.`;
  const recomputed = await client.query<{ hash: string }>(RECOMPUTED_SEAL, [moment]);
  if (recomputed.rows[0]?.hash !== hash.toLowerCase())
    return `The seal of ${moment} is ${recomputed.rows[0]?.hash} in the database, not ${hash}: the seal or the entries that it covers were changed.`;
  const { rows } = await client.query<{ difference: string }>(SEALED_ENTRY_CHANGED, [moment]);
  return rows[0] && `The ledger does not match the seal of ${moment}: ${rows[0].difference}.`;
}

/** Selects the checks. */
export interface VerifyOptions {
  /** Compares the sum of all balances only. */
  readonly quick?: boolean;
  readonly seals?: readonly Seal[];
  /** Receives the name of each check that succeeded. */
  readonly report?: (name: string) => void;
}

/**
 * Verifies the ledger in one snapshot.
 * @returns the first difference as a sentence; undefined when the ledger is right
 */
export async function verifyLedger(
  client: Client,
  { quick = false, seals = [], report = () => undefined }: VerifyOptions = {},
): Promise<string | undefined> {
  await client.query("begin isolation level repeatable read read only");
  try {
    for (const { name, sql } of quick ? CHECKS.slice(0, 1) : CHECKS) {
      const { rows } = await client.query<{ difference: string }>(sql);
      if (rows[0] !== undefined) return `It does not hold that ${name}: ${rows[0].difference} (in minor units).`;
      report(name);
    }
    for (const seal of seals) {
      const difference = await compareWithSeal(client, seal);
      if (difference !== undefined) return difference;
      report(`the ledger matches the seal of ${seal.moment}`);
    }
    return undefined;
  } finally {
    await client.query("rollback");
  }
}
