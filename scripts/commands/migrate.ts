/** lotus migrate: brings a database up to date. */
import { readFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { command } from "../cli/command.ts";
import { messageOf, Refusal, UsageError } from "../cli/errors.ts";
import { database, folder, readFolder } from "../cli/options.ts";
import { print } from "../cli/output.ts";
import { adminUrl, readPoolerUrl, targetOf } from "../database/connect.ts";
import { readBudget } from "../database/connections.ts";
import { migrate, STEPS } from "../database/migrate.ts";
import { changeOwnerPassword } from "../database/owner.ts";
import { readPasswords } from "../database/roles.ts";
import { SERVICES } from "../database/sql.ts";

async function giveOwnerPassword(values: {
  readonly database: string | undefined;
  readonly folder: string | undefined;
  readonly "new-password": string | undefined;
}): Promise<void> {
  const file = values["new-password"];
  if (file === undefined) throw new UsageError("lotus migrate owner needs --new-password FILE.");
  const password = (await readFile(file, "utf8")).trim();
  if (password === "") throw new UsageError(`The file ${file} is empty.`);
  await changeOwnerPassword(await adminUrl(targetOf(values)), password);
  print("The owner has the new password.");
}

export default command({
  about: "Applies the roles, the migrations, the SQL functions and the subscriptions. Safe to repeat.",
  usage: "[roles | schema | owner]",
  options: {
    database,
    folder,
    secrets: {
      type: "string",
      value: "FOLDER",
      about: "the folder with the roles' passwords (default: that of the run)",
    },
    pooler: {
      type: "string",
      value: "URL",
      about: "check the logins through this pooler (default DATABASE_POOLER_URL)",
    },
    connections: {
      type: "string",
      value: "BUDGET",
      about: "refuse a server that allows fewer: connections of all pods and revisions, such as 212x2",
    },
    "new-password": { type: "string", value: "FILE", about: "with owner: give the owner the password of this file" },
    "change-passwords": { type: "boolean", about: "give existing roles the passwords of the folder" },
  },
  async run(values, positionals) {
    if (positionals[0] === "owner") return giveOwnerPassword(values);
    const steps = positionals.length === 0 ? STEPS : STEPS.filter((step) => positionals.includes(step));
    const unknown = positionals.find((word) => !STEPS.some((step) => step === word));
    if (unknown !== undefined)
      throw new UsageError(`"${unknown}" is not a step. The steps are ${STEPS.join(" and ")}.`);
    const run = readFolder(values.folder);
    const secrets = values.secrets === undefined ? join(run, "secrets") : resolve(values.secrets);
    const target = targetOf(values);
    const url = await adminUrl(target);
    const pooler = values.pooler ?? process.env.DATABASE_POOLER_URL;
    const budget = values.connections === undefined ? undefined : readBudget(values.connections);
    if (values.connections !== undefined && budget === undefined)
      throw new UsageError("--connections must be two numbers, such as 212x2.");
    const options = {
      steps,
      budget,
      changePasswords: values["change-passwords"] ? SERVICES : [],
      pooler: pooler
        ? readPoolerUrl(values.pooler === undefined ? "DATABASE_POOLER_URL" : "--pooler", pooler)
        : undefined,
      tell: print,
    };
    const applied = await migrate(url, await readPasswords(secrets), options).catch((error: unknown) => {
      throw new Refusal(`The database was not migrated: ${messageOf(error)}`, { cause: error });
    });
    if (values["change-passwords"]) print("The roles have the passwords of the secrets.");
    if (!steps.includes("schema")) print("The roles are up to date.");
    else print(applied.length === 0 ? "The database is up to date." : `Applied ${applied.join(", ")}.`);
  },
});
