/** lotus undeploy: removes Lotus from a namespace. Its data stays, unless --delete-data is given. */
import { createInterface } from "node:readline/promises";
import { command } from "../cli/command.ts";
import { Refusal } from "../cli/errors.ts";
import { print, step } from "../cli/output.ts";
import { LAPTOP, readEnvironment } from "../kubernetes/environment.ts";
import { currentContext, get, list } from "../kubernetes/kubectl.ts";
import { checkReachable } from "../kubernetes/preflight.ts";
import { attempt, run } from "../process/run.ts";
import { findFunctions } from "../project/functions.ts";

const LABEL = "app.kubernetes.io/part-of=lotus";

/** The steps in their order: callers are removed before the functions that they call. */
const STEPS = {
  Sources: ["kafkasources.sources.knative.dev", "pingsources.sources.knative.dev"],
  Routes: ["ingresses.networking.internal.knative.dev", "certificates.cert-manager.io"],
  Functions: ["services.serving.knative.dev"],
  "Kafka, Postgres, jobs, policies": [
    "job",
    "statefulset",
    "poddisruptionbudget",
    "networkpolicy",
    "podmonitors.monitoring.coreos.com",
    "service",
    "serviceaccount",
  ],
} as const;
/** Objects that contain data or secrets. */
const DATA_KINDS = ["persistentvolumeclaim", "secret", "configmap"];

/** Returns the names of the objects of Lotus in a namespace. A kind that the cluster does not know has no objects. */
async function namesOf(kind: string, within: string): Promise<string[]> {
  const { code, stdout, stderr } = await attempt("kubectl", ["get", kind, "-n", within, "-l", LABEL, "-o", "json"]);
  if (code !== 0) {
    if (/NotFound|doesn't have a resource type/.test(stderr)) return [];
    throw new Refusal(`kubectl cannot list ${kind}: ${stderr.trim()}`);
  }
  const { items } = JSON.parse(stdout) as { items: { metadata: { name: string } }[] };
  return items.map(({ metadata }) => metadata.name);
}

async function deleteAll(kinds: readonly string[], within: string): Promise<number> {
  let deleted = 0;
  for (const kind of kinds) {
    const names = await namesOf(kind, within);
    if (names.length === 0) continue;
    await run("kubectl", ["delete", kind, ...names, "-n", within, "--ignore-not-found", "--timeout=180s"]);
    deleted += names.length;
  }
  return deleted;
}

/** The tables whose rows are counted before a ledger is deleted. */
const COUNTS = [
  "profile.users",
  "billing.accounts",
  "billing.transfers",
  '"order".orders',
  "notification.notifications",
];

/** Counts the rows of the Postgres in the namespace. Undefined: no Postgres answers. */
async function countRows(within: string): Promise<string | undefined> {
  const sql = COUNTS.map(
    (table) =>
      `select '${table}', case when to_regclass('${table}') is null then null else (xpath('/row/c/text()', query_to_xml('select count(*) as c from ${table}', false, true, '')))[1]::text end`,
  ).join(" union all ");
  const psql = ["psql", "-U", "postgres", "-d", "lotus", "-At", "-F", " ", "-c", sql];
  const shell = `PGPASSWORD="$POSTGRES_PASSWORD" exec "$@"`;
  const { code, stdout } = await attempt("kubectl", [
    "exec",
    "-n",
    within,
    "postgres-0",
    "--",
    "sh",
    "-c",
    shell,
    "sh",
    ...psql,
  ]);
  if (code !== 0) return undefined;
  const rows = stdout
    .trim()
    .split("\n")
    .map((line) => line.split(" "));
  return rows.flatMap(([table, count]) => (count ? [`${count} rows in ${table}`] : [])).join(", ");
}

/** Asks for the name of the environment. @throws {Refusal} for another name, or when no person answers */
async function confirm(name: string, given: string | undefined): Promise<void> {
  if (given === undefined && !process.stdin.isTTY)
    throw new Refusal(`Lotus asks before it removes this. A script confirms with --confirm ${name}.`);
  let answer = given ?? "";
  if (given === undefined) {
    const terminal = createInterface({ input: process.stdin, output: process.stdout });
    answer = await terminal.question(`To remove it, type ${name}: `).finally(() => terminal.close());
  }
  if (answer.trim() !== name)
    throw new Refusal(`"${answer}" is not the environment ${name}. The cluster is unchanged.`);
}

async function undeploy(environmentName: string, withData: boolean, confirmed: string | undefined): Promise<void> {
  const names = (await findFunctions()).map(({ name }) => name);
  const environment = await readEnvironment(environmentName, names);
  const { namespace: within } = environment;
  await checkReachable({ withKn: false });
  const context = await currentContext();
  print(`Environment ${environment.name}: namespace ${within} of the kubectl context ${context}.`);
  if ((await get("namespace", within, "")) === undefined) return print("Lotus is not in this cluster.");
  const disks = await namesOf("persistentvolumeclaim", within);
  if (withData) {
    const rows = await countRows(within);
    print(
      `--delete-data deletes the disks ${disks.join(", ") || "(none)"}, all Secrets of Lotus with the keys and passwords, and the configuration.\n` +
        `The ledger: ${rows ?? "no Postgres in this namespace answers, so the rows are not counted"}.`,
    );
  }
  if (withData || environment.name !== LAPTOP) await confirm(environment.name, confirmed);
  for (const [what, kinds] of Object.entries(STEPS))
    await step(what, async (report) => report(`${await deleteAll(kinds, within)} removed`));
  if (withData) {
    await step("Data", async (report) => report(`${await deleteAll(DATA_KINDS, within)} removed`));
    return print(`\nLotus and its data are removed. The namespace stays: kubectl delete namespace ${within}`);
  }
  const secrets = await list("secret", within, "-l", LABEL);
  print(
    `\nLotus is removed from the cluster. Kept: ${secrets.length} secrets, the configuration, and ${disks.length === 0 ? "no disks" : `the disks ${disks.join(", ")}`}.\n` +
      `npx lotus deploy brings it back. npx lotus undeploy --delete-data removes them.`,
  );
}

export default command({
  about: "Removes the objects with the label of Lotus. Keeps disks, secrets, the configuration and the namespace.",
  notes: `\`lotus deploy\` brings everything back. Removing a KafkaSource removes its consumer group: the next deployment reads the
topics from the beginning. A second delivery of an event changes no data.`,
  options: {
    environment: {
      type: "string",
      value: "NAME",
      about: "the environment, a file of knative/environments",
      default: LAPTOP,
    },
    "delete-data": {
      type: "boolean",
      about: "remove disks, secrets and the configuration too; databases and brokers outside the cluster stay",
    },
    confirm: { type: "string", value: "NAME", about: "the name of the environment, in place of the question" },
  },
  run: (values) => undeploy(values.environment, values["delete-data"], values.confirm),
});
