/** lotus rotate: renews keys and passwords of a running installation. Functions read them from files that Kubernetes renews. */
import { TOKEN_SECONDS } from "#kernel/limits";
import { PROGRAM_NAMES } from "../build/image-files.ts";
import { command } from "../cli/command.ts";
import { Refusal, UsageError } from "../cli/errors.ts";
import { print, step } from "../cli/output.ts";
import { SERVICES } from "../database/sql.ts";
import { choose } from "../kubernetes/backends.ts";
import { type Environment, LAPTOP, readEnvironment } from "../kubernetes/environment.ts";
import { versionOf } from "../kubernetes/images.ts";
import { currentContext, get, type KubernetesObject, list, runJob, secretValue } from "../kubernetes/kubectl.ts";
import { DEPLOY_OPTIONS, type DeployValues, readOptions } from "../kubernetes/options.ts";
import { makePlan } from "../kubernetes/plan.ts";
import { checkReachable } from "../kubernetes/preflight.ts";
import { attempt } from "../process/run.ts";
import { findFunctions } from "../project/functions.ts";
import { ROOT } from "../project/paths.ts";
import { changePublicKeys, newPassword, readKeys, writeSecrets } from "../secrets/cluster.ts";
import { addKey, retireOthers, signingKeyText, withoutKey } from "../secrets/keys.ts";

/** A kubelet renews mounted secrets once a minute, up to half a minute late, and when a pod changes. */
const MOUNT_SECONDS_MAX = 100;

/** Changes an annotation of the running functions, so that the kubelets renew their secrets now. */
async function nudge(within: string): Promise<void> {
  const selector = ["-l", "app.kubernetes.io/component=function"];
  const annotation = `lotus/secrets-renewed=${Date.now()}`;
  const { code, stderr } = await attempt("kubectl", [
    "annotate",
    "pods",
    "-n",
    within,
    ...selector,
    "--overwrite",
    annotation,
  ]);
  // A pod that has ended since kubectl listed it does not need the secrets.
  const failures = stderr.split("\n").filter((line) => line !== "" && !line.includes("(NotFound)"));
  if (code !== 0 && failures.length > 0)
    throw new Refusal(`The pods did not get their new secrets at once: ${failures.join(" ")}`);
}

