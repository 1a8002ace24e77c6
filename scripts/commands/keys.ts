/** lotus keys: lists, rotates and revokes the keys that sign tokens. */
import { join } from "node:path";
import { keyEndsAt } from "#kernel/token";
import { command } from "../cli/command.ts";
import { UsageError } from "../cli/errors.ts";
import { folder, json, readFolder } from "../cli/options.ts";
import { print, printJson } from "../cli/output.ts";
import { ensureKeys, readKeys, revokeKey, rotateKeys } from "../secrets/keys.ts";

export default command({
  about: "Lists the keys that sign tokens, and creates the first one.",
  usage: "[list | rotate | revoke KID]",
  notes: `rotate      A new key signs from now on. Functions accept tokens of the former key until they expire.
revoke KID  Functions refuse every token of this key at once. A new key replaces a revoked signing key.`,
  options: { folder, json },
  async run(values, positionals) {
    const [action = "list", kid, ...rest] = positionals;
    const secrets = join(readFolder(values.folder), "secrets");
    if (action === "list" && kid === undefined) await ensureKeys(secrets);
    else if (action === "rotate" && kid === undefined) await rotateKeys(secrets);
    else if (action === "revoke" && kid !== undefined && rest.length === 0) await revokeKey(secrets, kid);
    else
      throw new UsageError(
        `"${positionals.join(" ")}" is not an action of lotus keys. Use list, rotate or revoke KID.`,
      );
    const keys = (await readKeys(secrets)).publicKeys.map(({ kid, retiredAt }) => ({
      kid,
      acceptedUntil: retiredAt === undefined ? null : new Date(keyEndsAt(retiredAt) * 1000).toISOString(),
    }));
    if (values.json) return printJson(keys);
    for (const { kid, acceptedUntil } of keys)
      print(`${kid}  ${acceptedUntil === null ? "signs" : `accepted until ${acceptedUntil}`}`);
  },
});
