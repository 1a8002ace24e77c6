/** The password of the database's owner. */
import { type DatabaseError, escapeIdentifier, escapeLiteral } from "pg";
import { connectTo } from "./client.ts";
import { scramVerifier } from "./roles.ts";

const INVALID_PASSWORD = "28P01";

/**
 * Gives the owner a new password. Safe to repeat: a former attempt may have changed the password already.
 * @param url connects as the owner with the present password
 * @throws {Error} a sentence, when neither password is accepted or the server refuses the change
 */
export async function changeOwnerPassword(url: string, password: string): Promise<void> {
  const next = new URL(url);
  next.password = encodeURIComponent(password);
  const client = await connectTo(url).catch((error: Error & { cause?: DatabaseError }) => {
    if ((error.cause ?? (error as DatabaseError)).code !== INVALID_PASSWORD) throw error;
    return connectTo(next.href);
  });
  try {
    const { rows } = await client.query<{ name: string }>("select session_user as name");
    const role = escapeIdentifier(rows[0]?.name ?? "");
    await client.query(`alter role ${role} password ${escapeLiteral(scramVerifier(password))}`);
  } finally {
    await client.end();
  }
  // The new password must work before the old one is forgotten.
  await (await connectTo(next.href)).end();
}
