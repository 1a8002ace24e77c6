-- The topics that this service may publish.
delete from events.publications where service = 'order';
insert into events.publications (service, topic) values ('order', 'notification-requested');

-- Places orders: each charges its user the price of a subscription, or the given price. Notifies the users of payments and refusals.
-- The arrays are parallel: each has one element for each call. `waits` and the outcomes are those of billing.move_unchecked.
-- Returns a row for each call whose account it could lock. Decision 0017 explains the settings of the plan.
create or replace function "order".place(waits boolean, user_ids uuid[], emails text[], keys text[], fingerprints text[],
  source text, traceparents text[], subscription_ids integer[], prices bigint[])
returns table ("position" integer, answer jsonb, emitted jsonb)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off as $$
declare
  calls constant integer := cardinality(user_ids);
  known_ids integer[];
  known_prices bigint[];
  costs bigint[] := prices;
  order_ids uuid[] := array_fill(null::uuid, array[calls]);
  statuses text[] := array_fill(null::text, array[calls]);
  refusals text[] := statuses;
  outcomes text[];
  balances bigint[];
  times timestamptz[];
  recorded jsonb[];
  leaders integer[];
  answers jsonb[] := array_fill(null::jsonb, array[calls]);
  -- The answers to record for keyed requests, and the data of the notifications. A null records no answer or sends no notification.
  effects jsonb[] := answers;
  facts jsonb[] := answers;
  envelopes jsonb[];
  outcome text;
begin
  select array_agg(s.id), array_agg(s.price) into known_ids, known_prices
  from "order".subscriptions s where s.id = any(subscription_ids);
  for i in 1..calls loop
    order_ids[i] := events.uuid_v7();
    if subscription_ids[i] is not null then costs[i] := known_prices[array_position(known_ids, subscription_ids[i])]; end if;
    if costs[i] is null then refusals[i] := 'unknown-subscription'; end if;
  end loop;

  select m.outcomes, m.balances, m.times, m.recorded, m.leaders into outcomes, balances, times, recorded, leaders
  from billing.move_unchecked('order', 'charge', waits, user_ids, array_fill(null::uuid, array[calls]), costs, order_ids,
    keys, fingerprints, refusals) m;

  for i in 1..calls loop
    outcome := outcomes[i];
    if outcome in ('done', 'insufficient-funds') then
      statuses[i] := case outcome when 'done' then 'paid' else 'refused' end;
      answers[i] := jsonb_build_object('outcome', outcome, 'balance', balances[i], 'order', jsonb_build_object(
        'id', order_ids[i], 'subscription_id', subscription_ids[i], 'price', costs[i], 'status', statuses[i],
        'created_at', times[i]));
      effects[i] := answers[i];
      facts[i] := jsonb_build_object('userId', user_ids[i], 'recipient', emails[i], 'kind', 'order-' || statuses[i],
        'orderId', order_ids[i], 'amount', events.decimal(costs[i]), 'balance', events.decimal(balances[i]));
    elsif outcome = 'repeated' then answers[i] := recorded[i];
    elsif outcome = 'twin' then answers[i] := answers[leaders[i]];
    elsif outcome is not null then answers[i] := jsonb_build_object('outcome', outcome);
    end if;
  end loop;

  insert into "order".orders (id, user_id, subscription_id, price, status, created_at)
  select order_ids[i], user_ids[i], subscription_ids[i], costs[i], statuses[i], times[i]
  from generate_series(1, calls) i where statuses[i] is not null;
  perform events.record_answers_unchecked('order', user_ids, keys, fingerprints, effects);
  envelopes := events.emit_many('notification-requested', 1, source, user_ids, traceparents, times, facts);
  for i in 1..calls loop
    continue when answers[i] is null;
    "position" := i - 1;
    answer := answers[i];
    emitted := case when envelopes[i] is null then '[]' else jsonb_build_array(envelopes[i]) end;
    return next;
  end loop;
