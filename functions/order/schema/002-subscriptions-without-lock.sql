-- The foreign key made every payment lock the row of its subscription, and concurrent payments share that lock in a multixact.
-- "order".place reads the price from the subscription, and subscriptions are never deleted.
alter table "order".orders drop constraint orders_subscription_id_fkey;
