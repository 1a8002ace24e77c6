/** lotus deploy, undeploy and rotate against a stub of a cluster: questions, refusals, and the objects of other programs. */
import { spawn } from "node:child_process";
import { chmod, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { PROGRAM, ROOT } from "../project/paths.ts";

/** 0.13 free CPUs, Kourier in another namespace, and objects of another program beside those of Lotus. */
const KUBECTL = `#!/bin/sh
echo "$*" >> "$CALLS"
items() { echo "{\\"items\\":[$1]}"; }
named() { items "{\\"metadata\\":{\\"name\\":\\"$1\\"}}"; }
if [ "$DEPLOYED" = yes ]; then case "$*" in
"apply "*) cat >> "$CALLS"; exit ;;
"get services.serving.knative.dev -n"*) items '{"spec":{"template":{"spec":{"containers":[{"image":"registry.example/lotus:1"}]}}}}'; exit ;;
"get configmap lotus"*) echo '{"data":{"kafka":"cluster-1","database":"cluster","kafka-prefix":""}}'; exit ;;
"get secret database-"*) echo "{\\"data\\":{\\"url\\":\\"$OWNER\\",\\"password\\":\\"b2xk\\"}}"; exit ;;
"get job "*) echo '{"status":{"conditions":[{"type":"Complete","status":"True"}]}}'; exit ;;
esac; fi
case "$*" in
"get crd -o name") for crd in services.serving ingresses.networking.internal pingsources.sources kafkasources.sources; do echo "x/$crd.knative.dev"; done ;;
"config current-context") echo company ;;
"get namespaces "*) echo namespace/default ;;
"get nodes"*) items '{"spec":{},"status":{"allocatable":{"cpu":"1930m"},"nodeInfo":{"architecture":"amd64"}}}' ;;
"get pods -A"*) items '{"metadata":{"name":"x"},"status":{},"spec":{"containers":[{"resources":{"requests":{"cpu":"1800m"}}}]}}' ;;
"get service kourier-internal -n $KOURIER "*) echo '{"metadata":{"name":"kourier-internal"}}' ;;
"get persistentvolumeclaim"*part-of=lotus*) named data-postgres-0 ;;
"get statefulset"*part-of=lotus*) named postgres ;;
"get podmonitors"*part-of=lotus*) named lotus ;;
"get namespace "*) echo '{"metadata":{}}' ;;
"exec"*) echo "billing.transfers 42" ;;
"get "*"-l "*) items ;;
"get deployment "*|"get networkpolicy "*) named company ;;
"get "*" -A -o json") items ;;
"get "*) echo NotFound >&2; exit 1 ;;
esac
`;

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "lotus-stub-"));
  const programs = {
    kubectl: KUBECTL,
    kn: "#!/bin/sh\necho Version: v1.23.0\n",
    ...Object.fromEntries(["docker", "minikube", "buildah", "skopeo"].map((name) => [name, "#!/bin/sh\nexit 1\n"])),
  };
  for (const [name, text] of Object.entries(programs)) {
    await writeFile(join(folder, name), text);
    await chmod(join(folder, name), 0o755);
  }
});
beforeEach(() => writeFile(join(folder, "calls"), ""));
afterAll(() => rm(folder, { recursive: true, force: true }));

async function lotus(args: readonly string[], environment: Record<string, string> = {}) {
  const child = spawn(process.execPath, [PROGRAM, ...args], {
    cwd: ROOT,
    stdio: ["ignore", "pipe", "pipe"],
    env: {
      ...process.env,
      KUBECONFIG: "none",
      KOURIER: "kourier-system",
      CALLS: join(folder, "calls"),
      PATH: `${folder}${delimiter}${process.env.PATH}`,
      ...environment,
    },
  });
  let said = "";
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding("utf8").on("data", (text: string) => {
      said += text;
    });
  const code = await new Promise<number | null>((resolve) => child.once("close", resolve));
  return { code, said, calls: await readFile(join(folder, "calls"), "utf8") };
}
const OUTSIDE = [
  "--database",
  "postgres://o@db.example/x",
  "--brokers",
  "k.example:9092",
  "--registry",
  "registry.example/x",
];
const CHANGES = /^(?:delete|apply|patch|create|annotate|replace)/m;

