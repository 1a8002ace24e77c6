-- The topics that this service may publish.
delete from events.publications where service = 'billing';
insert into events.publications (service, topic) values ('billing', 'notification-requested'), ('billing', 'ledger-sealed');

-- Returns the hash of an entry. It depends on every column of the entry and of its transfer, and on the hash before it.
create or replace function billing.entry_hash(previous bytea, account_id uuid, number bigint, transfer_id uuid, kind text,
  debit_account uuid, credit_account uuid, amount bigint, balance_after bigint, reference uuid, created_at timestamptz)
returns bytea language sql stable parallel safe
return sha256(previous || convert_to(concat_ws('|', account_id, number, transfer_id, kind, debit_account, credit_account,
  amount, balance_after, reference, (extract(epoch from created_at) * 1000000)::bigint), 'UTF8'));

-- Returns the id of the transfer of a keyed request: RFC 9562 version 8, made of the SHA-256 of service, user and key.
-- A transfer with this id shows that the key was used, also after the relay has deleted the answer.
create or replace function billing.keyed_transfer_id(service text, user_id uuid, key text)
returns uuid language sql immutable parallel safe
return overlay(overlay(left(encode(sha256(convert_to(concat_ws('|', service, user_id, key), 'UTF8')), 'hex'), 32)
  placing '8' from 13) placing '8' from 17)::uuid;

-- Refuses a statement that changes the sum of all balances.
create or replace function billing.keep_sum_of_balances()
returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  difference numeric;
begin
  if tg_op = 'INSERT' then
    select sum(balance) into difference from inserted;
  else
    select coalesce((select sum(balance) from updated), 0) - coalesce((select sum(balance) from replaced), 0) into difference;
  end if;
  if difference <> 0 then
    raise integrity_constraint_violation
      using message = format('this statement changes the sum of all balances by %s minor units', difference);
  end if;
  return null;
end $$;
-- Refuses entries that leave a gap between themselves or after the account's last entry.
create or replace function billing.keep_entries_contiguous()
returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  gap uuid;
begin
  select i.account_id into gap from inserted i
  where i.number > 1 and not exists (
    select from billing.entries e where e.account_id = i.account_id and e.number = i.number - 1)
  limit 1;
  if found then
    raise integrity_constraint_violation using message = format('the entries of account %s have a gap', gap);
  end if;
  return null;
end $$;
-- `create or replace trigger` would lock its table against payments whenever this file changes. A changed trigger needs a new name.
do $$
begin
  if not exists (select from pg_trigger t where t.tgrelid = 'billing.accounts'::regclass and t.tgname = 'keep_sum_after_insert') then
    create trigger keep_sum_after_insert after insert on billing.accounts
      referencing new table as inserted for each statement execute function billing.keep_sum_of_balances();
  end if;
  if not exists (select from pg_trigger t where t.tgrelid = 'billing.accounts'::regclass and t.tgname = 'keep_sum_after_update') then
    create trigger keep_sum_after_update after update on billing.accounts
      referencing old table as replaced new table as updated for each statement execute function billing.keep_sum_of_balances();
  end if;
  if not exists (select from pg_trigger t where t.tgrelid = 'billing.entries'::regclass and t.tgname = 'keep_contiguous') then
    create trigger keep_contiguous after insert on billing.entries
      referencing new table as inserted for each statement execute function billing.keep_entries_contiguous();
  end if;
end $$;

-- Opens the accounts of users once, and settles the events that requested them. Without `waits` it leaves events unsettled that
-- another transaction has locked. Returns the position of each call whose event is settled.
create or replace function billing.open_accounts(waits boolean, user_ids uuid[], event_keys uuid[])
returns table ("position" integer) language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  skipped uuid[];
begin
  -- Inserts accounts in the order of their ids, each before its event is locked. billing.open_registered_unchecked does the same, so
  -- the two cannot deadlock.
  insert into billing.accounts (id, kind) select u.id, 'user' from unnest(user_ids) u (id) order by u.id on conflict do nothing;
  skipped := events.settle_many(waits, event_keys, 'billing-open-account');
  return query select (r.n - 1)::integer from unnest(event_keys) with ordinality r (id, n) where r.id <> all (skipped);
end $$;

