-- The tables of the kernel: services and their roles, events on their way, dead letters, and the answers of keyed requests.
create schema events;

-- The database role of each service. The migration fills this table; `events.caller()` reads it.
create table events.roles (
  role name primary key,
  service text not null unique
);

-- The trigger that handles a topic, and the service of the trigger. The migration fills this table from the triggers' descriptions.
create table events.subscriptions (
  topic text not null,
  subscriber text not null,
  service text not null,
  primary key (topic, subscriber)
);

-- The id of this installation, in one row. Events name it in their source. The migration makes a new id for a copy of a database,
-- which has another oid.
create table events.installation (
  single boolean primary key default true check (single),
  id uuid not null,
  database oid not null
);

-- The topics that a service may publish. Each service fills its rows in its own functions.sql.
create table events.publications (
  service text not null,
  topic text not null,
  primary key (service, topic)
);

-- A row means that the subscribers in `awaiting` have not settled this event yet. The transaction of a change writes the row;
-- the transaction of the effect deletes it.
create table events.outbox (
  id uuid primary key,
  topic text not null,
  type text not null,
  source text not null,
  subject text not null,
  time timestamptz not null,
  traceparent text,
  data jsonb not null,
  -- Further CloudEvents attributes: where a replayed event of another producer came from.
  extensions jsonb,
  awaiting text[] not null,
  attempts integer not null default 0,
  attempted_at timestamptz not null default clock_timestamp()
);
create index outbox_by_subject on events.outbox (subject, topic);
create index outbox_by_attempt on events.outbox (attempts, attempted_at);

create table events.dead_letters (
  id bigint generated always as identity primary key,
  event_key uuid not null,
  subscriber text not null,
  reason text not null,
  attributes jsonb not null,
  body bytea,
  -- The event was in the outbox: only a person may delete it.
  from_outbox boolean not null default false,
  moved_at timestamptz not null default clock_timestamp(),
  unique (event_key, subscriber)
);

-- The draft "Idempotency-Key HTTP Header Field". A key belongs to a service, a user and one request.
create table events.idempotency_keys (
  service text not null,
  user_id uuid not null,
  key text not null,
  fingerprint text not null,
  answer jsonb,
  created_at timestamptz not null default clock_timestamp(),
  primary key (service, user_id, key)
);
create index idempotency_keys_by_age on events.idempotency_keys (created_at);
