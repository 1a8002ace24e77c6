-- The kernel's schema: events on their way, events that cannot be handled, and the answers of keyed requests.
create schema events;

-- Which trigger handles which topic. `npm run migrate` fills it from the triggers' descriptions.
create table events.subscriptions (
  topic text not null,
  subscriber text not null,
  primary key (topic, subscriber)
);

-- A row here means "not yet settled by everyone in `awaiting`". It is written in the transaction of the change that it
-- tells of, and goes in the transaction of the effect that it causes.
create table events.outbox (
  id uuid primary key,
  topic text not null,
  type text not null,
  source text not null,
  subject text not null,
  time timestamptz not null,
  traceparent text,
  data jsonb not null,
  awaiting text[] not null,
  attempts integer not null default 0,
  attempted_at timestamptz not null default clock_timestamp()
);
create index outbox_by_subject on events.outbox (subject, topic);
create index outbox_by_attempt on events.outbox (attempted_at);

create table events.dead_letters (
  id bigint generated always as identity primary key,
  event_key uuid not null,
  subscriber text not null,
  reason text not null,
  attributes jsonb not null,
  body bytea,
  buried_at timestamptz not null default clock_timestamp(),
  unique (event_key, subscriber)
);

-- The draft "Idempotency-Key HTTP Header Field": a key belongs to a user and to one request.
create table events.idempotency_keys (
  user_id uuid not null,
  key text not null,
  fingerprint text not null,
  answer jsonb,
  created_at timestamptz not null default clock_timestamp(),
  primary key (user_id, key)
);
create index idempotency_keys_by_age on events.idempotency_keys (created_at);

-- RFC 9562 version 7, made here because uuidv7() came only with PostgreSQL 18.
create function events.uuid_v7() returns uuid language sql volatile parallel safe as $$
  select encode(
    set_bit(set_bit(
      overlay(uuid_send(gen_random_uuid())
        placing substring(int8send(floor(extract(epoch from clock_timestamp()) * 1000)::bigint) from 3)
        from 1 for 6),
      52, 1), 53, 1), 'hex')::uuid
$$;

-- Minor units as decimal text without trailing zeros: 89050 -> 890.5
create function events.decimal(minor_units bigint) returns text language sql immutable parallel safe as $$
  select trim_scale(minor_units::numeric / 100)::text
$$;