async function wait(seconds: number, report: (progress: string) => void): Promise<void> {
  for (let left = seconds; left > 0; left--) {
    report(`${left} s left`);
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
  report("every pod has them");
}

async function checkDeployed(within: string): Promise<void> {
  if ((await get("secret", "public-keys", within)) === undefined)
    throw new Refusal("Lotus is not deployed here yet: npx lotus deploy makes the first keys.");
}

async function rotateKeys(within: string): Promise<void> {
  await checkDeployed(within);
  const keys = await changePublicKeys(within, addKey);
  await nudge(within);
  // Every pod must know the public half before a token is signed with the private half.
  await step("The new public key reaches the pods", (report) => wait(MOUNT_SECONDS_MAX, report));
  await writeSecrets(new Map([["signing-key", { "key.json": signingKeyText(keys) }]]), within);
  // Last: an interruption before this line leaves the former key valid, and the next rotation retires it.
  await changePublicKeys(within, retireOthers);
  await nudge(within);
  print(
    `\nTokens are signed with ${keys.signingKey?.kid} now; older ones are accepted for ${TOKEN_SECONDS / 60} minutes more.`,
  );
}

async function revokeKey(kid: string, within: string): Promise<void> {
  await checkDeployed(within);
  const { signingKey: former } = (await readKeys(within)).keys;
  const keys = await changePublicKeys(within, (present) => withoutKey(present, kid)).catch((error: Error) => {
    throw error instanceof UsageError ? new Refusal(error.message) : error;
  });
  if (keys.signingKey?.kid !== former?.kid) {
    await writeSecrets(new Map([["signing-key", { "key.json": signingKeyText(keys) }]]), within);
  }
  await nudge(within);
  await step("The change reaches the pods", (report) => wait(MOUNT_SECONDS_MAX, report));
  print(`\nThe key ${kid} is revoked: every function refuses its tokens.`);
}

/** Returns the migrate Job of the deployment, with the image that its functions use. */
async function migrateJob(environment: Environment, args: readonly string[]): Promise<KubernetesObject> {
  const { namespace: within } = environment;
  const all = await findFunctions();
  const configuration = (await get("configmap", "lotus", within))?.data as Record<string, string> | undefined;
  const [service] = await list("services.serving.knative.dev", within, "-l", "app.kubernetes.io/part-of=lotus");
  if (service === undefined || configuration === undefined)
    throw new Refusal(`Lotus is not deployed in the namespace ${within}: npx lotus deploy`);
  // Each image contains every program.
  const image = { reference: String(service.spec.template.spec.containers[0].image), content: "" };
  const images = new Map([...all.map(({ name }) => name), ...PROGRAM_NAMES].map((name) => [name, image]));
  const previous = { configuration, adminUrl: secretValue(await get("secret", "database-admin", within), "url") };
  const backends = choose(readOptions(DEFAULT_VALUES, []), previous, environment);
  const names = all.map(({ name }) => name);
  const plan = await makePlan({ all, names, images, environment, backends, version: await versionOf(ROOT) });
  const [container] = plan.migrate.spec.template.spec.containers;
  container.args = [container.args[0], ...args];
  return plan.migrate;
}

/** The options of a deployment that changes nothing. */
const DEFAULT_VALUES = Object.fromEntries(
  Object.entries(DEPLOY_OPTIONS).map(([name, option]) => [
    name,
    option.type === "boolean" ? false : "default" in option ? option.default : undefined,
  ]),
) as DeployValues;

async function rotateOwner(environment: Environment): Promise<void> {
  const { namespace: within } = environment;
  const secret = await get("secret", "database-admin", within);
  const url = secretValue(secret, "url");
  if (url === undefined) throw new Refusal("The Secret database-admin is missing; npx lotus deploy makes it.");
  const authority = secretValue(secret, "ca.crt");
  const others = authority === undefined ? {} : { "ca.crt": authority };
  // The Secret keeps the next password before the database gets it, so that an interruption loses neither.
  const pending = secretValue(secret, "next-password");
  // Kubernetes may keep the key after a finished rotation. Then it contains the present password.
  const password = pending === undefined || pending === secretValue(secret, "password") ? newPassword() : pending;
  const now = { url, password: secretValue(secret, "password") ?? "", ...others };
  await writeSecrets(new Map([["database-admin", { ...now, "next-password": password }]]), within);
  await step("The database changes the owner's password", async () => {
    const file = "/etc/lotus/database/next-password";
    await runJob(await migrateJob(environment, ["owner", "--new-password", file]));
  });
  const next = new URL(url);
  next.password = encodeURIComponent(password);
  await writeSecrets(new Map([["database-admin", { url: next.href, password, ...others }]]), within);
  print("\nThe owner's password is new. The Secret database-admin contains it.");
}

async function rotatePasswords(services: readonly string[], environment: Environment): Promise<void> {
  const { namespace: within } = environment;
  const unknown = services.find((service) => !SERVICES.includes(service));
  if (unknown !== undefined)
    throw new Refusal(`The service ${unknown} does not exist. There are: ${SERVICES.join(", ")}, and owner.`);
  const job = await migrateJob(environment, ["roles", "--secrets", "/etc/lotus", "--change-passwords"]);
  const renewed = new Map<string, Record<string, string>>();
  for (const role of services.length === 0 ? SERVICES : services) {
    const secret = await get("secret", `database-${role}`, within);
    const url = secretValue(secret, "url");
    if (url === undefined) throw new Refusal(`The secret database-${role} is missing; npx lotus deploy makes it.`);
    const authority = secretValue(secret, "ca.crt");
    renewed.set(`database-${role}`, {
      url,
      password: newPassword(),
      ...(authority !== undefined && { "ca.crt": authority }),
    });
  }
  await writeSecrets(renewed, within);
  await step("The database changes the passwords", async () => {
    await runJob(job);
    await nudge(within);
  });
  print(`\n${renewed.size} passwords are new.`);
}

export default command({
  about: "Renews the keys that sign tokens, or the passwords of the database roles. No pod restarts.",
  usage: "keys | revoke KID | passwords [owner | SERVICE…]",
  notes: `keys        A new key signs tokens. Functions accept tokens of the old key until they expire.
revoke      Functions refuse every token of the key with this id. A new key replaces a revoked signing key. For 1 to 2 minutes,
            until all pods know the change, they may refuse the token of a new login. GET /profile/jwks lists the ids.
passwords   The roles of these services, or of all, get new passwords. Open connections stay open. Until a pod has the new
            file (1 to 2 s), a new connection may fail: such a request is answered 503 with Retry-After and has no effect.
            owner: the owner of the database gets a new password. Functions do not use it.`,
  options: {
    environment: {
      type: "string",
      value: "NAME",
      about: "the environment, a file of knative/environments",
      default: LAPTOP,
    },
  },
  async run(values, [what, ...words]) {
    const [kid = "", ...more] = words;
    const isUsage =
      what === "passwords" ||
      (what === "keys" && words.length === 0) ||
      (what === "revoke" && kid !== "" && more.length === 0);
    if (!isUsage)
      throw new UsageError("Name the action: npx lotus rotate keys, revoke KID, or passwords [owner | SERVICE…].");
    const names = (await findFunctions()).map(({ name }) => name);
    const environment = await readEnvironment(values.environment, names);
    const { namespace: within } = environment;
    await checkReachable({ withKn: false });
    print(`Environment ${environment.name}: namespace ${within} of the kubectl context ${await currentContext()}.`);
    if (what === "keys") await rotateKeys(within);
    else if (what === "revoke") await revokeKey(kid, within);
    else if (kid === "owner" && more.length === 0) await rotateOwner(environment);
    else await rotatePasswords(words, environment);
  },
});
