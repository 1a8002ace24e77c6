/** Acts on brokers as an administrator. */
import type { Admin } from "kafkajs";
import { kafkaClient } from "#kernel/kafka";

/** Runs an action with an administrator's client, and disconnects it. */
export async function asAdmin<T>(bootstrap: readonly string[], work: (admin: Admin) => Promise<T>): Promise<T> {
  const admin = (await kafkaClient(bootstrap, () => undefined)).admin({ retry: { retries: 8 } });
  await admin.connect();
  try {
    return await work(admin);
  } finally {
    await admin.disconnect();
  }
}
