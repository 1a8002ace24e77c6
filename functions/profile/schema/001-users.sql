create schema profile;

create table profile.users (
  id uuid primary key,
  email text not null,
  username text,
  password_hash text not null,
  created_at timestamptz not null default clock_timestamp()
);
create unique index users_by_email on profile.users (lower(email));

-- Failed logins of an account or of an address, within one window. Here and not in a process's memory, so that
-- scaling out does not multiply what is allowed.
create table profile.login_attempts (
  bucket text primary key,
  attempts integer not null,
  window_ends_at timestamptz not null
);
create index login_attempts_by_end on profile.login_attempts (window_ends_at);