end $$;

-- Refunds orders in full, each once. Notifies the users. The parameters and the rows are those of "order".place.
create or replace function "order".refund(waits boolean, user_ids uuid[], emails text[], keys text[], fingerprints text[],
  source text, traceparents text[], order_ids uuid[])
returns table ("position" integer, answer jsonb, emitted jsonb)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off as $$
declare
  calls constant integer := cardinality(user_ids);
  refunded uuid[] := '{}';
  orders jsonb[];
  refusals text[];
  outcomes text[];
  balances bigint[];
  amounts bigint[];
  times timestamptz[];
  recorded jsonb[];
  leaders integer[];
  answers jsonb[] := array_fill(null::jsonb, array[calls]);
  -- The answers to record for keyed requests, and the data of the notifications. A null records no answer or sends no notification.
  effects jsonb[] := answers;
  facts jsonb[] := answers;
  envelopes jsonb[];
  outcome text;
begin
  -- This query needs no lock: the user and the price of an order never change, and a refused order stays refused.
  -- `orders` already shows the status after the refund. A null in `refusals` means that the order was paid.
  select array_agg(jsonb_build_object('id', o.id, 'subscription_id', o.subscription_id, 'price', o.price, 'status', 'refunded',
      'created_at', o.created_at) order by r.n),
    array_agg(case when o.id is null then 'unknown-order' when o.status = 'refused' then 'order-not-paid' end order by r.n)
  into orders, refusals
  from unnest(order_ids, user_ids) with ordinality r (order_id, user_id, n)
  left join "order".orders o on o.id = r.order_id and o.user_id = r.user_id;

  select m.outcomes, m.balances, m.moved_amounts, m.times, m.recorded, m.leaders
  into outcomes, balances, amounts, times, recorded, leaders
  from billing.move_unchecked('order', 'refund', waits, user_ids, array_fill(null::uuid, array[calls]),
    array_fill(null::bigint, array[calls]), order_ids, keys, fingerprints, refusals) m;

  for i in 1..calls loop
    outcome := outcomes[i];
    if outcome in ('done', 'already-done') then
      answers[i] := jsonb_build_object('outcome', 'done', 'balance', balances[i], 'order', orders[i]);
      effects[i] := answers[i];
    elsif outcome = 'balance-limit' then
      answers[i] := jsonb_build_object('outcome', outcome, 'balance', balances[i]);
      effects[i] := answers[i];
    elsif outcome = 'repeated' then answers[i] := recorded[i];
    elsif outcome = 'twin' then answers[i] := answers[leaders[i]];
    elsif outcome is not null then answers[i] := jsonb_build_object('outcome', outcome);
    end if;
    if outcome = 'done' then refunded := refunded || order_ids[i]; end if;
    if outcome in ('done', 'balance-limit') then
      facts[i] := jsonb_build_object('userId', user_ids[i], 'recipient', emails[i],
        'kind', case outcome when 'done' then 'order-refunded' else 'order-refund-refused' end,
        'orderId', order_ids[i], 'amount', events.decimal(amounts[i]), 'balance', events.decimal(balances[i]));
    end if;
  end loop;

  update "order".orders o set status = 'refunded' where o.id = any(refunded);
  perform events.record_answers_unchecked('order', user_ids, keys, fingerprints, effects);
  envelopes := events.emit_many('notification-requested', 1, source, user_ids, traceparents, times, facts);
  for i in 1..calls loop
    continue when answers[i] is null;
    "position" := i - 1;
    answer := answers[i];
    emitted := case when envelopes[i] is null then '[]' else jsonb_build_array(envelopes[i]) end;
    return next;
  end loop;
end $$;

grant usage on schema "order" to "lotus:order";
grant select on "order".subscriptions, "order".orders to "lotus:order";
grant execute on function "order".place, "order".refund to "lotus:order";