-- One outbox row as a CloudEvent in the JSON event format, with `topic` beside it for the transport.
create function events.envelope(o events.outbox) returns jsonb language sql stable as $$
  select jsonb_build_object(
    'topic', o.topic,
    'event', jsonb_strip_nulls(jsonb_build_object(
      'specversion', '1.0', 'id', o.id, 'source', o.source, 'type', o.type, 'subject', o.subject,
      'time', to_char(o.time at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
      'datacontenttype', 'application/json', 'partitionkey', o.subject, 'traceparent', o.traceparent))
      || jsonb_build_object('data', o.data))
$$;

-- Writes an event to the outbox and returns its envelope. Call it inside the transaction of the change it tells of.
create function events.emit(topic text, version integer, source text, subject uuid, traceparent text, data jsonb)
returns jsonb language plpgsql volatile security definer set search_path = '' as $$
declare
  o events.outbox;
begin
  insert into events.outbox (id, topic, type, source, subject, time, traceparent, data, awaiting)
  values (events.uuid_v7(), emit.topic, 'lotus.' || emit.topic || '.v' || emit.version, '/lotus/' || emit.source,
    emit.subject, clock_timestamp(), emit.traceparent, emit.data,
    coalesce((select array_agg(s.subscriber) from events.subscriptions s where s.topic = emit.topic), '{}'))
  returning * into o;
  return events.envelope(o);
end $$;

-- This subscriber has handled this event. The row goes when nobody is awaited any more.
create function events.settle(event_key uuid, subscriber text)
returns void language sql volatile security definer set search_path = '' as $$
  with alone as (
    delete from events.outbox o where o.id = event_key and o.awaiting <@ array[subscriber]
  )
  update events.outbox o set awaiting = array_remove(o.awaiting, subscriber)
  where o.id = event_key and not o.awaiting <@ array[subscriber]
$$;

-- Envelopes of a user's events that this subscriber has not settled, oldest first.
create function events.unsettled(subject uuid, topic text, subscriber text, most integer)
returns jsonb language sql stable security definer set search_path = '' as $$
  select coalesce(jsonb_agg(events.envelope(o) order by o.time), '[]')
  from (
    select * from events.outbox u
    where u.subject = unsettled.subject::text and u.topic = unsettled.topic
      and u.awaiting @> array[unsettled.subscriber]
    order by u.time desc limit most
  ) o
$$;

-- Claims events that nobody has settled for a while, so that two relays do not publish the same ones: at most `most`, and
-- `bytes_most` of data unless the first alone has more. Each attempt doubles the wait before the next, and while many wait
-- it is longer by the time that they take, at 300 a second: what stands in a queue is not put into it again. Ten minutes at most.
create function events.claim(older_than interval, most integer, bytes_most integer)
returns jsonb language sql volatile security definer set search_path = '' as $$
  with queue as (
    select count(*) * interval '1 second' / 300 as wait from events.outbox
  ), due as (
    select o.id, o.attempted_at, octet_length(o.data::text) as bytes from events.outbox o, queue q
    where o.attempted_at < statement_timestamp() - older_than
      and o.attempted_at < statement_timestamp() - least(interval '10 minutes',
        older_than * (2 ^ least(o.attempts, 20)) + case when o.attempts = 0 then interval '0' else q.wait end)
    order by o.attempted_at limit most for update of o skip locked
  ), fitting as (
    select d.id, row_number() over w as place, sum(d.bytes) over w as bytes
    from due d window w as (order by d.attempted_at, d.id)
  ), claimed as (
    update events.outbox o set attempts = o.attempts + 1, attempted_at = clock_timestamp()
    from fitting f where o.id = f.id and (f.bytes <= bytes_most or f.place = 1) returning o.*
  )
  select coalesce(jsonb_agg(events.envelope(c::events.outbox) order by c.time), '[]') from claimed c
$$;

-- Gives back events that were claimed and not published: as they were before, and due at once. That no broker was there
-- is not the event's fault, and must not delay it once there is one.
create function events.release(event_keys uuid[])
returns void language sql volatile security definer set search_path = '' as $$
  update events.outbox o set attempts = greatest(o.attempts - 1, 0), attempted_at = '-infinity'
  where o.id = any(event_keys)
$$;

-- Buries an event that no broker will take, for every subscriber that still waits for it.
create function events.bury_unpublishable(event_key uuid, reason text)
returns void language sql volatile security definer set search_path = '' as $$
  with gone as (
    delete from events.outbox o where o.id = bury_unpublishable.event_key returning o.*
  )
  insert into events.dead_letters (event_key, subscriber, reason, attributes, body)
  select g.id, awaited, bury_unpublishable.reason, (events.envelope(g::events.outbox) -> 'event') - 'data',
    convert_to(g.data::text, 'UTF8')
  from gone g, unnest(g.awaiting) as awaited
  on conflict do nothing
$$;

-- Buries an event that `subscriber` can never handle. With `attempts_before` above 0 an event that is still in the outbox
-- and was published fewer times than that stays there instead: the relay will bring it again. Returns whether it was buried.
create function events.bury(event_key uuid, subscriber text, reason text, attributes jsonb, body bytea,
  attempts_before integer)
returns boolean language plpgsql volatile security definer set search_path = '' as $$
begin
  if exists (select from events.outbox o where o.id = bury.event_key and o.attempts < bury.attempts_before) then
    return false;
  end if;
  -- Of our own events, one that is awaited no more has had its effect: only the answer that said so was lost.
  if bury.attempts_before > 0 and bury.attributes ->> 'source' like '/lotus/%' and not exists (
    select from events.outbox o where o.id = bury.event_key and bury.subscriber = any (o.awaiting)
  ) then
    return false;
  end if;
  insert into events.dead_letters (event_key, subscriber, reason, attributes, body)
  values (bury.event_key, bury.subscriber, bury.reason, bury.attributes, bury.body)
  on conflict do nothing;
  perform events.settle(bury.event_key, bury.subscriber);
  return true;
end $$;

-- Puts a dead letter back into the outbox, for the subscriber that could not handle it; the relay publishes it. Fails, and
-- changes nothing, when its data is no JSON: no subscriber could ever read it.
create function events.replay(letter_id bigint)
returns boolean language plpgsql volatile security definer set search_path = '' as $$
declare
  l events.dead_letters;
begin
  delete from events.dead_letters d where d.id = letter_id returning * into l;
  if not found then return false; end if;
  insert into events.outbox as o (id, topic, type, source, subject, time, traceparent, data, awaiting, attempted_at)
  select l.event_key, s.topic, l.attributes ->> 'type', l.attributes ->> 'source',
    coalesce(l.attributes ->> 'subject', l.event_key::text), coalesce((l.attributes ->> 'time')::timestamptz, l.buried_at),
    l.attributes ->> 'traceparent', convert_from(l.body, 'UTF8')::jsonb, array[l.subscriber], '-infinity'
  from events.subscriptions s where s.subscriber = l.subscriber
  on conflict (id) do update set awaiting = array_append(o.awaiting, l.subscriber), attempted_at = '-infinity';
  if not found then raise 'there is no subscriber % any more', l.subscriber; end if;
  return true;
end $$;

-- Opens a keyed request. Null: it is new, go on. Otherwise the first answer, or {"outcome":"idempotency-key-reused"}.
-- A concurrent twin waits here, on the primary key, until the first one has committed.
create function events.begin_request(user_id uuid, key text, fingerprint text)
returns jsonb language plpgsql volatile security definer set search_path = '' as $$
declare
  recorded events.idempotency_keys;
begin
  if key is null then return null; end if;
  insert into events.idempotency_keys (user_id, key, fingerprint)
  values (begin_request.user_id, begin_request.key, begin_request.fingerprint) on conflict do nothing;
  if found then return null; end if;
  select * into recorded from events.idempotency_keys k
  where k.user_id = begin_request.user_id and k.key = begin_request.key;
  if recorded.fingerprint <> begin_request.fingerprint then
    return jsonb_build_object('outcome', 'idempotency-key-reused');
  end if;
  return recorded.answer;
end $$;

-- Records the answer of a keyed request. That an account is not open yet is no answer: it may be open in a moment.
create function events.end_request(user_id uuid, key text, answer jsonb)
returns void language plpgsql volatile security definer set search_path = '' as $$
begin
  if end_request.key is null then return; end if;
  if end_request.answer ->> 'outcome' = 'account-not-open' then
    delete from events.idempotency_keys k where k.user_id = end_request.user_id and k.key = end_request.key;
  else
    update events.idempotency_keys k set answer = end_request.answer
    where k.user_id = end_request.user_id and k.key = end_request.key;
  end if;
end $$;

-- Forgets a bounded number of idempotency keys older than `age`. Returns how many.
create function events.forget_keys(age interval, most integer)
returns integer language sql volatile security definer set search_path = '' as $$
  with old as (
    select ctid from events.idempotency_keys k where k.created_at < clock_timestamp() - age
    order by k.created_at limit most for update skip locked
  ), gone as (
    delete from events.idempotency_keys k using old where k.ctid = old.ctid returning 1
  )
  select count(*)::integer from gone
$$;

revoke all on all functions in schema events from public;
grant usage on schema events to profile, billing, "order", notification, events;
grant execute on function events.emit, events.envelope, events.uuid_v7, events.decimal, events.settle,
  events.unsettled, events.bury, events.begin_request, events.end_request
  to profile, billing, "order", notification, events;
grant execute on function events.claim, events.release, events.bury_unpublishable, events.forget_keys, events.replay
  to events;
grant select, delete on events.dead_letters to events;
