/** lotus rotate: renews keys and passwords while everything runs. Functions read them from files that Kubernetes renews. */
import { TOKEN_SECONDS } from "#kernel/settings";
import { command } from "../cli/command.ts";
import { Refusal, UsageError } from "../cli/errors.ts";
import { print, step } from "../cli/output.ts";
import { SERVICES } from "../database/sql.ts";
import { get, NAMESPACE, runJob, secretValue } from "../kubernetes/kubectl.ts";
import { readMigrateJob } from "../kubernetes/migrate-job.ts";
import { checkReachable } from "../kubernetes/preflight.ts";
import { attempt } from "../process/run.ts";
import { changePublicKeys, newPassword, readKeys, writeSecrets } from "../secrets/cluster.ts";
import { addKey, retireOthers, signingKeyText, withoutKey } from "../secrets/keys.ts";

/** A kubelet renews mounted secrets once a minute, up to half a minute late; and looks again when a pod has changed. */
const MOUNT_SECONDS_MAX = 100;

/** Makes the kubelets look at the secrets of the running functions now. */
async function nudge(): Promise<void> {
  const selector = ["-l", "app.kubernetes.io/component=function"];
  const annotation = `lotus/secrets-renewed=${Date.now()}`;
  const { code, stderr } = await attempt("kubectl", [
    "annotate",
    "pods",
    "-n",
    NAMESPACE,
    ...selector,
    "--overwrite",
    annotation,
  ]);
  // A pod that has ended since kubectl listed it needs no secrets any more.
  const failures = stderr.split("\n").filter((line) => line !== "" && !line.includes("(NotFound)"));
  if (code !== 0 && failures.length > 0)
    throw new Refusal(`The pods were not told of their new secrets: ${failures.join(" ")}`);
}

async function wait(seconds: number, report: (progress: string) => void): Promise<void> {
  for (let left = seconds; left > 0; left--) {
    report(`${left} s left`);
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
  report("every pod has them");
}

async function checkDeployed(): Promise<void> {
  if ((await get("secret", "public-keys")) === undefined)
    throw new Refusal("Lotus is not deployed here yet: npx lotus deploy makes the first keys.");
}

async function rotateKeys(): Promise<void> {
  await checkDeployed();
  const keys = await changePublicKeys(addKey);
  await nudge();
  // Every pod must know the public half before a token is signed with the private half.
  await step("The new public key reaches the pods", (report) => wait(MOUNT_SECONDS_MAX, report));
  await writeSecrets(new Map([["signing-key", { "key.json": signingKeyText(keys) }]]));
  // Last: an interruption before this line leaves the former key valid, and the next rotation retires it.
  await changePublicKeys(retireOthers);
  await nudge();
  print(
    `\nTokens are signed with ${keys.signingKey?.kid} now; older ones are accepted for ${TOKEN_SECONDS / 60} minutes more.`,
  );
}

async function revokeKey(kid: string): Promise<void> {
  await checkDeployed();
  const { signingKey: former } = (await readKeys()).keys;
  const keys = await changePublicKeys((present) => withoutKey(present, kid)).catch((error: Error) => {
    throw error instanceof UsageError ? new Refusal(error.message) : error;
  });
  if (keys.signingKey?.kid !== former?.kid) {
    await writeSecrets(new Map([["signing-key", { "key.json": signingKeyText(keys) }]]));
  }
  await nudge();
  await step("The change reaches the pods", (report) => wait(MOUNT_SECONDS_MAX, report));
  print(`\nThe key ${kid} is revoked: every function refuses its tokens.`);
}

async function rotatePasswords(services: readonly string[]): Promise<void> {
  const unknown = services.find((service) => !SERVICES.includes(service));
  if (unknown !== undefined) throw new Refusal(`There is no service ${unknown}. There are: ${SERVICES.join(", ")}.`);
  const previous = await get("job", "migrate");
  const job = await readMigrateJob();
  if (previous === undefined) throw new Refusal("Lotus is not deployed here yet: npx lotus deploy");
  job.spec.template.spec.containers[0].image = previous.spec.template.spec.containers[0].image;
  job.spec.template.spec.containers[0].args.push("--change-passwords");
  const renewed = new Map<string, { url: string; password: string }>();
  for (const role of services.length === 0 ? SERVICES : services) {
    const url = secretValue(await get("secret", `database-${role}`), "url");
    if (url === undefined) throw new Refusal(`The secret database-${role} is missing; npx lotus deploy makes it.`);
    renewed.set(`database-${role}`, { url, password: newPassword() });
  }
  await writeSecrets(renewed);
  await step("The database takes the new passwords", async () => {
    await runJob(job);
    await nudge();
  });
  print(`\n${renewed.size} passwords are new.`);
}

export default command({
  about: "Renews the keys that sign tokens, or the passwords of the database roles. No pod restarts.",
  usage: "keys | revoke KID | passwords [SERVICE…]",
  notes: `keys        A new key signs tokens. Functions accept tokens of the old key until they expire.
revoke      Functions refuse every token of the key with this id. A new key replaces a revoked signing key. For 1 to 2 minutes,
            until all pods know the change, they may refuse the token of a new login. GET /profile/jwks lists the ids.
passwords   The roles of these services, or of all, get new passwords. Open connections stay open. Until a pod has the new
            file (1 to 2 s), a new connection may fail: such a request is answered 503 with Retry-After and changed nothing.`,
  options: {},
  async run(_, [what, ...words]) {
    const [kid = "", ...more] = words;
    const isUsage =
      what === "passwords" ||
      (what === "keys" && words.length === 0) ||
      (what === "revoke" && kid !== "" && more.length === 0);
    if (!isUsage)
      throw new UsageError("Say what to renew: npx lotus rotate keys, revoke KID, or passwords [SERVICE…].");
    await checkReachable({ withKn: false });
    if (what === "keys") await rotateKeys();
    else if (what === "revoke") await revokeKey(kid);
    else await rotatePasswords(words);
  },
});
