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
