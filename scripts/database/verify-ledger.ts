/** Recomputes the ledger from its transfers: every chain, every balance, the total, and every order's charge. */
import type { Client } from "pg";

interface Check {
  /** What must hold, as the report names it. */
  readonly name: string;
  /** Gives one row, `difference`, for what does not hold; none when all is well. */
  readonly sql: string;
}

const SIGNED = "case t.kind when 'deposit' then t.amount else -t.amount end";

const CHECKS: readonly Check[] = [
  {
    name: "each account's transfers are numbered without a gap",
    sql: `select format('account %s: %s transfers, the last number is %s, the account says %s', a.id, count(t.*), max(t.number), a.transfers) as difference
      from billing.accounts a left join billing.transfers t on t.account_id = a.id where a.kind = 'user'
      group by a.id having count(t.*) <> a.transfers or coalesce(max(t.number), 0) <> a.transfers limit 1`,
  },
  {
    name: "each transfer's hash follows from its columns and the hash before it",
    sql: `select format('account %s, transfer %s: the hash is not that of its columns', x.account_id, x.number) as difference
      from (select t.*, t as row, coalesce(lag(t.hash) over (partition by t.account_id order by t.number), '') as previous
        from billing.transfers t) x
      where x.hash <> billing.transfer_hash(x.previous, x.row) limit 1`,
  },
  {
    name: "each balance after a transfer is the one before it, plus or minus the amount",
    sql: `select format('account %s, transfer %s: the balance after it is %s, it should be %s', account_id, number, balance_after, expected) as difference
      from (select t.account_id, t.number, t.balance_after, sum(${SIGNED}) over (partition by t.account_id order by t.number) as expected
        from billing.transfers t) x where balance_after <> expected limit 1`,
  },
  {
    name: "each account holds the sum of its transfers, and its chain ends in its hash",
    sql: `select format('account %s holds %s, its transfers make %s', a.id, a.balance, coalesce(t.total, 0)) as difference
      from billing.accounts a
      left join (select t.account_id, sum(${SIGNED}) as total, (array_agg(t.hash order by t.number desc))[1] as hash
        from billing.transfers t group by t.account_id) t on t.account_id = a.id
      where a.kind = 'user' and (a.balance <> coalesce(t.total, 0) or a.last_hash <> coalesce(t.hash, '')) limit 1`,
  },
  {
    name: "debits and credits are of the accounts that the kind of transfer names",
    sql: `select format('account %s, transfer %s: a %s from %s to %s', t.account_id, t.number, t.kind, d.kind, c.kind) as difference
      from billing.transfers t
      left join billing.accounts d on d.id = t.debit_account left join billing.accounts c on c.id = t.credit_account
      where (t.kind, d.kind, c.kind) not in
        (('deposit', 'cash-in', 'user'), ('withdrawal', 'user', 'cash-out'), ('charge', 'user', 'revenue'))
        or d.kind is null or c.kind is null limit 1`,
  },
  {
    name: "all accounts together hold what came in less what went out",
    sql: `select format('accounts hold %s, the transfers make %s', held, moved) as difference
      from (select coalesce(sum(balance), 0) as held from billing.accounts where kind = 'user') a,
        (select coalesce(sum(${SIGNED}), 0) as moved from billing.transfers t) t
      where held <> moved`,
  },
  {
    name: "a paid order has one charge of its price, a refused one none, and no charge is without an order",
    sql: `select format('order %s (%s, %s) has %s charges', coalesce(o.id, c.reference), o.status, o.price, count(c.*)) as difference
      from "order".orders o full join (select * from billing.transfers where kind = 'charge') c on c.reference = o.id
      group by o.id, c.reference, o.status, o.price
      having o.id is null or count(c.*) filter (where c.amount = o.price) <> (o.status = 'paid')::int
        or count(c.*) <> (o.status = 'paid')::int limit 1`,
  },
  {
    name: "each user has an account, or an event on its way that opens it",
    sql: `select format('user %s has no account, and nothing will open one', u.id) as difference
      from profile.users u left join billing.accounts a on a.id = u.id
      where a.id is null and not exists (select from events.outbox o where o.subject = u.id::text and o.topic = 'user-registered')
      limit 1`,
  },
];

/** The first thing that does not hold, as a sentence; undefined when the ledger is right. One snapshot for all of it. */
export async function verifyLedger(
  client: Client,
  report: (name: string) => void = () => undefined,
): Promise<string | undefined> {
  await client.query("begin isolation level repeatable read read only");
  try {
    for (const { name, sql } of CHECKS) {
      const { rows } = await client.query<{ difference: string }>(sql);
      if (rows[0] !== undefined) return `It does not hold that ${name}: ${rows[0].difference} (in minor units).`;
      report(name);
    }
    return undefined;
  } finally {
    await client.query("rollback");
  }
}
