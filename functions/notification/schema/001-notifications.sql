create schema notification;

-- The id is that of the event that asked for it: a second delivery changes nothing.
create table notification.notifications (
  id uuid primary key,
  user_id uuid not null,
  email text not null,
  message text not null,
  created_at timestamptz not null
);
create index notifications_by_user on notification.notifications (user_id, created_at desc, id desc);

-- Stores a notification once and settles the event that asked for it.
create function notification.store(id uuid, user_id uuid, email text, message text, created_at timestamptz)
returns void language plpgsql volatile set search_path = '' as $$
begin
  insert into notification.notifications values (store.id, store.user_id, store.email, store.message, store.created_at)
  on conflict do nothing;
  perform events.settle(store.id, 'notification-store');
end $$;

revoke all on all functions in schema notification from public;
grant usage on schema notification to notification;
grant select, insert on notification.notifications to notification;
grant execute on all functions in schema notification to notification;
