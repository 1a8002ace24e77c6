-- The relay deletes old notifications. Rows are inserted almost in the order of their times, so a BRIN index is enough, and small.
create index notifications_by_age on notification.notifications using brin (created_at);
