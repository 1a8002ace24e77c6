-- The topics that this service may publish.
delete from events.publications where service = 'billing';
insert into events.publications (service, topic) values ('billing', 'notification-requested');

-- The hash of a transfer covers all of its columns and the hash of the one before it in the same account.
create or replace function billing.transfer_hash(previous bytea, t billing.transfers)
returns bytea language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
  select sha256(previous || convert_to(concat_ws('|', t.account_id, t.number, t.kind, t.debit_account, t.credit_account,
    t.amount, t.balance_after, coalesce(t.reference::text, '-'),
    (extract(epoch from t.created_at) * 1000000)::bigint), 'UTF8'))
$$;

-- Opens the account of a user, once, and settles the event that asked for it.
create or replace function billing.open_account(user_id uuid, event_key uuid)
returns void language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  insert into billing.accounts (id, kind) values (open_account.user_id, 'user') on conflict do nothing;
  perform events.settle_unchecked(event_key, 'billing-open-account');
end $$;

-- Locks the account of a user. One that is not open yet, but whose registration is on its way, is opened here and now:
-- nobody waits for an event to be delivered. No row: there is no such user.
create or replace function billing.lock_account(user_id uuid)
returns setof billing.accounts language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  pending jsonb;
begin
  return query select * from billing.accounts a where a.id = user_id and a.kind = 'user' for no key update;
  if not found then
    pending := events.unsettled_unchecked(user_id, 'user-registered', 'billing-open-account', 1) -> 0;
    if pending is not null then
      perform billing.open_account(user_id, (pending -> 'event' ->> 'id')::uuid);
    end if;
    -- Also when nothing was pending: a trigger may have opened the account since this transaction looked for it.
    return query select * from billing.accounts a where a.id = user_id and a.kind = 'user' for no key update;
  end if;
end $$;

-- The one place that moves money. A refusal is an outcome: insufficient-funds, balance-limit, account-not-open.
create or replace function billing.transfer_unchecked(user_id uuid, kind text, amount bigint, reference uuid,
  out outcome text, out balance bigint)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  a billing.accounts;
  t billing.transfers;
begin
  select * into a from billing.lock_account(transfer_unchecked.user_id);
  if not found then
    outcome := 'account-not-open';
    return;
  end if;
  balance := a.balance;
  t.balance_after := a.balance + case transfer_unchecked.kind when 'deposit' then amount else -amount end;
  if t.balance_after < 0 then
    outcome := 'insufficient-funds';
    return;
  end if;
  if t.balance_after > 999999999999999 then
    outcome := 'balance-limit';
    return;
  end if;
  t.account_id := a.id;
  t.number := a.transfers + 1;
  t.kind := transfer_unchecked.kind;
  t.debit_account := case transfer_unchecked.kind when 'deposit' then '00000000-0000-0000-0000-000000000001'::uuid else a.id end;
  t.credit_account := case transfer_unchecked.kind when 'deposit' then a.id
    when 'withdrawal' then '00000000-0000-0000-0000-000000000002'::uuid
    else '00000000-0000-0000-0000-000000000003'::uuid end;
  t.amount := transfer_unchecked.amount;
  t.reference := transfer_unchecked.reference;
  t.created_at := clock_timestamp();
  t.hash := billing.transfer_hash(a.last_hash, t);
  insert into billing.transfers (account_id, number, kind, debit_account, credit_account, amount, balance_after, reference,
    created_at, hash)
  values (t.account_id, t.number, t.kind, t.debit_account, t.credit_account, t.amount, t.balance_after, t.reference,
    t.created_at, t.hash);
  update billing.accounts b set balance = t.balance_after, transfers = t.number, last_hash = t.hash where b.id = a.id;
  outcome := 'done';
  balance := t.balance_after;
end $$;

-- What another service may do: charge a user for something it names by `reference`.
create or replace function billing.charge(user_id uuid, amount bigint, reference uuid, out outcome text, out balance bigint)
language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
  select * from billing.transfer_unchecked(user_id, 'charge', amount, reference)
$$;

-- Puts money on an account (deposit) or takes it off (withdrawal), and tells the user of the outcome, good or bad.
create or replace function billing.move_money(user_id uuid, email text, kind text, amount bigint, key text, fingerprint text,
  source text, traceparent text)
returns table (answer jsonb, emitted jsonb) language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  moved record;
begin
  if kind is null or kind not in ('deposit', 'withdrawal') then
    raise insufficient_privilege using message = format('%s is not a movement of money that a user may ask for', kind);
  end if;
  answer := events.begin_request(user_id, key, fingerprint);
  if answer is not null then
    emitted := '[]';
    return next;
    return;
  end if;
  select * into moved from billing.transfer_unchecked(user_id, kind, amount, null);
  answer := jsonb_build_object('outcome', moved.outcome, 'balance', moved.balance);
  emitted := '[]';
  if moved.outcome <> 'account-not-open' then
    emitted := jsonb_build_array(events.emit('notification-requested', 1, source, user_id, traceparent, jsonb_build_object(
      'userId', user_id, 'recipient', email,
      'kind', kind || case moved.outcome when 'done' then '-done' else '-refused' end,
      'amount', events.decimal(amount), 'balance', events.decimal(moved.balance))));
  end if;
  perform events.end_request(user_id, key, answer);
  return next;
end $$;

-- The balance of a user in minor units; null when there is no account.
create or replace function billing.balance(user_id uuid)
returns bigint language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  found_balance bigint;
begin
  select a.balance into found_balance from billing.accounts a where a.id = user_id and a.kind = 'user';
  if not found then
    select a.balance into found_balance from billing.lock_account(user_id) a;
  end if;
  return found_balance;
end $$;

grant usage on schema billing to "lotus:billing", "lotus:order";
-- Read only: money moves through the functions above, and through nothing else.
grant select on billing.accounts, billing.transfers to "lotus:billing";
grant execute on function billing.open_account, billing.move_money, billing.balance, billing.transfer_hash to "lotus:billing";
grant execute on function billing.charge to "lotus:order";
