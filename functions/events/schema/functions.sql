-- Functions whose names end in `_unchecked` do not check the caller's service. Roles may not execute them: other functions call them.

-- Returns the service that a session acts for. Null: the session is the owner's, who may act for every service.
create or replace function events.caller()
returns text language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  found_service text;
begin
  select r.service into found_service from events.roles r where r.role = session_user;
  if found or pg_has_role(session_user, current_user, 'member') then return found_service; end if;
  raise insufficient_privilege using message = format('the role %s belongs to no service', session_user);
end $$;

-- Refuses a subscriber of another service. The service `events` contains the dead-letter sink, which acts for every subscriber.
create or replace function events.check_subscriber(subscriber text)
returns void language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  acting text := events.caller();
begin
  if acting is null or acting = 'events' then return; end if;
  if exists (select from events.subscriptions s
    where s.subscriber = check_subscriber.subscriber and s.service = acting) then return; end if;
  raise insufficient_privilege
    using message = format('the service %s may not act for the subscriber %s', acting, check_subscriber.subscriber);
end $$;

-- Returns the id of this installation of Lotus.
create or replace function events.installation_id()
returns uuid language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select i.id from events.installation i
$$;

-- Returns the CloudEvents source of a function of this installation.
create or replace function events.source_of(function text)
returns text language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select format('/lotus/%s/%s', i.id, function) from events.installation i
$$;

-- Returns a new id (RFC 9562 version 7). PostgreSQL has uuidv7() only from version 18 on.
create or replace function events.uuid_v7() returns uuid language sql volatile parallel safe
return encode(
  set_bit(set_bit(
    overlay(uuid_send(gen_random_uuid())
      placing substring(int8send(floor(extract(epoch from clock_timestamp()) * 1000)::bigint) from 3)
      from 1 for 6),
    52, 1), 53, 1), 'hex')::uuid;

-- Returns minor units as decimal text without trailing zeros: 89050 -> 890.5
create or replace function events.decimal(minor_units bigint) returns text language sql immutable parallel safe
return trim_scale(minor_units::numeric / 100)::text;

