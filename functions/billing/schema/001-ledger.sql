create schema billing;

-- Money is counted in minor units (cents). A balance stays within what a JSON number of major units carries exactly: 15 digits.
create table billing.accounts (
  id uuid primary key,
  kind text not null check (kind in ('user', 'cash-in', 'cash-out', 'revenue')),
  balance bigint not null default 0 check (balance >= 0 and balance <= 999999999999999),
  transfers bigint not null default 0,
  last_hash bytea not null default ''::bytea,
  opened_at timestamptz not null default clock_timestamp()
);

-- System accounts keep no balance of their own: every payment would queue up for that one row.
insert into billing.accounts (id, kind) values
  ('00000000-0000-0000-0000-000000000001', 'cash-in'),
  ('00000000-0000-0000-0000-000000000002', 'cash-out'),
  ('00000000-0000-0000-0000-000000000003', 'revenue');

-- Numbered within the user's account that they move: a gap is a lost row. The numbers are also the order of history.
-- No foreign keys to system accounts: sharing a lock on three rows is what every payment would do.
create table billing.transfers (
  account_id uuid not null references billing.accounts,
  number bigint not null,
  kind text not null check (kind in ('deposit', 'withdrawal', 'charge')),
  debit_account uuid not null,
  credit_account uuid not null,
  amount bigint not null check (amount > 0),
  balance_after bigint not null check (balance_after >= 0),
  reference uuid,
  created_at timestamptz not null,
  hash bytea not null,
  primary key (account_id, number),
  check (debit_account <> credit_account),
  check (account_id = case kind when 'deposit' then credit_account else debit_account end)
);
