/** The id of an installation, which its database contains. */
import { Client } from "pg";

const ANSWER_MILLISECONDS_MAX = 5_000;

/**
 * Returns the installation id of a migrated database.
 * @param url connects as the owner
 */
export async function readInstallation(url: string): Promise<string> {
  const client = new Client({
    connectionString: url,
    connectionTimeoutMillis: ANSWER_MILLISECONDS_MAX,
    query_timeout: ANSWER_MILLISECONDS_MAX,
  });
  // Without a listener, a connection that breaks between two queries would end the process.
  client.on("error", () => undefined);
  await client.connect();
  try {
    const { rows } = await client.query<{ id: string }>("select events.installation_id() as id");
    const id = rows[0]?.id;
    if (id === undefined || id === null) throw new Error("The database has no installation id. Run npm run migrate.");
    return id;
  } finally {
    await client.end().catch(() => undefined);
  }
}