-- Opens the account of a user, and settles the event that requested it. It does not check the caller's service, because a statement
-- of another service may open the account.
create or replace function billing.open_account(user_id uuid, event_key uuid)
returns void language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
  insert into billing.accounts (id, kind) values (open_account.user_id, 'user') on conflict do nothing;
  perform events.settle_unchecked(event_key, 'billing-open-account');
end $$;

-- Opens the missing accounts of users whose `user-registered` event is still in the outbox, so that a request does not wait for its
-- delivery. It opens them in the order of their ids, before the caller locks an account, so that two statements cannot deadlock.
create or replace function billing.open_registered_unchecked(user_ids uuid[])
returns void language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  missing uuid;
  registration jsonb;
begin
  for missing in
    select distinct u.id from unnest(user_ids) u (id)
    where u.id is not null and not exists (select from billing.accounts a where a.id = u.id) order by u.id
  loop
    registration := events.unsettled_unchecked(missing, 'user-registered', 'billing-open-account', 1) -> 0;
    if registration is not null then
      perform billing.open_account(missing, (registration -> 'event' ->> 'id')::uuid);
    end if;
  end loop;
end $$;

-- Moves money for calls of one kind, in their order. Only this function writes transfers and entries. The arrays are parallel: each
-- has one element for each call. `reference_ids` are the orders of charges and refunds. Each call has an outcome:
--   done, already-done (a refund that an earlier call made), insufficient-funds, balance-limit, account-not-open, unknown-recipient;
--   the element of `refusals`, when the calling function passed a reason to refuse the call;
--   idempotency-key-reused, idempotency-key-expired;
--   repeated: `recorded` is the answer to the first request with this key;
--   twin: call number `leader` of this statement has the same key, so both have one effect and one answer;
--   null, only without `waits`: another transaction has locked an account of this call, or of an earlier call of the same user.
-- It locks all accounts, decides in arrays in memory, and then writes each table with one statement.
create or replace function billing.move_unchecked(service text, kind text, waits boolean, user_ids uuid[], recipient_ids uuid[],
  amounts bigint[], reference_ids uuid[], keys text[], fingerprints text[], refusals text[],
  out outcomes text[], out balances bigint[], out recipient_balances bigint[], out moved_amounts bigint[],
  out times timestamptz[], out recorded jsonb[], out leaders integer[])
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  balance_max constant bigint := 999999999999999;
  calls constant integer := cardinality(user_ids);
  -- Deposits and refunds add to the account of the calling user; the other kinds take from it.
  sign constant bigint := case when kind in ('deposit', 'refund') then 1 else -1 end;
  system_kind constant text := case kind when 'deposit' then 'cash-in' when 'withdrawal' then 'cash-out'
    when 'charge' then 'revenue' when 'refund' then 'revenue' end;
  system_account uuid;
  system_change bigint := 0;
  began timestamptz;
  -- The locked accounts, and the effect of the calls on them.
  account_ids uuid[];
  account_balances bigint[];
  account_entries bigint[];
  account_hashes bytea[];
  account_changes bigint[];
  account_skipped boolean[];
  -- Facts about each call.
  keyed_ids uuid[];
  known_fingerprints text[];
  known_transfers boolean[];
  refunded_balances bigint[];
  -- The rows to write.
  transfer_ids uuid[];
  transfer_debits uuid[];
  transfer_credits uuid[];
  transfer_amounts bigint[];
  transfer_references uuid[];
  transfer_times timestamptz[];
  transfers integer := 0;
  entry_accounts uuid[];
  entry_numbers bigint[];
  entry_transfers uuid[];
  entry_amounts bigint[];
  entry_balances bigint[];
  entry_hashes bytea[];
  entries integer := 0;
  -- The call that the loop decides. `own`, `other` and `account` are positions in account_ids: `own` is the account of the calling
  -- user, `other` that of the recipient, and null without a recipient.
  amount bigint;
  own integer;
  other integer;
  account integer;
  change bigint;
  id uuid;
  debit uuid;
  credit uuid;
  reference uuid;
