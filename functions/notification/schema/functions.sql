-- Stores notifications once, and settles the events that requested them. A second delivery of an event changes nothing.
-- Another producer may send any time. A time in the future becomes the present, so that every notification expires.
-- Returns the position of each notification, except those whose events another transaction has locked and `waits` is false.
create or replace function notification.store(waits boolean, ids uuid[], user_ids uuid[], emails text[], messages text[],
  times timestamptz[])
returns table ("position" integer) language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  skipped constant uuid[] := events.settle_many(waits, ids, 'notification-store');
begin
  -- In the order of ids, so that two statements with the same events cannot deadlock.
  insert into notification.notifications (id, user_id, email, message, created_at)
  select r.id, r.user_id, r.email, r.message, least(r.created_at, clock_timestamp())
  from unnest(ids, user_ids, emails, messages, times) r (id, user_id, email, message, created_at)
  where r.id <> all (skipped)
  order by r.id
  on conflict do nothing;
  return query
    select (r.n - 1)::integer from unnest(ids) with ordinality r (id, n) where r.id <> all (skipped);
end $$;

-- Deletes at most `most` notifications older than `age`. Returns how many.
create or replace function notification.forget(age interval, most integer)
returns integer language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
  with old as (
    select n.id from notification.notifications n where n.created_at < clock_timestamp() - age limit most
  ), gone as (
    delete from notification.notifications n using old where n.id = old.id returning 1
  )
  select count(*)::integer from gone
$$;

grant usage on schema notification to "lotus:notification", "lotus:events";
grant select, insert on notification.notifications to "lotus:notification";
grant execute on function notification.store to "lotus:notification";
-- The relay limits what every service keeps.
grant execute on function notification.forget to "lotus:events";
