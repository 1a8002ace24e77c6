/** notification-requested. Writes the text of a notification and stores it once. */
import { subscriber } from "#kernel/subscriber";
import { NotificationRequested } from "../../functions/notification/events.ts";
import { storeNotification } from "../../functions/notification/notification.ts";

export default subscriber({
  topic: "notification-requested",
  data: NotificationRequested,
  async handle(requested) {
    await storeNotification(requested);
  },
});
