create schema "order";

create table "order".subscriptions (
  id integer primary key,
  name text not null unique,
  price bigint not null check (price > 0)
);
insert into "order".subscriptions (id, name, price) values (1, 'daily', 1000), (2, 'monthly', 9500), (3, 'yearly', 120000);

-- A refused order is kept too, so that its user can see what happened to it.
create table "order".orders (
  id uuid primary key,
  user_id uuid not null,
  subscription_id integer references "order".subscriptions,
  price bigint not null check (price > 0),
  status text not null check (status in ('paid', 'refused', 'refunded')),
  created_at timestamptz not null
) with (fillfactor = 90);
create index orders_by_user on "order".orders (user_id, created_at desc, id desc);
