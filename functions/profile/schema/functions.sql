-- The topics that this service may publish.
delete from events.publications where service = 'profile';
insert into events.publications (service, topic) values ('profile', 'user-registered'), ('profile', 'notification-requested');

-- Creates a user and both events that tell of it. `created` is null when the email is taken.
create or replace function profile.register(email text, username text, password_hash text, source text, traceparent text)
returns table (created jsonb, emitted jsonb) language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  u profile.users;
begin
  insert into profile.users (id, email, username, password_hash)
  values (events.uuid_v7(), register.email, register.username, register.password_hash)
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

-- Counts one attempt before the password is looked at, so that guesses made at the same time are all counted.
create or replace function profile.count_attempt(bucket text, most integer, window_length interval)
returns integer language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  counted profile.login_attempts;
begin
  insert into profile.login_attempts as a (bucket, attempts, window_ends_at)
  values (count_attempt.bucket, 1, clock_timestamp() + window_length)
  on conflict on constraint login_attempts_pkey do update set
    attempts = case when a.window_ends_at < clock_timestamp() then 1 else least(a.attempts + 1, most + 1) end,
    window_ends_at = case when a.window_ends_at < clock_timestamp() then excluded.window_ends_at else a.window_ends_at end
  returning * into counted;
  if counted.attempts <= most then return 0; end if;
  return greatest(1, ceil(extract(epoch from counted.window_ends_at - clock_timestamp()))::integer);
end $$;

-- Opens a login: the seconds to wait when there were too many attempts, else the user, where there is one.
create or replace function profile.begin_login(email text, address text, most_per_account integer, most_per_address integer,
  window_length interval)
returns table (retry_after_seconds integer, id uuid, user_email text, password_hash text)
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  account_wait integer := 0;
  address_wait integer;
begin
  -- The address before the account, here and in end_login: two logins never wait for each other. And an address that is
  -- shut out shuts out no more accounts.
  address_wait := profile.count_attempt('address:' || address, most_per_address, window_length);
  if address_wait = 0 then
    account_wait := profile.count_attempt('account:' || lower(begin_login.email), most_per_account, window_length);
  end if;
  -- Last: what it locks, it locks without waiting, and waits for nothing afterwards.
  delete from profile.login_attempts a using (
    select o.ctid from profile.login_attempts o where o.window_ends_at < clock_timestamp() limit 10 for update skip locked
  ) old where a.ctid = old.ctid;
  return query
    select greatest(account_wait, address_wait), u.id, u.email, u.password_hash
    from (select 1) one left join profile.users u
      on lower(u.email) = lower(begin_login.email) and greatest(account_wait, address_wait) = 0;
end $$;

-- A login that succeeded is no attempt at guessing.
create or replace function profile.end_login(email text, address text)
returns void language sql volatile set search_path = pg_catalog, pg_temp as $$
  update profile.login_attempts a set attempts = greatest(a.attempts - 1, 0)
  where a.bucket = 'address:' || end_login.address;
  delete from profile.login_attempts a where a.bucket = 'account:' || lower(end_login.email);
$$;

grant usage on schema profile to "lotus:profile";
grant select, insert on profile.users to "lotus:profile";
grant select, insert, update, delete on profile.login_attempts to "lotus:profile";
grant execute on function profile.register, profile.count_attempt, profile.begin_login, profile.end_login to "lotus:profile";
