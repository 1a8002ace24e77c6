-- As before, but two subscribers that settle the same event at the same time do not miss each other: the second one waits for the
-- first, and looks again.
create or replace function events.settle(event_key uuid, subscriber text)
returns void language plpgsql volatile security definer set search_path = '' as $$
begin
  delete from events.outbox o where o.id = settle.event_key and o.awaiting <@ array[settle.subscriber];
  if found then return; end if;
  perform from events.outbox o where o.id = settle.event_key for update;
  if not found then return; end if;
  delete from events.outbox o where o.id = settle.event_key and o.awaiting <@ array[settle.subscriber];
  if found then return; end if;
  update events.outbox o set awaiting = array_remove(o.awaiting, settle.subscriber) where o.id = settle.event_key;
end $$;

-- As before, but a letter whose time is none can be replayed as well: its time is then that of its burial.
create or replace function events.replay(letter_id bigint)
returns boolean language plpgsql volatile security definer set search_path = '' as $$
declare
  l events.dead_letters;
  occurred_at timestamptz;
begin
  delete from events.dead_letters d where d.id = letter_id returning * into l;
  if not found then return false; end if;
  begin
    occurred_at := (l.attributes ->> 'time')::timestamptz;
  exception when data_exception then
    occurred_at := null;
  end;
  if occurred_at is null or not isfinite(occurred_at) then occurred_at := l.buried_at; end if;
  insert into events.outbox as o (id, topic, type, source, subject, time, traceparent, data, awaiting, attempted_at)
  select l.event_key, s.topic, coalesce(l.attributes ->> 'type', 'unknown'), coalesce(l.attributes ->> 'source', 'unknown'),
    coalesce(l.attributes ->> 'subject', l.event_key::text), occurred_at,
    l.attributes ->> 'traceparent', convert_from(l.body, 'UTF8')::jsonb, array[l.subscriber], '-infinity'
  from events.subscriptions s where s.subscriber = l.subscriber
  on conflict (id) do update set awaiting = array_append(o.awaiting, l.subscriber), attempted_at = '-infinity';
  if not found then raise 'there is no subscriber % any more', l.subscriber; end if;
  return true;
end $$;