-- Returns an outbox row as a CloudEvent in the JSON event format, with `topic` beside it for the transport.
create or replace function events.envelope(o events.outbox) returns jsonb language sql stable
return jsonb_build_object(
  'topic', o.topic,
  'event', jsonb_strip_nulls(jsonb_build_object(
    'specversion', '1.0', 'id', o.id, 'source', o.source, 'type', o.type, 'subject', o.subject,
    'time', to_char(o.time at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
    'datacontenttype', 'application/json', 'partitionkey', o.subject, 'traceparent', o.traceparent))
    || coalesce(o.extensions, '{}') || jsonb_build_object('data', o.data));

-- Writes events of one function to the outbox and returns their envelopes, in the transaction of the change that they describe.
-- `source` is the name of the function. The caller's service must own the function and publish the topic. The arrays are parallel;
-- an element without data is not an event, and its envelope is null.
create or replace function events.emit_many(topic text, version integer, source text, subjects uuid[], traceparents text[],
  times timestamptz[], data jsonb[])
returns jsonb[] language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  acting text;
  event_source text;
  subscribers text[];
  publishes boolean;
  ids uuid[] := array_fill(null::uuid, array[cardinality(data)]);
  envelopes jsonb[] := array_fill(null::jsonb, array[cardinality(data)]);
  written events.outbox;
begin
  -- One query finds all four values, because each query starts the executor and each function changes the search path.
  select r.service, format('/lotus/%s/%s', i.id, emit_many.source),
    array(select s.subscriber from events.subscriptions s where s.topic = emit_many.topic),
    exists (select from events.publications p where p.service = r.service and p.topic = emit_many.topic)
  into acting, event_source, subscribers, publishes
  from events.installation i left join events.roles r on r.role = session_user;
  -- The owner may act for every service.
  if acting is null then acting := events.caller(); end if;
  if acting is not null
    and emit_many.source is distinct from acting and not coalesce(starts_with(emit_many.source, acting || '-'), false) then
    raise insufficient_privilege
      using message = format('the service %s may not publish as the function %s', acting, emit_many.source);
  end if;
  if acting is not null and not publishes then
    raise insufficient_privilege
      using message = format('the service %s may not publish the topic %s', acting, emit_many.topic);
  end if;
  for i in 1..cardinality(data) loop
    if data[i] is not null then ids[i] := events.uuid_v7(); end if;
  end loop;
  for written in
    insert into events.outbox (id, topic, type, source, subject, time, traceparent, data, awaiting)
    select ids[i], emit_many.topic, 'lotus.' || emit_many.topic || '.v' || emit_many.version, event_source,
      subjects[i], times[i], traceparents[i], emit_many.data[i], subscribers
    from generate_series(1, cardinality(emit_many.data)) i where ids[i] is not null
    returning *
  loop
    envelopes[array_position(ids, written.id)] := events.envelope(written);
  end loop;
  return envelopes;
end $$;

-- Writes one event with the present time, as events.emit_many does.
create or replace function events.emit(topic text, version integer, source text, subject uuid, traceparent text, data jsonb)
returns jsonb language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
  select (events.emit_many(topic, version, source, array[subject], array[traceparent], array[clock_timestamp()], array[data]))[1]
$$;

-- Records that a subscriber has handled an event. The last subscriber deletes the row. When two subscribers settle the same event
-- at the same time, the second one waits for the first, and then reads the row again.
create or replace function events.settle_unchecked(event_key uuid, subscriber text)
returns void language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  delete from events.outbox o where o.id = settle_unchecked.event_key and o.awaiting <@ array[settle_unchecked.subscriber];
  if found then return; end if;
  perform from events.outbox o where o.id = settle_unchecked.event_key for update;
  if not found then return; end if;
  delete from events.outbox o where o.id = settle_unchecked.event_key and o.awaiting <@ array[settle_unchecked.subscriber];
  if found then return; end if;
  update events.outbox o set awaiting = array_remove(o.awaiting, settle_unchecked.subscriber)
  where o.id = settle_unchecked.event_key;
end $$;

-- Settles events for a subscriber of the caller's service, and returns the keys of those that it skipped. Without `waits` it skips
-- the events whose rows another transaction has locked. An event that is not in the outbox counts as settled.
create or replace function events.settle_many(waits boolean, event_keys uuid[], subscriber text)
returns uuid[] language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  locked uuid[];
  skipped uuid[] := '{}';
begin
  perform events.check_subscriber(settle_many.subscriber);
  -- Readers, triggers and the relay lock in the order of time, so that two of them cannot deadlock.
  if waits then
    select array_agg(l.id) into locked from (
      select o.id from events.outbox o where o.id = any(event_keys) order by o.time, o.id for update
    ) l;
  else
    select array_agg(l.id) into locked from (
      select o.id from events.outbox o where o.id = any(event_keys) order by o.time, o.id for update skip locked
    ) l;
    if cardinality(locked) is distinct from cardinality(event_keys) then
      select coalesce(array_agg(o.id), '{}') into skipped from events.outbox o
      where o.id = any(event_keys) and o.id <> all (coalesce(locked, '{}'));
    end if;
  end if;
  if locked is null then return skipped; end if;
  delete from events.outbox o where o.id = any(locked) and o.awaiting <@ array[settle_many.subscriber];
  -- Another subscriber still awaits the event.
  update events.outbox o set awaiting = array_remove(o.awaiting, settle_many.subscriber)
  where o.id = any(locked) and o.awaiting @> array[settle_many.subscriber];
  return skipped;
end $$;

-- Returns the envelopes of the newest `most` events of a user that a subscriber has not settled. The oldest of them comes first.
create or replace function events.unsettled_unchecked(subject uuid, topic text, subscriber text, most integer)
returns jsonb language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select coalesce(jsonb_agg(events.envelope(o) order by o.time), '[]')
  from (
    select * from events.outbox u
    where u.subject = unsettled_unchecked.subject::text and u.topic = unsettled_unchecked.topic
      and u.awaiting @> array[unsettled_unchecked.subscriber]
    order by u.time desc limit most
  ) o
$$;

-- Returns the result of events.unsettled_unchecked, but only for a subscriber of the caller's service.
create or replace function events.unsettled(subject uuid, topic text, subscriber text, most integer)
returns jsonb language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform events.check_subscriber(unsettled.subscriber);
  return events.unsettled_unchecked(unsettled.subject, unsettled.topic, unsettled.subscriber, unsettled.most);
end $$;

-- Claims overdue events and returns their envelopes. Two relays cannot claim the same event. It claims at most `most` events and
-- `bytes_most` bytes of data, but always the first event. `except_topics` are the topics that this run could not publish.
-- An event is overdue after a wait since its last attempt:
--   the wait is `older_than` before the first attempt, and each attempt doubles it;
--   after the first attempt, a long queue of the topic adds its length at 300 events a second: it may still contain the event;
--   the wait is at most ten minutes.
-- An event whose last attempt is more than ten minutes in the future is overdue too, because a clock was wrong.
-- Events with few attempts come first, so that events that no subscriber settles do not delay them.
create or replace function events.claim(older_than interval, most integer, bytes_most integer, except_topics text[] default '{}')
returns jsonb language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
  with queues as materialized (
    -- After the fourth attempt an event waits for its subscriber, not in a queue.
    select o.topic, count(*) * interval '1 second' / 300 as wait from events.outbox o where o.attempts < 4 group by o.topic
  ), due as (
    select o.id, o.attempts, o.attempted_at, octet_length(o.data::text) as bytes
    from events.outbox o left join queues q on q.topic = o.topic
    where (o.attempted_at < statement_timestamp() - older_than
        and o.attempted_at < statement_timestamp() - least(interval '10 minutes',
          older_than * (2 ^ least(o.attempts, 20)) + case when o.attempts = 0 then interval '0' else coalesce(q.wait, '0') end)
      or o.attempted_at > statement_timestamp() + interval '10 minutes')
      and o.topic <> all (except_topics)
    order by o.attempts, o.attempted_at limit most for update of o skip locked
  ), fitting as (
    select d.id, row_number() over w as place, sum(d.bytes) over w as bytes
    from due d window w as (order by d.attempts, d.attempted_at, d.id)
  ), claimed as (
    update events.outbox o set attempts = o.attempts + 1, attempted_at = clock_timestamp()
    from fitting f where o.id = f.id and (f.bytes <= bytes_most or f.place = 1) returning o.*
  )
  select coalesce(jsonb_agg(events.envelope(c::events.outbox) order by c.time), '[]') from claimed c
$$;

-- Moves events that are still unsettled after `attempts_most` publications to the dead letters. It moves at most `most` events, and
-- returns how many.
create or replace function events.give_up(attempts_most integer, most integer)
returns integer language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
  with tired as (
    select o.id from events.outbox o
    where o.attempts >= attempts_most and o.attempted_at < statement_timestamp() - interval '10 minutes'
    order by o.time limit most for update skip locked
  ), gone as (
    delete from events.outbox o using tired t where o.id = t.id returning o.*
  ), moved as (
    insert into events.dead_letters (event_key, subscriber, reason, attributes, body, from_outbox)
    select g.id, awaited, format('It was published %s times and never settled.', g.attempts),
      (events.envelope(g::events.outbox) -> 'event') - 'data', convert_to(g.data::text, 'UTF8'), true
    from gone g, unnest(g.awaiting) as awaited
    on conflict do nothing
  )
  select count(*)::integer from gone
$$;

-- Releases events that were claimed and not published. They are due at once, so that the relay publishes them as soon as a broker
-- answers. The rows are locked in the order in which readers settle them, so that the two cannot deadlock.
create or replace function events.release(event_keys uuid[])
returns void language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
  with claimed as materialized (
    -- A second release of the same events has no effect.
    select o.id from events.outbox o where o.id = any(event_keys) and o.attempted_at <> '-infinity' order by o.time for update
  )
  update events.outbox o set attempts = greatest(o.attempts - 1, 0), attempted_at = '-infinity'
  from claimed where o.id = claimed.id
$$;

-- Deletes published events that have no subscriber.
create or replace function events.forget_unawaited(event_keys uuid[])
returns void language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
  delete from events.outbox o where o.id = any(event_keys) and o.awaiting = '{}'
$$;

-- Moves an event that brokers refuse to the dead letters, for every subscriber that has not settled it.
create or replace function events.move_unpublishable_to_dead_letters(event_key uuid, reason text)
returns void language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
  with gone as (
    delete from events.outbox o where o.id = move_unpublishable_to_dead_letters.event_key returning o.*
  )
  insert into events.dead_letters (event_key, subscriber, reason, attributes, body, from_outbox)
  select g.id, awaited, move_unpublishable_to_dead_letters.reason, (events.envelope(g::events.outbox) -> 'event') - 'data',
    convert_to(g.data::text, 'UTF8'), true
  from gone g, unnest(g.awaiting) as awaited
  on conflict do nothing
$$;

-- Moves an event that `subscriber` can never handle to the dead letters. With `attempts_before` above 0 an event stays in the outbox
-- when it was published fewer times than that: the relay publishes it again. Returns whether the event was moved.
create or replace function events.move_to_dead_letters(event_key uuid, subscriber text, reason text, attributes jsonb, body bytea,
  attempts_before integer)
returns boolean language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  attempts integer;
  awaited boolean;
begin
  perform events.check_subscriber(move_to_dead_letters.subscriber);
  select o.attempts, move_to_dead_letters.subscriber = any (o.awaiting) into attempts, awaited
  from events.outbox o where o.id = move_to_dead_letters.event_key;
  if attempts < move_to_dead_letters.attempts_before then return false; end if;
  -- An event of this installation that no longer awaits this subscriber has had its effect, and only the answer was lost. The outbox
  -- does not contain events of other installations and producers, so their absence does not show an effect.
  if move_to_dead_letters.attempts_before > 0 and awaited is not true
    and starts_with(move_to_dead_letters.attributes ->> 'source', events.source_of(''))
    and lower(move_to_dead_letters.attributes ->> 'id') = move_to_dead_letters.event_key::text then
    return false;
  end if;
  insert into events.dead_letters (event_key, subscriber, reason, attributes, body, from_outbox)
  values (move_to_dead_letters.event_key, move_to_dead_letters.subscriber, move_to_dead_letters.reason,
    move_to_dead_letters.attributes, move_to_dead_letters.body, coalesce(awaited, false))
  on conflict do nothing;
  perform events.settle_unchecked(move_to_dead_letters.event_key, move_to_dead_letters.subscriber);
  return true;
end $$;

-- Returns an attribute in a form that HTTP and Kafka headers can contain: printable ASCII, at most 1000 characters.
create or replace function events.printable(attribute text)
returns text language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
  select left(regexp_replace(attribute, '[^ -~]', '?', 'g'), 1000)
$$;

-- Puts a dead letter back into the outbox for its subscriber; the relay publishes it. Fails, and changes nothing, when the data is
-- not JSON. The source becomes this installation's, because its outbox issues the event; extensions keep the original source and id.
-- A dead letter without a usable time, or with a time after its move, receives the time of its move. The subject stays when it is a
-- user's id. Only the owner may call this function.
create or replace function events.replay(letter_id bigint)
returns boolean language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  l events.dead_letters;
  occurred_at timestamptz;
  is_own boolean;
begin
  delete from events.dead_letters d where d.id = letter_id returning * into l;
  if not found then return false; end if;
  begin
    occurred_at := (l.attributes ->> 'time')::timestamptz;
  exception when data_exception then
    occurred_at := null;
  end;
  if occurred_at is null or occurred_at = '-infinity' or occurred_at > l.moved_at then occurred_at := l.moved_at; end if;
  is_own := coalesce(starts_with(l.attributes ->> 'source', events.source_of('')), false);
  insert into events.outbox as o
    (id, topic, type, source, subject, time, traceparent, data, extensions, awaiting, attempted_at)
  select l.event_key, s.topic,
    coalesce(nullif(events.printable(l.attributes ->> 'type'), ''), 'unknown'),
    case when is_own then events.printable(l.attributes ->> 'source') else events.source_of('dead-letters') end,
    coalesce(lower(substring(l.attributes ->> 'subject'
      from '^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$')), l.event_key::text),
    occurred_at,
    substring(l.attributes ->> 'traceparent' from '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$'),
    convert_from(l.body, 'UTF8')::jsonb,
    jsonb_strip_nulls(jsonb_build_object(
      'originalsource', events.printable(l.attributes ->> case when is_own then 'originalsource' else 'source' end),
      'originalid', events.printable(l.attributes ->> case when is_own then 'originalid' else 'id' end))),
    array[l.subscriber], '-infinity'
  from events.subscriptions s where s.subscriber = l.subscriber
  on conflict (id) do update set awaiting = array_append(o.awaiting, l.subscriber), attempted_at = '-infinity';
  if not found then raise 'the subscriber % does not exist any more', l.subscriber; end if;
  return true;
end $$;

-- Limits the dead letters of other producers: deletes those older than `age`, and those beyond the newest `letters_most` or the newest
-- `bytes_most` bytes. The oldest go first, at most `most`. Dead letters from the outbox stay, because only a person may delete them.
-- Returns how many were deleted.
create or replace function events.trim_dead_letters(age interval, letters_most integer, bytes_most bigint, most integer)
returns integer language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
  with ranked as (
    select d.id, d.moved_at, row_number() over w as place,
      sum(coalesce(octet_length(d.body), 0) + pg_column_size(d.attributes)) over w as bytes
    from events.dead_letters d where not d.from_outbox window w as (order by d.id desc)
  ), surplus as (
    select r.id from ranked r
    where r.place > letters_most or r.bytes > bytes_most or r.moved_at < clock_timestamp() - age
    order by r.id limit most
  ), gone as (
    delete from events.dead_letters d using surplus s where d.id = s.id returning 1
  )
  select count(*)::integer from gone
$$;

-- Records the answers to keyed requests. A null in `keys` is a request without a key. A null in `answers` is a request without an effect.
create or replace function events.record_answers_unchecked(service text, user_ids uuid[], keys text[], fingerprints text[],
  answers jsonb[])
returns void language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  if array_remove(keys, null) = '{}' then return; end if;
  insert into events.idempotency_keys (service, user_id, key, fingerprint, answer)
  select record_answers_unchecked.service, r.user_id, r.key, r.fingerprint, r.answer
  from unnest(user_ids, keys, fingerprints, answers) r (user_id, key, fingerprint, answer)
  where r.key is not null and r.answer is not null;
end $$;

-- Deletes at most `most` idempotency keys older than `age`. Returns how many.
create or replace function events.forget_keys(age interval, most integer)
returns integer language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
  with old as (
    select ctid from events.idempotency_keys k where k.created_at < clock_timestamp() - age
    order by k.created_at limit most for update skip locked
  ), gone as (
    delete from events.idempotency_keys k using old where k.ctid = old.ctid returning 1
  )
  select count(*)::integer from gone
$$;

-- Returns the figures of the outbox and of the dead letters that the relay reports as metrics. `outbox_seconds` is the age of the
-- oldest event, 0 without events.
create or replace function events.figures(out outbox_rows bigint, out outbox_seconds double precision, out dead_letters bigint)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select count(*), coalesce(greatest(extract(epoch from clock_timestamp() - min(o.time)), 0), 0)::double precision,
    (select count(*) from events.dead_letters)
  from events.outbox o
$$;

-- A role may execute only the functions that the processes of its service call. A security definer function runs as the owner, so the
-- functions that it calls need no grant.
grant usage on schema events to "lotus:profile", "lotus:billing", "lotus:order", "lotus:notification", "lotus:events";
grant execute on function events.emit, events.uuid_v7 to "lotus:profile";
grant execute on function events.settle_many, events.unsettled to "lotus:notification";
grant execute on function events.figures, events.claim, events.release, events.give_up, events.forget_unawaited,
  events.move_unpublishable_to_dead_letters, events.trim_dead_letters, events.forget_keys to "lotus:events";
-- Every trigger compares the id with the source of an event, and moves an event that it cannot handle to the dead letters.
grant execute on function events.installation_id, events.move_to_dead_letters
  to "lotus:profile", "lotus:billing", "lotus:order", "lotus:notification", "lotus:events";
