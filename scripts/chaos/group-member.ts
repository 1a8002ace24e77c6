/** A foreign member of a consumer group. It receives records and does not handle them. */
import { randomUUID } from "node:crypto";
import { kafkaClient } from "#kernel/kafka";
import { asAdmin } from "../kafka/admin.ts";

/**
 * The limits of KafkaSource. A rebalance waits for its slowest member, for as long as that member permits: with the defaults of
 * kafkajs, one lost member stops the group of Lotus for a minute.
 */
const SESSION_MILLISECONDS = 6_000;
const REBALANCE_MILLISECONDS = 10_000;
const HEARTBEAT_MILLISECONDS = 1_000;

export interface GroupMember {
  /**
   * Leaves the group.
   * @throws {Error} a sentence, while the group still contains the member; call it again
   */
  leave(): Promise<void>;
}

/**
 * Joins a consumer group.
 * @param commits commits offset 0 for its partitions, so that the other members begin again at the first record
 */
export async function joinGroup(
  bootstrap: readonly string[],
  groupId: string,
  topics: readonly string[],
  commits: boolean,
): Promise<GroupMember> {
  // Each member of a group shows the id of its client, also a member whose connection is lost.
  const clientId = `chaos-${randomUUID()}`;
  const consumer = (await kafkaClient(bootstrap, () => undefined, clientId)).consumer({
    groupId,
    sessionTimeout: SESSION_MILLISECONDS,
    rebalanceTimeout: REBALANCE_MILLISECONDS,
    heartbeatInterval: HEARTBEAT_MILLISECONDS,
    // A consumer that kafkajs starts again joins after its `disconnect`, and never leaves.
    retry: { retries: 0, restartOnFailure: async () => false },
  });
  await consumer.connect();
  try {
    await consumer.subscribe({ topics: [...topics], fromBeginning: true });
    await consumer.run({
      autoCommit: !commits,
      eachMessage: async ({ topic, partition }) => {
        if (commits) await consumer.commitOffsets([{ topic, partition, offset: "0" }]);
      },
    });
  } catch (error) {
    await consumer.disconnect().catch(() => undefined);
    throw error;
  }
  return {
    async leave() {
      await consumer.disconnect().catch(() => undefined);
      const { groups } = await asAdmin(bootstrap, (admin) => admin.describeGroups([groupId]));
      if (groups.some(({ members }) => members.some((member) => member.clientId === clientId)))
        throw new Error(`The group ${groupId} still contains the member of the fault.`);
    },
  };
}
