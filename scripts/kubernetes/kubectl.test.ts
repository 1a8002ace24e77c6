/** Two environments that one process prepares at the same time, against a stub of a cluster. */
import { chmod, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { changePublicKeys, ensureSecrets } from "../secrets/cluster.ts";
import { addKey } from "../secrets/keys.ts";
import { choose } from "./backends.ts";
import { type Environment, parseEnvironment } from "./environment.ts";
import type { KafkaCredentials } from "./kafka-security.ts";
import { type KubernetesObject, runJob } from "./kubectl.ts";
import type { DeployOptions } from "./options.ts";
import type { FunctionPlan } from "./plan.ts";
import { applyFunctions } from "./services.ts";

const NAMES = ["staging", "production"] as const;
type Name = (typeof NAMES)[number];

/** Each call waits, so that the two environments alternate. The file of a call contains its arguments and its input. */
const STUB = `#!/bin/sh
call=$(mktemp "$CALLS/XXXXXXXX")
{ echo "$(basename "$0") $*"; cat; } > "$call"
case "$*" in *" -f "*.yaml*) cat "$(echo "$*" | sed 's/.* -f \\([^ ]*\\).*/\\1/')" >> "$call" ;; esac
sleep 0.02
case "$*" in
"get job "*) echo '{"status":{"conditions":[{"type":"Complete","status":"True"}]}}' ;;
"get services.serving"*) echo '{"metadata":{"generation":1},"status":{"observedGeneration":1,"latestCreatedRevisionName":"r","latestReadyRevisionName":"r","conditions":[{"type":"Ready","status":"True"}],"traffic":[]}}' ;;
"get "*) echo NotFound >&2; exit 1 ;;
esac
`;

const namespaceOf = (name: Name) => `lotus-${name}`;
const environmentOf = (name: Name): Environment =>
  parseEnvironment(
    name,
    `
namespace: ${namespaceOf(name)}
host: ${name}.example
database: { mode: outside, url: "postgres://owner@db.example:5432/lotus_${name}" }
kafka: { mode: cluster, prefix: ${name}. }`,
    [],
  );

const NO_KAFKA: KafkaCredentials = { tls: false, authority: undefined, client: undefined, user: undefined };

function jobOf(name: Name): KubernetesObject {
  const metadata = { name: "migrate", namespace: namespaceOf(name), labels: { "app.kubernetes.io/name": "migrate" } };
  return { apiVersion: "batch/v1", kind: "Job", metadata };
}

function functionOf(name: Name): FunctionPlan {
  const metadata = { name: "order-pay", namespace: namespaceOf(name) };
  const service = { apiVersion: "serving.knative.dev/v1", kind: "Service", metadata, spec: { traffic: [] } };
  return { name: "order-pay", kind: "endpoint", service, source: undefined, disruptionBudget: undefined };
}

/** The parts of a deployment and of a rotation that reach the cluster. */
async function prepare(name: Name): Promise<void> {
  const environment = environmentOf(name);
  const { namespace } = environment;
  const database = { kind: "outside", url: `postgres://owner@db.example:5432/lotus_${name}` } as const;
  await ensureSecrets(database, NO_KAFKA, environment, { password: "secret" });
  await changePublicKeys(namespace, addKey);
  await runJob(jobOf(name));
  await applyFunctions([functionOf(name)], namespace, () => undefined);
}

describe.skipIf(process.platform === "win32")("two environments in one process", () => {
  let folder: string;
  const { PATH, CALLS } = process.env;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "lotus-stub-"));
    for (const program of ["kubectl", "kn"]) {
      await writeFile(join(folder, program), STUB);
      await chmod(join(folder, program), 0o755);
    }
    const calls = await mkdtemp(join(folder, "calls-"));
    Object.assign(process.env, { PATH: `${folder}${delimiter}${PATH}`, CALLS: calls });
  });
  afterAll(async () => {
    Object.assign(process.env, { PATH });
    if (CALLS === undefined) delete process.env.CALLS;
    await rm(folder, { recursive: true, force: true });
  });

  it("each call names the namespace of its environment only", async () => {
    await Promise.all(NAMES.map(prepare));
    const calls = process.env.CALLS ?? "";
    const texts = await Promise.all((await readdir(calls)).map((file) => readFile(join(calls, file), "utf8")));
    for (const name of NAMES) {
      const own = texts.filter((text) => text.includes(namespaceOf(name)));
      const commands = new Set(own.map((text) => text.split(" ").slice(0, 2).join(" ")));
      expect([...commands].sort()).toEqual([
        "kn service",
        "kubectl apply",
        "kubectl delete",
        "kubectl get",
        "kubectl logs",
      ]);
    }
    const ofOne = texts.filter((text) => NAMES.filter((name) => text.includes(name)).length === 1);
    expect(ofOne).toEqual(texts);
    for (const text of texts)
      for (const [, namespace] of text.matchAll(/ -n (\S+)/g)) expect(namespace).not.toBe("lotus");
  });

  it.each(NAMES)("the refusal of a changed prefix names the namespace of %s", (name) => {
    const previous = { configuration: { "kafka-prefix": "former." }, adminUrl: undefined };
    const options = { kafkaCredentials: NO_KAFKA } as DeployOptions;
    expect(() => choose(options, previous, environmentOf(name))).toThrow(
      `kubectl -n ${namespaceOf(name)} delete kafkasource --all`,
    );
  });
});
