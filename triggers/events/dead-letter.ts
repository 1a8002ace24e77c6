/** The dead-letter sink of the sources: moves undeliverable events to the dead letters, unless the relay publishes them again. */

import { PUBLISH_ATTEMPTS_MAX } from "#kernel/limits";
import { log } from "#kernel/log";
import { moveToDeadLetters, subscriber } from "#kernel/subscriber";

/** Returns the function that did not accept the event: the first label of the host in `knativeerrordest`. */
function failedFunction(url: string | undefined): string {
  if (url === undefined || !URL.canParse(url)) return "unknown";
  return new URL(url).hostname.split(".")[0] ?? "unknown";
}

export default subscriber({
  deadLetters: true,
  scale: { maxPods: 2, connections: 2 },
  async handle({ attributes, ...delivery }) {
    const { knativeerrordest, knativeerrorcode, knativeerrordata, ...original } = attributes;
    const answer = Buffer.from(knativeerrordata ?? "", "base64").toString("utf8");
    const reason =
      knativeerrorcode === undefined
        ? "Every delivery failed: the function did not answer."
        : `Every delivery failed: the function answered ${knativeerrorcode}. ${answer}`.trim();
    const undelivered = { ...delivery, attributes: original, subscriber: failedFunction(knativeerrordest) };
    if (await moveToDeadLetters(undelivered, reason, PUBLISH_ATTEMPTS_MAX)) return;
    log("warning", "an event was not delivered: the relay publishes it again, unless it is settled", {
      event: attributes.id ?? "",
      reason,
    });
  },
});
