/** lotus undeploy: removes Lotus from the cluster. Its data stays, unless --delete-data is given. */
import { command } from "../cli/command.ts";
import { print, step } from "../cli/output.ts";
import { get, list, NAMESPACE, readDocuments } from "../kubernetes/kubectl.ts";
import { checkReachable } from "../kubernetes/preflight.ts";
import { run } from "../process/run.ts";

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
    print("Lotus is not on this cluster.");
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
    print("\nLotus is gone, and what it had stored in the cluster.");
    return;
  }
  const disks = (await list("pvc")).map(({ metadata }) => metadata.name);
  const secrets = await list("secret", NAMESPACE, "-l", "app.kubernetes.io/part-of=lotus");
  print(
    `\nLotus is off the cluster. Kept: ${secrets.length} secrets, the configuration, and ${disks.length === 0 ? "no disks" : `the disks ${disks.join(", ")}`}.\n` +
      "npx lotus deploy brings it back; npx lotus undeploy --delete-data removes these too.",
  );
}

export default command({
  about:
    "Removes sources, routes, functions, and the pods of Kafka and Postgres. Keeps disks, secrets and the namespace.",
  notes: `\`lotus deploy\` brings everything back. Removing a KafkaSource removes its consumer group: the next deployment reads the
topics from the beginning. A second delivery of an event changes no data.`,
  options: {
    "delete-data": {
      type: "boolean",
      about: "remove disks, secrets and the namespace too; databases and brokers outside the cluster stay",
    },
  },
  run: (values) => undeploy(values["delete-data"]),
});
