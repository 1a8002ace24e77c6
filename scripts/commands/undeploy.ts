/** scripts/undeploy: takes Lotus off the cluster. What it has stored stays, unless one says otherwise. */
import { parseArgs } from "node:util";
import { get, list, NAMESPACE, readDocuments } from "../kubernetes/kubectl.ts";
import { checkReachable } from "../kubernetes/preflight.ts";
import { main, Refusal, run, step } from "../kubernetes/shell.ts";

const HELP = `Usage: scripts/undeploy [--delete-data]

Removes sources, routes, functions, and the pods of Kafka and Postgres. Kept: the disks of Postgres and Kafka, all
secrets, the namespace. scripts/deploy brings everything back.

Removing a KafkaSource removes its consumer group: after the next deployment the topics are read from their beginning
again. Lotus takes no event twice, so that costs time and nothing else.

  --delete-data   remove the disks, the secrets and the namespace too. A database or a Kafka outside the cluster is never touched.`;

/** Kinds in the order they go: first what calls, then what is called. */
const SOURCES = ["kafkasources.sources.knative.dev", "pingsources.sources.knative.dev"];
const PLATFORM = ["job", "deployment", "statefulset", "networkpolicy", "poddisruptionbudget"];

async function deleteAll(kinds: readonly string[]): Promise<number> {
  let deleted = 0;
  for (const kind of kinds) {
    const names = (await list(kind)).map(({ metadata }) => metadata.name);
    if (names.length === 0) continue;
    await run("kubectl", ["delete", kind, ...names, "-n", NAMESPACE, "--ignore-not-found", "--timeout=180s"]);
    deleted += names.length;
  }
  return deleted;
}

async function deleteRoutes(): Promise<void> {
  for (const { kind, metadata } of await readDocuments("knative/routes.yaml")) {
    const resource = kind === "Ingress" ? "ingresses.networking.internal.knative.dev" : kind.toLowerCase();
    await run("kubectl", ["delete", resource, metadata.name, "-n", NAMESPACE, "--ignore-not-found"]);
  }
}

async function deletePlatform(): Promise<number> {
  const deleted = await deleteAll(PLATFORM);
  // By name: Knative made other Services here, and takes them with it.
  const services = ["kafka", "kafka-brokers", "postgres"];
  await run("kubectl", ["delete", "service", ...services, "-n", NAMESPACE, "--ignore-not-found"]);
  return deleted;
}

async function undeploy(deleteData: boolean): Promise<void> {
  await checkReachable({ withKn: false });
  if ((await get("namespace", NAMESPACE, "")) === undefined) {
    console.log("Lotus is not on this cluster.");
    return;
  }
  await step("Sources", async (report) => report(`${await deleteAll(SOURCES)} removed`));
  await step("Routes", deleteRoutes);
  await step("Functions", async (report) => report(`${await deleteAll(["services.serving.knative.dev"])} removed`));
  await step("Kafka, Postgres, jobs, policies", async (report) => report(`${await deletePlatform()} removed`));
  if (deleteData) {
    await step("Data", async () => {
      await run("kubectl", ["delete", "namespace", NAMESPACE, "--timeout=300s"]);
    });
    console.log("\nLotus is gone, and what it had stored in the cluster.");
    return;
  }
  const disks = (await list("pvc")).map(({ metadata }) => metadata.name);
  const secrets = await list("secret", NAMESPACE, "-l", "app.kubernetes.io/part-of=lotus");
  console.log(
    `\nLotus is off the cluster. Kept: ${secrets.length} secrets, the configuration, and ${disks.length === 0 ? "no disks" : `the disks ${disks.join(", ")}`}.\n` +
      "scripts/deploy brings it back; scripts/undeploy --delete-data removes these too.",
  );
}

main(async () => {
  let values: { help?: boolean; "delete-data"?: boolean };
  try {
    const options = { help: { type: "boolean", short: "h" }, "delete-data": { type: "boolean" } } as const;
    ({ values } = parseArgs({ options }));
  } catch (error) {
    throw new Refusal(`${(error as Error).message}\n\n${HELP}`);
  }
  if (values.help) console.log(HELP);
  else await undeploy(values["delete-data"] === true);
});
