/** The cold start of a function whose Postgres asks for SCRAM over TLS, beside one whose Postgres trusts it. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buildFunctions, programOf } from "../build/bundles.ts";
import { migrate } from "../database/migrate.ts";
import { readPasswords, roleUrl } from "../database/roles.ts";
import { ensureSecrets } from "../secrets/local.ts";
import { AUTHORITY, startTestPostgres } from "../testing/postgres-server.ts";
import { measure } from "./cold-start.ts";
import { type BenchOptions, ending } from "./flags.ts";
import type { Figure } from "./report.ts";

export const about = "the start of a process until its first answer: SCRAM over TLS beside trust";

const STARTS_EACH_ROUND = 3;
const RATIO_MAX = 1.15;
const LIST = { what: "", call: "GET /order/subscriptions", status: 200 };

export default async function coldLogin({ node, rounds }: BenchOptions): Promise<Figure[]> {
  const folder = await mkdtemp(join(tmpdir(), "lotus-bench-"));
  const [postgres] = await Promise.all([startTestPostgres(), buildFunctions(["order-subscriptions"])]);
  const stop = async () => {
    await postgres.stop();
    await rm(folder, { recursive: true, force: true });
  };
  return ending(stop, async () => {
    const file = programOf("order-subscriptions");
    /** The environment of the function, in a migrated database of that name. */
    const environmentOf = async (name: string, parameters: string) => {
      const url = (await postgres.createDatabase(name)).replace("127.0.0.1", "localhost") + parameters;
      const secrets = join(folder, name);
      await ensureSecrets(secrets, url);
      const passwords = await readPasswords(secrets);
      await migrate(url, passwords);
      return {
        DATABASE_URL: roleUrl(url, "order"),
        DATABASE_PASSWORD_FILE: join(secrets, "database-order", "password"),
        JWKS_FILE: join(secrets, "public-keys", "jwks.json"),
      };
    };
    const secure = await environmentOf("scram_tls", `?sslmode=verify-full&sslrootcert=${AUTHORITY}`);
    const trusted = await environmentOf("trusted", "");
    const answered = async (environment: Readonly<Record<string, string>>) =>
      (await measure({ ...LIST, file }, environment, node)).answered;
    const figure = { lotus: [] as number[], floor: [] as number[] };
    // The first starts write V8's code cache, which the images contain.
    await answered(secure);
    await answered(trusted);
    for (let round = 0; round < rounds * STARTS_EACH_ROUND; round++) {
      figure.lotus.push(await answered(secure));
      figure.floor.push(await answered(trusted));
    }
    const targets = [{ of: "floor" as const, max: RATIO_MAX }];
    return [{ what: "cold start until the answer, ms: SCRAM over TLS, the floor is trust", ...figure, targets }];
  });
}
