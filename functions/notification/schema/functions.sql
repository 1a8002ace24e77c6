-- Stores a notification once and settles the event that asked for it.
create or replace function notification.store(id uuid, user_id uuid, email text, message text, created_at timestamptz)
returns void language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  insert into notification.notifications (id, user_id, email, message, created_at)
  values (store.id, store.user_id, store.email, store.message, store.created_at)
  on conflict do nothing;
  perform events.settle(store.id, 'notification-store');
end $$;

grant usage on schema notification to "lotus:notification";
grant select, insert on notification.notifications to "lotus:notification";
grant execute on function notification.store to "lotus:notification";
