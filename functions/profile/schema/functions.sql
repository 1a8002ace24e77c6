-- The topics that this service may publish.
delete from events.publications where service = 'profile';
insert into events.publications (service, topic) values ('profile', 'user-registered'), ('profile', 'notification-requested');

-- Creates a user and both events that report it. `created` is null when the email is taken.
create or replace function profile.register(email text, normal_email text, username text, password_hash text, source text,
  traceparent text)
returns table (created jsonb, emitted jsonb) language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  u profile.users;
begin
  insert into profile.users (id, email, normal_email, username, password_hash)
  values (events.uuid_v7(), register.email, register.normal_email, register.username, register.password_hash)
  on conflict do nothing returning * into u;
  if not found then
    return query select null::jsonb, '[]'::jsonb;
    return;
  end if;
  return query select
    jsonb_build_object('id', u.id, 'email', u.email, 'username', u.username, 'createdAt', u.created_at),
    jsonb_build_array(
      events.emit('user-registered', 1, source, u.id, traceparent, jsonb_build_object('userId', u.id, 'email', u.email)),
      events.emit('notification-requested', 1, source, u.id, traceparent,
        jsonb_build_object('userId', u.id, 'recipient', u.email, 'kind', 'welcome')));
end $$;

-- Counts a failure and returns its row. A bucket without a failure for `memory` starts again. From failure number `free` on, the
-- bucket is refused for `first_wait`, then twice as long after each further failure, up to `longest_wait`.
create or replace function profile.count_failure(bucket text, free integer, first_wait interval, longest_wait interval,
  memory interval)
returns void language sql volatile set search_path = pg_catalog, pg_temp as $$
  insert into profile.attempts as a (bucket, failures, in_progress, refused_until, forgotten_at)
  values (count_failure.bucket, 1, '{}', '-infinity', clock_timestamp() + memory)
  on conflict on constraint attempts_pkey do update set
    failures = case when a.forgotten_at < clock_timestamp() then 1 else a.failures + 1 end,
    refused_until = case when a.forgotten_at < clock_timestamp() or a.failures + 1 < free then '-infinity'
      else clock_timestamp() + least(longest_wait, first_wait * 2 ^ least(a.failures + 1 - free, 20)) end,
    forgotten_at = clock_timestamp() + memory
$$;

-- The seconds until an instant, at least 1 when it is in the future.
create or replace function profile.seconds_until(instant timestamptz)
returns integer language sql volatile set search_path = pg_catalog, pg_temp as $$
  select case when instant > clock_timestamp() and instant < 'infinity'
    then greatest(1, ceil(extract(epoch from instant - clock_timestamp())))::integer else 0 end
$$;

-- Opens a login. Either it is refused for `retry_after_seconds`, or `attempt` names it, and end_login must follow with its outcome.
-- `pair_free` attempts of one account from one address are checked at a time; afterwards one at a time, with growing waits.
-- `account_failures` counts those from every address: it makes logins slower and refuses none.
create or replace function profile.begin_login(normal_email text, address text, pair_free integer, attempt_lasts interval,
  memory interval)
returns table (retry_after_seconds integer, refused_for_failures boolean, account_failures integer, attempt timestamptz, id uuid,
  email text, password_hash text)
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  own profile.attempts;
  started timestamptz := clock_timestamp();
  address_wait integer;
  pair_wait integer;
begin
  select profile.seconds_until(a.refused_until) into address_wait
  from profile.attempts a where a.bucket = 'address:' || begin_login.address;
  insert into profile.attempts as a (bucket, failures, in_progress, refused_until, forgotten_at)
  values ('pair:' || begin_login.address || ' ' || begin_login.normal_email, 0, '{}', '-infinity', started + memory)
  on conflict on constraint attempts_pkey do update set
    failures = case when a.forgotten_at < clock_timestamp() then 0 else a.failures end,
    in_progress = array(select s from unnest(a.in_progress) s where s > clock_timestamp() - attempt_lasts)
  returning * into own;
  -- The row may have been locked for a while: the entry must be unique in it.
  started := greatest(clock_timestamp(), (select max(s) + interval '1 microsecond' from unnest(own.in_progress) s));
  pair_wait := profile.seconds_until(own.refused_until);
  refused_for_failures := coalesce(address_wait, 0) > 0 or pair_wait > 0;
  retry_after_seconds := greatest(address_wait, pair_wait,
    case when cardinality(own.in_progress) >= greatest(1, pair_free - own.failures) then 1 else 0 end);
  if retry_after_seconds = 0 then
    attempt := started;
    update profile.attempts a set in_progress = own.in_progress || started where a.bucket = own.bucket;
    select u.id, u.email, u.password_hash into begin_login.id, begin_login.email, begin_login.password_hash
    from profile.users u where u.normal_email = begin_login.normal_email;
  end if;
  select a.failures into account_failures from profile.attempts a
  where a.bucket = 'account:' || begin_login.normal_email and a.forgotten_at > clock_timestamp();
  account_failures := coalesce(account_failures, 0);
  -- Last: the deletion skips locked rows, and the transaction ends after it.
  delete from profile.attempts a using (
    select o.ctid from profile.attempts o where o.forgotten_at < clock_timestamp() and cardinality(o.in_progress) = 0
    limit 10 for update skip locked
  ) old where a.ctid = old.ctid;
  return next;
