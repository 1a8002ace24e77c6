-- The topics that this service may publish.
delete from events.publications where service = 'order';
insert into events.publications (service, topic) values ('order', 'notification-requested');

-- Places an order for a subscription, or for a price of the caller's: charges the account, records the order, and tells the
-- user of the outcome. One transaction; a refusal is an outcome.
create or replace function "order".place(user_id uuid, email text, subscription_id integer, price bigint, key text, fingerprint text,
  source text, traceparent text)
returns table (answer jsonb, emitted jsonb) language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  o "order".orders;
  charged record;
begin
  emitted := '[]';
  answer := events.begin_request(place.user_id, key, fingerprint);
  if answer is not null then
    return next;
    return;
  end if;
  o.price := place.price;
  if place.subscription_id is not null then
    select s.price into o.price from "order".subscriptions s where s.id = place.subscription_id;
  end if;
  if o.price is null then
    answer := jsonb_build_object('outcome', 'unknown-subscription');
  else
    o.id := events.uuid_v7();
    select * into charged from billing.charge(place.user_id, o.price, o.id);
    answer := jsonb_build_object('outcome', charged.outcome, 'balance', charged.balance);
    if charged.outcome <> 'account-not-open' then
      o.user_id := place.user_id;
      o.subscription_id := place.subscription_id;
      o.status := case charged.outcome when 'done' then 'paid' else 'refused' end;
      o.created_at := clock_timestamp();
      insert into "order".orders (id, user_id, subscription_id, price, status, created_at)
      values (o.id, o.user_id, o.subscription_id, o.price, o.status, o.created_at);
      answer := answer || jsonb_build_object('order', to_jsonb(o));
      emitted := jsonb_build_array(events.emit('notification-requested', 1, source, place.user_id, traceparent,
        jsonb_build_object('userId', place.user_id, 'recipient', email, 'kind', 'order-' || o.status, 'orderId', o.id,
          'amount', events.decimal(o.price), 'balance', events.decimal(charged.balance))));
    end if;
  end if;
  perform events.end_request(place.user_id, key, answer);
  return next;
end $$;

grant usage on schema "order" to "lotus:order";
grant select on "order".subscriptions to "lotus:order";
grant select, insert on "order".orders to "lotus:order";
grant execute on function "order".place to "lotus:order";