begin
  outcomes := array_fill(null::text, array[calls]);
  balances := array_fill(null::bigint, array[calls]);
  recipient_balances := balances;
  moved_amounts := amounts;
  times := array_fill(null::timestamptz, array[calls]);

  if exists (
    select from unnest(user_ids || recipient_ids) u (id)
    where u.id is not null and not exists (select from billing.accounts a where a.id = u.id)
  ) then
    perform billing.open_registered_unchecked(user_ids || recipient_ids);
  end if;

  -- All statements lock accounts in the order of their ids, so that two of them cannot deadlock.
  if waits then
    select array_agg(a.id), array_agg(a.balance), array_agg(a.entries), array_agg(a.last_hash)
    into account_ids, account_balances, account_entries, account_hashes
    from (
      select * from billing.accounts l where l.id = any(user_ids || recipient_ids) and l.kind = 'user'
      order by l.id for no key update
    ) a;
  else
    select array_agg(a.id), array_agg(a.balance), array_agg(a.entries), array_agg(a.last_hash)
    into account_ids, account_balances, account_entries, account_hashes
    from (
      select * from billing.accounts l where l.id = any(user_ids || recipient_ids) and l.kind = 'user'
      order by l.id for no key update skip locked
    ) a;
  end if;
  account_changes := array_fill(0::bigint, array[coalesce(cardinality(account_ids), 0)]);
  account_skipped := array_fill(false, array[coalesce(cardinality(account_ids), 0)]);

  -- Later than every seal that is visible now: these seals do not cover the transfers of this statement. See billing.begin_seal.
  select greatest(clock_timestamp(), max(s.moment)) into began from billing.seals s;

  -- An earlier request with the same key locked the same account. This query runs after the locks, so it sees the recorded answer.
  if array_remove(keys, null) <> '{}' then
    select array_agg(c.transfer_id order by c.n), array_agg(c.leader::integer order by c.n),
      array_agg(k.answer order by c.n), array_agg(k.fingerprint order by c.n),
      array_agg(exists (select from billing.transfers t where t.id = c.transfer_id) order by c.n)
    into keyed_ids, leaders, recorded, known_fingerprints, known_transfers
    from (
      select u.n, u.user_id, u.key,
        case when u.key is not null then billing.keyed_transfer_id(service, u.user_id, u.key) end as transfer_id,
        case when u.key is not null then min(u.n) over (partition by u.user_id, u.key) end as leader
      from unnest(user_ids, keys) with ordinality u (user_id, key, n)
    ) c
    left join events.idempotency_keys k
      on k.service = move_unchecked.service and k.user_id = c.user_id and k.key = c.key;
  end if;

  -- A refund returns the amount of the charge of the same order.
  if kind = 'refund' then
    select array_agg(c.amount order by u.n), array_agg(e.balance_after order by u.n)
    into moved_amounts, refunded_balances
    from unnest(user_ids, reference_ids) with ordinality u (user_id, reference_id, n)
    left join billing.transfers c on c.kind = 'charge' and c.reference = u.reference_id and c.debit_account = u.user_id
    left join billing.transfers r on r.kind = 'refund' and r.reference = u.reference_id and r.credit_account = u.user_id
    left join billing.entries e on e.transfer_id = r.id and e.account_id = u.user_id;
  end if;

  for i in 1..calls loop
    own := array_position(account_ids, user_ids[i]);
    if own is null then
      -- The account exists and is not in account_ids: another transaction has locked it.
      continue when not waits and exists (select from billing.accounts a where a.id = user_ids[i]);
      outcomes[i] := coalesce(refusals[i], 'account-not-open');
      continue;
    end if;
    -- The calls of one user keep their order: a skipped call skips the later calls of the same user.
    continue when account_skipped[own];
    amount := moved_amounts[i];
    balances[i] := account_balances[own];
    times[i] := began + i * interval '1 microsecond';

    if known_fingerprints[i] is not null then
      outcomes[i] := case when fingerprints[i] = known_fingerprints[i] then 'repeated' else 'idempotency-key-reused' end;
    elsif known_transfers[i] then
      outcomes[i] := 'idempotency-key-expired';
    elsif leaders[i] < i then
      outcomes[i] := case when fingerprints[i] = fingerprints[leaders[i]] then 'twin' else 'idempotency-key-reused' end;
    elsif refusals[i] is not null then
      outcomes[i] := refusals[i];
    elsif refunded_balances[i] is not null then
      outcomes[i] := 'already-done';
      balances[i] := refunded_balances[i];
    elsif kind = 'refund' and reference_ids[i] = any(transfer_references) then
      outcomes[i] := 'already-done';
      balances[i] := entry_balances[array_position(transfer_references, reference_ids[i])];
    elsif amount is null then
      raise 'order % of user % has no charge', reference_ids[i], user_ids[i];
    end if;
    continue when outcomes[i] is not null;

    other := null;
    if kind = 'transfer' then
      other := array_position(account_ids, recipient_ids[i]);
      if other is null then
        if not waits and exists (select from billing.accounts a where a.id = recipient_ids[i]) then
          account_skipped[own] := true;
          continue;
        end if;
        outcomes[i] := 'unknown-recipient';
        continue;
      end if;
    end if;
    if account_balances[own] + sign * amount < 0 then
      outcomes[i] := 'insufficient-funds';
      continue;
    end if;
    -- Without a recipient the second comparison is null, so the first one decides.
    if account_balances[own] + sign * amount > balance_max or account_balances[other] + amount > balance_max then
      outcomes[i] := 'balance-limit';
      continue;
    end if;

    -- Locks the first free row of the system account. When other statements have locked all rows, it waits for a random one.
    if system_account is null and other is null then
      select a.id into system_account from billing.accounts a where a.kind <> 'user' and a.kind = system_kind limit 1 for no key update skip locked;
      if not found then
        select a.id into system_account from billing.accounts a where a.kind <> 'user' and a.kind = system_kind
        order by random() limit 1 for no key update;
      end if;
    end if;

    id := coalesce(keyed_ids[i], events.uuid_v7());
    reference := coalesce(reference_ids[i], id);
    debit := case when sign < 0 then user_ids[i] else system_account end;
    credit := case when sign > 0 then user_ids[i] when other is null then system_account else recipient_ids[i] end;
    transfers := transfers + 1;
    transfer_ids[transfers] := id;
    transfer_debits[transfers] := debit;
    transfer_credits[transfers] := credit;
    transfer_amounts[transfers] := amount;
    transfer_references[transfers] := reference;
    transfer_times[transfers] := times[i];
    if other is null then system_change := system_change - sign * amount; end if;

    -- Writes the entry of the calling user, and then that of the recipient. System accounts have no entries.
    account := own;
    change := sign * amount;
    loop
      account_balances[account] := account_balances[account] + change;
      account_changes[account] := account_changes[account] + change;
      account_entries[account] := account_entries[account] + 1;
      account_hashes[account] := billing.entry_hash(account_hashes[account], account_ids[account], account_entries[account], id,
        kind, debit, credit, change, account_balances[account], reference, times[i]);
      entries := entries + 1;
      entry_accounts[entries] := account_ids[account];
      entry_numbers[entries] := account_entries[account];
      entry_transfers[entries] := id;
      entry_amounts[entries] := change;
      entry_balances[entries] := account_balances[account];
      entry_hashes[entries] := account_hashes[account];
      exit when other is null or account = other;
      account := other;
      change := amount;
    end loop;
    outcomes[i] := 'done';
    balances[i] := account_balances[own];
    recipient_balances[i] := account_balances[other];
  end loop;
  if transfers = 0 then return; end if;

  -- One statement updates the accounts of users and of the system, because a trigger compares the sums of balances before and after.
  -- The system account comes last. account_entries and account_hashes have no element for it, so it keeps both columns.
  if system_account is not null then
    account_ids := account_ids || system_account;
    account_changes := account_changes || system_change;
  end if;
  update billing.accounts a
  set balance = a.balance + account_changes[w.n], entries = coalesce(account_entries[w.n], a.entries),
    last_hash = coalesce(account_hashes[w.n], a.last_hash)
  from unnest(account_ids) with ordinality w (id, n)
  where a.id = w.id and (account_entries[w.n] is null or account_entries[w.n] > a.entries);
  insert into billing.transfers (id, kind, debit_account, credit_account, amount, reference, created_at)
  select transfer_ids[n], move_unchecked.kind, transfer_debits[n], transfer_credits[n], transfer_amounts[n], transfer_references[n],
    transfer_times[n]
  from generate_series(1, transfers) n;
  insert into billing.entries (account_id, number, transfer_id, amount, balance_after, hash)
  select entry_accounts[n], entry_numbers[n], entry_transfers[n], entry_amounts[n], entry_balances[n], entry_hashes[n]
  from generate_series(1, entries) n;
