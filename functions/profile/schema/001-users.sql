create schema profile;

create table profile.users (
  id uuid primary key,
  email text not null,
  normal_email text not null,
  username text,
  password_hash text not null,
  created_at timestamptz not null default clock_timestamp()
);
-- functions/kernel/email.ts makes the normal form: two addresses are the same when their normal forms are.
create unique index users_by_normal_email on profile.users (normal_email);

-- Failed logins and registrations. The database keeps them, so that more processes do not allow more attempts.
-- A bucket is `pair:<address> <account>`, `address:<address>`, `account:<account>` or `registration:<address>`.
create table profile.attempts (
  bucket text primary key,
  failures integer not null,
  -- Logins whose password is being checked. A process that was killed leaves its entry, which counts for a short time only.
  in_progress timestamptz[] not null,
  refused_until timestamptz not null,
  forgotten_at timestamptz not null
);
create index attempts_by_forgotten_at on profile.attempts (forgotten_at);
