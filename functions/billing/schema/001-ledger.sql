-- The ledger. Every transfer moves an amount from its debit account to its credit account, so all balances add up to 0.
-- Amounts are minor units (cents). A JSON number carries 15 digits exactly: the limit of a user's balance.
create schema billing;

-- A user has one account. A kind of system account has several, so that statements that run at the same time update different rows.
create table billing.accounts (
  id uuid primary key,
  kind text not null check (kind in ('user', 'cash-in', 'cash-out', 'revenue')),
  balance bigint not null default 0,
  entries bigint not null default 0 check (entries >= 0),
  last_hash bytea not null default '',
  opened_at timestamptz not null default clock_timestamp(),
  constraint user_balance_within_limits check (kind <> 'user' or balance between 0 and 999999999999999),
  constraint entries_belong_to_users check (kind = 'user' or entries = 0)
) with (fillfactor = 70);
create index system_accounts on billing.accounts (kind) where kind <> 'user';

insert into billing.accounts (id, kind)
select format('00000000-0000-0000-000%s-%s', k.number, lpad(s.stripe::text, 12, '0'))::uuid, k.kind
from (values (1, 'cash-in'), (2, 'cash-out'), (3, 'revenue')) k (number, kind), generate_series(1, 16) s (stripe);

-- Money that moved. `reference` is the cause: the order of a charge or a refund, the transfer itself otherwise.
-- Foreign keys to accounts would make every payment lock the row of a system account.
create table billing.transfers (
  id uuid primary key,
  kind text not null check (kind in ('deposit', 'withdrawal', 'charge', 'refund', 'transfer')),
  debit_account uuid not null,
  credit_account uuid not null,
  amount bigint not null check (amount > 0),
  reference uuid not null,
  created_at timestamptz not null,
  constraint accounts_differ check (debit_account <> credit_account),
  constraint one_transfer_for_each_cause unique (kind, reference)
);
create index transfers_by_time on billing.transfers using brin (created_at);

-- The statement of each user's account. The hash of an entry covers the entry, its transfer, and the hash of the entry before it.
create table billing.entries (
  account_id uuid not null,
  number bigint not null check (number > 0),
  transfer_id uuid not null,
  amount bigint not null check (amount <> 0),
  balance_after bigint not null check (balance_after >= 0),
  hash bytea not null,
  primary key (account_id, number),
  constraint one_entry_for_each_account unique (transfer_id, account_id)
);

-- A seal covers the last entry of each account at `moment`, and the seal before it. An unfinished seal has no `sealed_at`; `hash` is
-- then the state of the computation, and `last_account` the last account that it covers. Transactions from `horizon` on cannot
-- write an entry that is as old as `moment`.
create table billing.seals (
  moment timestamptz primary key,
  hash bytea not null,
  accounts bigint not null default 0,
  last_account uuid,
  horizon xid8,
  sealed_at timestamptz
);

-- The last entries of the accounts that changed since the seal before. A seal covers its rows in the order of the accounts.
create table billing.sealed_entries (
  moment timestamptz not null references billing.seals on delete cascade,
  account_id uuid not null,
  number bigint not null,
  hash bytea not null,
  primary key (moment, account_id)
);
create index sealed_entries_by_account on billing.sealed_entries (account_id, number);
