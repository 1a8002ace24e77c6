-- What each role calls itself, and no more: what a security definer function calls for it, it need not be allowed. `bury` is for the
-- services whose triggers may meet an event that they can never handle.
revoke execute on function events.emit, events.envelope, events.uuid_v7, events.decimal, events.settle, events.unsettled,
  events.bury, events.begin_request, events.end_request
  from profile, billing, "order", notification, events;
grant execute on function events.emit, events.uuid_v7 to profile;
grant execute on function events.emit, events.uuid_v7, events.decimal, events.begin_request, events.end_request to "order";
grant execute on function events.settle, events.unsettled to notification;
grant execute on function events.bury to billing, notification, events;
-- `npm run dead-letters` works as the owner.
revoke execute on function events.replay from events;
revoke select, delete on events.dead_letters from events;