end $$;

-- Moves money for calls of one kind. Notifies the users of each movement, and of each refusal because of a balance. The recipients of
-- transfers are emails in normal form. `waits` and the outcomes are those of billing.move_unchecked. Returns a row for each call
-- whose accounts it could lock. Decision 0017 explains the settings of the plan.
create or replace function billing.move_money(kind text, waits boolean, user_ids uuid[], emails text[], recipients text[],
  amounts bigint[], keys text[], fingerprints text[], source text, traceparents text[])
returns table ("position" integer, answer jsonb, emitted jsonb)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off as $$
declare
  calls constant integer := cardinality(user_ids);
  recipient_ids uuid[] := array_fill(null::uuid, array[calls]);
  recipient_emails text[];
  waits_seconds integer[];
  refusals text[] := array_fill(null::text, array[calls]);
  outcomes text[];
  balances bigint[];
  recipient_balances bigint[];
  times timestamptz[];
  recorded jsonb[];
  leaders integer[];
  answers jsonb[] := array_fill(null::jsonb, array[calls]);
  -- The answers to record for keyed requests, and the data of the notifications. A null records no answer or sends no notification.
  effects jsonb[] := answers;
  facts jsonb[] := answers;
  recipient_facts jsonb[] := answers;
  events_of_users jsonb[];
  events_of_recipients jsonb[];
  outcome text;