describe.skipIf(process.platform === "win32")("lotus deploy", () => {
  it("warns of few free CPUs, because a cluster may add nodes, and does not search for a builder", async () => {
    const { code, said, calls } = await lotus(["deploy", "--check", ...OUTSIDE]);
    expect(said).toContain("Warning: The cluster has 0.13 CPUs left");
    expect(said).toContain("The cluster fits.");
    expect([code, CHANGES.test(calls)]).toEqual([0, false]);
  });

  it("names the namespace in which Kourier is missing", async () => {
    const { code, said } = await lotus(["deploy", "--check", ...OUTSIDE], { KOURIER: "knative-serving-ingress" });
    expect(said).toContain("Kourier has no Service kourier-internal in the namespace kourier-system");
    expect(code).toBe(1);
  });

  it("refuses --platform without the architecture of a node", async () => {
    const { code, said } = await lotus(["deploy", "--check", "--platform", "arm64", ...OUTSIDE]);
    expect(said).toContain("nodes of the architecture amd64");
    expect(code).toBe(1);
  });

  it("changes staging only after a question", async () => {
    const { code, said, calls } = await lotus(["deploy", "--environment", "staging"]);
    expect(said).toContain("Environment staging: namespace lotus-staging of the kubectl context company.");
    expect(said).toContain("A script confirms with --yes.");
    expect([code, CHANGES.test(calls)]).toEqual([1, false]);
  });
});

describe.skipIf(process.platform === "win32")("lotus undeploy", () => {
  it.each([
    ["without an answer", []],
    ["with another name", ["--confirm", "staging"]],
  ])("--delete-data counts the rows, and removes nothing %s", async (_, more) => {
    const { code, said, calls } = await lotus(["undeploy", "--delete-data", ...more]);
    expect(said).toContain("namespace lotus of the kubectl context company");
    expect(said).toContain("data-postgres-0");
    expect(said).toContain("42 rows in billing.transfers");
    expect([code, CHANGES.test(calls)]).toEqual([1, false]);
  });

  it("removes objects with the label of Lotus, its monitor among them, and no other object", async () => {
    const { code, calls } = await lotus(["undeploy"]);
    const deleted = calls.split("\n").filter((line) => line.startsWith("delete "));
    expect(deleted.map((line) => line.split(" ").slice(1, 3).join(" "))).toEqual([
      "statefulset postgres",
      "podmonitors.monitoring.coreos.com lotus",
    ]);
    expect(code).toBe(0);
  });

  it("removes the data when the name is right, and leaves the namespace", async () => {
    const { code, calls } = await lotus(["undeploy", "--delete-data", "--confirm", "laptop"]);
    expect(calls).toContain("delete persistentvolumeclaim data-postgres-0");
    expect(calls).not.toContain("delete namespace");
    expect(code).toBe(0);
  });

  it("asks before it removes the functions of staging", async () => {
    const { code, calls } = await lotus(["undeploy", "--environment", "staging"]);
    expect([code, CHANGES.test(calls)]).toEqual([1, false]);
  });
});

describe.skipIf(process.platform === "win32")("lotus rotate", () => {
  const deployed = {
    DEPLOYED: "yes",
    OWNER: Buffer.from("postgres://lotus:old@postgres.lotus.svc.cluster.local:5432/lotus").toString("base64"),
  };

  it("passwords needs no finished job: it uses the image of a function", async () => {
    const { code, said, calls } = await lotus(["rotate", "passwords", "order"], deployed);
    expect(said).toContain("1 passwords are new.");
    expect(calls).toContain("image: registry.example/lotus:1");
    expect(calls).toContain("--change-passwords");
    expect(code).toBe(0);
  });

  it("passwords owner stores the next password before the database gets it", async () => {
    const { code, calls } = await lotus(["rotate", "passwords", "owner"], deployed);
    const [, next] = /next-password: (\S+)/.exec(calls) ?? [];
    expect(next).toMatch(/^[\w-]{32}$/);
    expect(calls.indexOf("next-password:")).toBeLessThan(calls.indexOf("kind: Job"));
    expect(calls).toContain(`url: postgres://lotus:${next}@postgres.lotus.svc.cluster.local:5432/lotus`);
    expect(code).toBe(0);
  });
});
