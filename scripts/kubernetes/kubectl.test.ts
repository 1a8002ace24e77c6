/** Environments that one process prepares at the same time, and the Secrets of a deployment, against a stub of a cluster. */
import { chmod, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { SERVICES } from "../database/sql.ts";
import { changePublicKeys, ensureSecrets } from "../secrets/cluster.ts";
import { addKey } from "../secrets/keys.ts";
import { backendsOf, choose } from "./backends.ts";
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
"get secret database-admin -n lotus-signed "*) echo "$OWNER" ;;
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

describe.skipIf(process.platform === "win32")("a stub of a cluster", () => {
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

  describe("an environment whose database has a certificate authority", () => {
    const url = "postgres://owner@db.example:5432/shop?sslmode=verify-full";
    const text = `
namespace: lotus-signed
host: signed.example
database: { mode: outside, url: "${url}", authority: true }
kafka: { mode: cluster }`;
    const environment = parseEnvironment("signed", text, []);
    const { database } = backendsOf(environment);
    const former = url.replace("owner@", "owner:secret@");

    /** Makes the Secrets beside an owner's Secret. Returns what kubectl applies. */
    async function applied(owner: Readonly<Record<string, string>>): Promise<string[]> {
      const data = Object.fromEntries(Object.entries(owner).map(([key, value]) => [key, btoa(value)]));
      const calls = await mkdtemp(join(folder, "calls-"));
      Object.assign(process.env, { CALLS: calls, OWNER: JSON.stringify({ metadata: {}, data }) });
      const failure = await ensureSecrets(database, NO_KAFKA, environment).catch((error: Error) => error.message);
      const texts = await Promise.all((await readdir(calls)).map((file) => readFile(join(calls, file), "utf8")));
      return [...(typeof failure === "string" ? [failure] : []), ...texts.filter((call) => / apply /.test(call))];
    }
    afterAll(() => {
      delete process.env.OWNER;
    });

    it("writes no Secret while the authority is missing", async () => {
      const sentence = "The Secret database-admin has no ca.crt. Give --database-authority FILE once.";
      expect(await applied({ url: former, password: "secret" })).toEqual([sentence]);
    });

    it("keeps the authority when the URL names it for the first time", async () => {
      const [written = "", ...others] = await applied({ url: former, password: "secret", "ca.crt": "PEM" });
      expect(others).toEqual([]);
      expect(written).toContain("sslrootcert=");
      // The owner's Secret and the Secrets of the roles; no copy of the former Secret.
      expect(written.match(/ca\.crt"?: "?PEM/g)).toHaveLength(SERVICES.length + 1);
      expect(written).not.toMatch(/database-admin-\d/);
    });
  });

  it.each(NAMES)("the refusal of a changed prefix names the namespace of %s", (name) => {
    const previous = { configuration: { "kafka-prefix": "former." }, adminUrl: undefined };
    const options = { kafkaCredentials: NO_KAFKA } as DeployOptions;
    expect(() => choose(options, previous, environmentOf(name))).toThrow(
      `kubectl -n ${namespaceOf(name)} delete kafkasource --all`,
    );
  });
});
