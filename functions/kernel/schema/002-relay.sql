-- These events have been published. Those that none of our triggers waits for are done with: what others do with them is theirs.
create function events.forget_unawaited(event_keys uuid[])
returns void language sql volatile security definer set search_path = '' as $$
  delete from events.outbox o where o.id = any(event_keys) and o.awaiting = '{}'
$$;
revoke all on function events.forget_unawaited from public;
grant execute on function events.forget_unawaited to events;

-- As before, but leaves alone the topics that this run could not publish: what waits for one holds up no other.
drop function events.claim(interval, integer, integer);
create function events.claim(older_than interval, most integer, bytes_most integer, except_topics text[] default '{}')
returns jsonb language sql volatile security definer set search_path = '' as $$
  with queue as (
    select count(*) * interval '1 second' / 300 as wait from events.outbox
  ), due as (
    select o.id, o.attempted_at, octet_length(o.data::text) as bytes from events.outbox o, queue q
    where o.attempted_at < statement_timestamp() - older_than
      and o.attempted_at < statement_timestamp() - least(interval '10 minutes',
        older_than * (2 ^ least(o.attempts, 20)) + case when o.attempts = 0 then interval '0' else q.wait end)
      and o.topic <> all (except_topics)
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
revoke all on function events.claim from public;
grant execute on function events.claim to events;

-- As before, but in the order in which readers settle: so neither waits for the other while the other waits for it.
create or replace function events.release(event_keys uuid[])
returns void language sql volatile security definer set search_path = '' as $$
  with ours as materialized (
    select o.id from events.outbox o where o.id = any(event_keys) order by o.time for update
  )
  update events.outbox o set attempts = greatest(o.attempts - 1, 0), attempted_at = '-infinity'
  from ours where o.id = ours.id
$$;
