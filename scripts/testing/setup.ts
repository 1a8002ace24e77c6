/** Before all tests: the functions are built, and a Postgres with a migrated template runs. */
import { chmod, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestProject } from "vitest/node";
import { migrate } from "../database/migrate.ts";
import { readPasswords } from "../database/roles.ts";
import { startPostgres } from "../local/postgres.ts";
import { ensureSecrets } from "../secrets/local.ts";
import build from "./build.ts";

/** Two files run at a time, and one of them may start several Lotus. */
const CONNECTIONS_MAX = 600;

declare module "vitest" {
  interface ProvidedContext {
    /** The server, as the owner of a migrated database without other connections. */
    templateUrl: string;
    /** The roles' passwords and the token keys, which all databases of the server share. */
    secrets: string;
  }
}

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const folder = await mkdtemp(join(tmpdir(), "lotus-test-"));
  // When root runs the tests, Postgres runs as another user, who must be able to enter the folder.
  await chmod(folder, 0o711);
  // Without fsync a power cut may lose test data. A killed server does not lose any.
  const flags = ["-c", "fsync=off", "-c", `max_connections=${CONNECTIONS_MAX}`];
  const [postgres] = await Promise.all([startPostgres(join(folder, "postgres"), flags), build(project)]);
  const secrets = join(folder, "secrets");
  await ensureSecrets(secrets, postgres.adminUrl);
  await migrate(postgres.adminUrl, await readPasswords(secrets));
  project.provide("templateUrl", postgres.adminUrl);
  project.provide("secrets", secrets);
  return async () => {
    await postgres.stop();
    await rm(folder, { recursive: true, force: true });
  };
}
