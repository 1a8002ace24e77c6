/** The local form of a cluster's Secrets: one folder for each secret, one file for each key. */
import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { roleUrl } from "../database/roles.ts";
import { SERVICES } from "../database/sql.ts";
import { ensureKeys } from "./keys.ts";

/**
 * Makes the passwords of the roles and the keys that are not there yet, and writes where the database is.
 * @param adminUrl connects as the owner of the database; the roles' URLs follow from it
 * @param pooler the URL of a pooler that functions use, as roleUrl reads it
 */
export async function ensureSecrets(folder: string, adminUrl: string, pooler?: string): Promise<void> {
  await ensureKeys(folder);
  await mkdir(join(folder, "database-admin"), { recursive: true, mode: 0o700 });
  await writeFile(join(folder, "database-admin", "url"), adminUrl, { mode: 0o600 });
  for (const role of SERVICES) {
    const secret = join(folder, `database-${role}`);
    await mkdir(secret, { recursive: true, mode: 0o700 });
    const password = join(secret, "password");
    if (!existsSync(password)) await writeFile(password, randomBytes(24).toString("base64url"), { mode: 0o600 });
    await writeFile(join(secret, "url"), roleUrl(adminUrl, role, pooler), { mode: 0o600 });
  }
}