begin
  if kind is null or kind not in ('deposit', 'withdrawal', 'transfer') then
    raise insufficient_privilege using message = format('billing.move_money moves no %s', kind);
  end if;
  if kind = 'transfer' then
    -- The wait is checked first, so that the answer does not reveal whether the email has a user.
    select array_agg(u.id order by r.n), array_agg(u.registered_email order by r.n), array_agg(w.seconds order by r.n),
      array_agg(case when w.seconds > 0 then 'too-many-attempts' when u.id is null then 'unknown-recipient'
        when u.id = r.user_id then 'own-account' end order by r.n)
    into recipient_ids, recipient_emails, waits_seconds, refusals
    from unnest(recipients, user_ids) with ordinality r (email, user_id, n)
    left join lateral profile.user_of_email_unchecked(r.email) u on true
    cross join lateral profile.recipients_wait_unchecked(r.user_id) w (seconds);
  end if;

  select m.outcomes, m.balances, m.recipient_balances, m.times, m.recorded, m.leaders
  into outcomes, balances, recipient_balances, times, recorded, leaders
  from billing.move_unchecked('billing', kind, waits, user_ids, recipient_ids, amounts, array_fill(null::uuid, array[calls]),
    keys, fingerprints, refusals) m;

  for i in 1..calls loop
    outcome := outcomes[i];
    if outcome = 'repeated' then answers[i] := recorded[i];
    elsif outcome = 'twin' then answers[i] := answers[leaders[i]];
    elsif outcome = 'too-many-attempts' then
      answers[i] := jsonb_build_object('outcome', outcome, 'wait', waits_seconds[i]);
    elsif outcome is not null then answers[i] := jsonb_build_object('outcome', outcome, 'balance', balances[i]);
    end if;
    continue when outcome is null or outcome not in ('done', 'insufficient-funds', 'balance-limit');
    effects[i] := answers[i];
    if kind = 'transfer' then
      facts[i] := jsonb_build_object('userId', user_ids[i], 'recipient', emails[i],
        'kind', case outcome when 'done' then 'transfer-sent' else 'transfer-refused' end,
        'amount', events.decimal(amounts[i]), 'balance', events.decimal(balances[i]), 'to', recipient_emails[i]);
      if outcome = 'done' then
        recipient_facts[i] := jsonb_build_object('userId', recipient_ids[i], 'recipient', recipient_emails[i],
          'kind', 'transfer-received', 'amount', events.decimal(amounts[i]),
          'balance', events.decimal(recipient_balances[i]), 'from', emails[i]);
      end if;
    else
      facts[i] := jsonb_build_object('userId', user_ids[i], 'recipient', emails[i],
        'kind', kind || case outcome when 'done' then '-done' else '-refused' end,
        'amount', events.decimal(amounts[i]), 'balance', events.decimal(balances[i]));
    end if;
  end loop;

  if 'unknown-recipient' = any (outcomes) then
    perform profile.count_unknown_recipients_unchecked(array(
      select r.user_id from unnest(user_ids, outcomes) r (user_id, outcome) where r.outcome = 'unknown-recipient'));
  end if;
  perform events.record_answers_unchecked('billing', user_ids, keys, fingerprints, effects);
  events_of_users := events.emit_many('notification-requested', 1, source, user_ids, traceparents, times, facts);
  if kind = 'transfer' then
    events_of_recipients := events.emit_many('notification-requested', 1, source, recipient_ids, traceparents, times,
      recipient_facts);
  end if;
  for i in 1..calls loop
    continue when answers[i] is null;
    "position" := i - 1;
    answer := answers[i];
    emitted := to_jsonb(array_remove(array[events_of_users[i], events_of_recipients[i]], null));
    return next;
  end loop;
