/** notification-requested. Words a notification and stores it, once. */
import { subscriber } from "#kernel/subscriber";
import { NotificationRequested } from "../../functions/notification/events.ts";
import { storeNotification } from "../../functions/notification/notification.ts";

export default subscriber({
  topic: "notification-requested",
  data: NotificationRequested,
  handle: ({ key, time, data }) => storeNotification(key, time, data),
});
