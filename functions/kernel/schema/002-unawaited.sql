-- These events have been published. Those that none of our triggers waits for are done with: what others do with them is theirs.
create function events.forget_unawaited(event_keys uuid[])
returns void language sql volatile security definer set search_path = '' as $$
  delete from events.outbox o where o.id = any(event_keys) and o.awaiting = '{}'
$$;
revoke all on function events.forget_unawaited from public;
grant execute on function events.forget_unawaited to events;