end $$;

-- Returns the balance of a user in minor units. Opens the account first when the registration is still in the outbox. Null: the user
-- has no account.
create or replace function billing.balance(user_id uuid)
returns bigint language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  found_balance bigint;
begin
  select a.balance into found_balance from billing.accounts a where a.id = balance.user_id and a.kind = 'user';
  if not found then
    perform billing.open_registered_unchecked(array[balance.user_id]);
    select a.balance into found_balance from billing.accounts a where a.id = balance.user_id and a.kind = 'user';
  end if;
  return found_balance;
end $$;

-- Returns a page of a user's entries, newest first, each with its transfer and the email of the other user of a transfer.
create or replace function billing.history(user_id uuid, before bigint, most integer)
returns table (number bigint, kind text, amount bigint, balance_after bigint, counterparty text, reference uuid,
  created_at timestamptz)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select e.number, t.kind, e.amount, e.balance_after,
    case t.kind when 'transfer' then profile.email_of_user_unchecked(
      case when e.amount < 0 then t.credit_account else t.debit_account end) end,
    t.reference, t.created_at
  from billing.entries e join billing.transfers t on t.id = e.transfer_id
  where e.account_id = history.user_id and e.number < history.before
  order by e.number desc limit history.most
$$;

-- Returns the hash with which the seal of a moment begins.
create or replace function billing.seal_start(previous bytea, moment timestamptz)
returns bytea language sql immutable parallel safe
return sha256(previous || convert_to(concat('seal|', (extract(epoch from moment) * 1000000)::bigint), 'UTF8'));

-- Returns the hash of a seal that covers one more entry.
create or replace function billing.seal_hash(state bytea, account_id uuid, number bigint, hash bytea)
returns bytea language sql immutable parallel safe
return sha256(state || convert_to(concat_ws('|', account_id, number, encode(hash, 'hex')), 'UTF8'));

-- Recomputes the hash of a stored seal from the rows that it covers. Only the owner may call it.
create or replace function billing.recomputed_seal(previous bytea, moment timestamptz)
returns bytea language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  state bytea := billing.seal_start(previous, moment);
  covered record;
begin
  for covered in
    select e.account_id, e.number, e.hash from billing.sealed_entries e where e.moment = recomputed_seal.moment order by e.account_id
  loop
    state := billing.seal_hash(state, covered.account_id, covered.number, covered.hash);
  end loop;
  return state;
end $$;

-- Begins a seal and returns its moment, or returns the moment of a seal that an earlier run has not completed. A transaction that sees
-- the seal gives its transfers later times. billing.continue_seal waits for the transactions that do not see it.
create or replace function billing.begin_seal()
returns timestamptz language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  previous billing.seals;
  moment timestamptz;
begin
  -- Without the lock, two runs could begin two seals after the same one. The lock does not block payments, which only read the table.
  lock table billing.seals in share row exclusive mode;
  select * into previous from billing.seals s order by s.moment desc limit 1;
  if found and previous.sealed_at is null then return previous.moment; end if;
  moment := greatest(clock_timestamp(), previous.moment + interval '1 microsecond');
  insert into billing.seals (moment, hash) values (moment, billing.seal_start(coalesce(previous.hash, ''), moment));
  return moment;