end $$;

-- Ends a login. Only a wrong password counts as a failure; a right one forgets the failures of its account and address.
-- Every caller locks address, account and pair in this order, so that two logins cannot deadlock.
create or replace function profile.end_login(normal_email text, address text, attempt timestamptz, outcome text, pair_free integer,
  address_free integer, first_wait interval, longest_wait interval, memory interval)
returns void language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  pair text := 'pair:' || end_login.address || ' ' || end_login.normal_email;
begin
  if outcome = 'wrong' then
    perform profile.count_failure('address:' || end_login.address, address_free, first_wait, longest_wait, memory);
    perform profile.count_failure('account:' || end_login.normal_email, 2147483647, first_wait, longest_wait, memory);
    perform profile.count_failure(pair, pair_free, first_wait, longest_wait, memory);
  elsif outcome = 'right' then
    update profile.attempts a set failures = 0, refused_until = '-infinity' where a.bucket = pair;
  end if;
  update profile.attempts a set in_progress = array_remove(a.in_progress, attempt) where a.bucket = pair;
end $$;

-- Counts a registration and returns the seconds to wait when the address has made too many within `memory` of its first one.
create or replace function profile.count_registration(address text, most integer, memory interval)
returns integer language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  counted profile.attempts;
begin
  insert into profile.attempts as a (bucket, failures, in_progress, refused_until, forgotten_at)
  values ('registration:' || count_registration.address, 1, '{}', '-infinity', clock_timestamp() + memory)
  on conflict on constraint attempts_pkey do update set
    failures = case when a.forgotten_at < clock_timestamp() then 1 else least(a.failures, most) + 1 end,
    forgotten_at = case when a.forgotten_at < clock_timestamp() then clock_timestamp() + memory else a.forgotten_at end
  returning * into counted;
  return case when counted.failures > most then profile.seconds_until(counted.forgotten_at) else 0 end;
end $$;

-- Finds the user whom a transfer names by email, as a login does. For functions of billing.
create or replace function profile.user_of_email_unchecked(normal_email text)
returns table (id uuid, registered_email text) language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select u.id, u.email from profile.users u where u.normal_email = user_of_email_unchecked.normal_email
$$;

-- Counts transfers that named an email without a user. A count ends an hour after its first transfer. The bucket of profile.attempts is
-- `recipients:<user>`. The rows are locked in the order of the users. For functions of billing.
create or replace function profile.count_unknown_recipients_unchecked(user_ids uuid[])
returns void language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  memory constant interval := '1 hour';
begin
  insert into profile.attempts as a (bucket, failures, in_progress, refused_until, forgotten_at)
  select 'recipients:' || u.id, count(*), '{}', '-infinity', clock_timestamp() + memory
  from unnest(user_ids) u (id) group by u.id order by u.id
  on conflict on constraint attempts_pkey do update set
    failures = case when a.forgotten_at < clock_timestamp() then 0 else a.failures end + excluded.failures,
    forgotten_at = case when a.forgotten_at < clock_timestamp() then excluded.forgotten_at else a.forgotten_at end;
end $$;

-- Returns the seconds for which a user may transfer no money, so that a user cannot look up which emails have users; 0 while the count
-- is below its limit. For functions of billing.
create or replace function profile.recipients_wait_unchecked(user_id uuid)
returns integer language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  unknown_recipients_max constant integer := 100;
begin
  return coalesce((
    select profile.seconds_until(a.forgotten_at) from profile.attempts a
    where a.bucket = 'recipients:' || recipients_wait_unchecked.user_id and a.failures >= unknown_recipients_max), 0);
end $$;

-- Returns the email of the other user of a transfer. For functions of billing.
create or replace function profile.email_of_user_unchecked(user_id uuid)
returns text language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select u.email from profile.users u where u.id = email_of_user_unchecked.user_id
$$;

grant usage on schema profile to "lotus:profile";
grant select, insert on profile.users to "lotus:profile";
grant select, insert, update, delete on profile.attempts to "lotus:profile";
grant execute on function profile.register, profile.count_failure, profile.seconds_until, profile.begin_login, profile.end_login,
  profile.count_registration to "lotus:profile";