end $$;

-- Continues a seal by at most `most` accounts. Returns one of these states:
--   {"state":"waiting"}: a transaction that may write an earlier entry is running;
--   {"state":"sealing"}: there are more accounts; {"state":"ended"}: another run has completed the seal;
--   {"state":"sealed","hash":…,"accounts":…,"event":…}: the seal is complete, and its event is in the outbox.
create or replace function billing.continue_seal(moment timestamptz, most integer, source text, traceparent text)
returns jsonb language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  seal billing.seals;
  page uuid[];
  last record;
begin
  select * into seal from billing.seals s where s.moment = continue_seal.moment and s.sealed_at is null for update;
  if not found then return jsonb_build_object('state', 'ended'); end if;
  -- A payment locks its accounts, and so has a transaction id, before it reads the seals. This transaction follows the one that began
  -- the seal. Every payment that did not see the seal therefore has a lower id.
  if seal.horizon is null then
    update billing.seals s set horizon = pg_current_xact_id() where s.moment = seal.moment;
    return jsonb_build_object('state', 'waiting');
  end if;
  if pg_snapshot_xmin(pg_current_snapshot()) < seal.horizon then return jsonb_build_object('state', 'waiting'); end if;

  page := array(
    select a.id from billing.accounts a
    where a.kind = 'user' and a.id > coalesce(seal.last_account, '00000000-0000-0000-0000-000000000000')
    order by a.id limit most);
  for last in
    select a.id, e.number, e.hash
    from unnest(page) p (id) join billing.accounts a on a.id = p.id
    cross join lateral (select coalesce(max(l.number), 0) as number from billing.sealed_entries l where l.account_id = a.id) l
    cross join lateral (
      select n.number, n.hash from billing.entries n join billing.transfers t on t.id = n.transfer_id
      where n.account_id = a.id and n.number > l.number and t.created_at <= seal.moment
      order by n.number desc limit 1) e
    where a.entries > l.number
    order by a.id
  loop
    insert into billing.sealed_entries (moment, account_id, number, hash) values (seal.moment, last.id, last.number, last.hash);
    seal.hash := billing.seal_hash(seal.hash, last.id, last.number, last.hash);
    seal.accounts := seal.accounts + 1;
  end loop;

  if cardinality(page) = most then
    update billing.seals s set hash = seal.hash, accounts = seal.accounts, last_account = page[most]
    where s.moment = seal.moment;
    return jsonb_build_object('state', 'sealing');
  end if;
  update billing.seals s set hash = seal.hash, accounts = seal.accounts, last_account = null, sealed_at = clock_timestamp()
  where s.moment = seal.moment;
  return jsonb_build_object('state', 'sealed', 'hash', encode(seal.hash, 'hex'), 'accounts', seal.accounts,
    'event', (events.emit_many('ledger-sealed', 1, source, array['00000000-0000-0000-0000-000000000000'::uuid],
      array[traceparent], array[clock_timestamp()], array[jsonb_build_object(
        'moment', to_char(seal.moment at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'hash', encode(seal.hash, 'hex'), 'accounts', seal.accounts)]))[1]);
end $$;

-- Deletes the published event of a seal, because no subscriber of Lotus settles it.
create or replace function billing.forget_published_seal(event_key uuid)
returns void language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
  delete from events.outbox o where o.id = event_key and o.topic = 'ledger-sealed' and o.awaiting = '{}'
$$;

-- Returns the figures of the ledger that the relay reports as metrics. `seal_seconds` is the age of the last seal, null without a seal.
-- `trial_balance` is the sum of all balances in minor units, and must be 0.
create or replace function billing.figures(out seal_seconds double precision, out trial_balance numeric)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select (select extract(epoch from clock_timestamp() - max(s.sealed_at))::double precision from billing.seals s),
    coalesce(sum(a.balance), 0)
  from billing.accounts a
$$;

grant usage on schema billing to "lotus:billing", "lotus:events";
grant execute on function billing.figures to "lotus:events";
grant execute on function billing.open_accounts, billing.move_money, billing.balance, billing.history, billing.begin_seal,
  billing.continue_seal, billing.forget_published_seal to "lotus:billing";
-- Only processes from before the migration call it directly.
grant execute on function billing.open_account to "lotus:billing";
