/**
 * Measures a deployment: the image of each function, its start from zero beside a bare Node Service, and the memory of its pod.
 *   node --import ./scripts/typescript.mjs scripts/bench/programs/measure-cluster.ts --rounds 10 --base IMAGE       on a cluster without other callers of Lotus
 */
import { randomUUID } from "node:crypto";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { describeError } from "../../cli/errors.ts";
import { table } from "../../cli/text.ts";
import { TARGET_DEFAULT } from "../../generate/knative.ts";
import { get, list, readDocuments, toYaml } from "../../kubernetes/kubectl.ts";
import { BASE_DEFAULT } from "../../kubernetes/options.ts";
import { run } from "../../process/run.ts";
import { ROOT } from "../../project/paths.ts";
import { functionPods, inContainer, NAMESPACE, waitForZero } from "../../testing/cluster/pods.ts";
import { median, ratios, spread } from "../statistics.ts";

const BARE = "bare-node";
const BARE_PROGRAM =
  'require("node:http").createServer((_, a) => a.end("{}")).listen(process.env.PORT); process.on("SIGTERM", () => process.exit());';

interface Call {
  readonly name: string;
  readonly url: string;
  readonly method: "GET" | "POST";
  readonly body?: object;
  readonly headers?: Record<string, string>;
}

/** A Knative Service like that of a function, with a bare Node program. */
async function applyBare(base: string): Promise<void> {
  const [service] = await readDocuments("knative/functions/order-subscriptions.yaml");
  if (service === undefined) throw new Error("knative/functions/order-subscriptions.yaml is empty");
  const { spec } = service.spec.template;
  const { env: _, volumeMounts: __, ...container } = spec.containers[0];
  const bare = {
    ...service,
    metadata: { ...service.metadata, name: BARE },
    spec: {
      template: {
        ...service.spec.template,
        spec: {
          timeoutSeconds: spec.timeoutSeconds,
          enableServiceLinks: false,
          containers: [{ ...container, image: base, args: ["-e", BARE_PROGRAM] }],
        },
      },
    },
  };
  await mkdir(join(ROOT, ".lotus/knative"), { recursive: true });
  const file = join(ROOT, `.lotus/knative/${BARE}.yaml`);
  await writeFile(file, toYaml([bare]));
  await run("kn", ["service", "apply", "-f", file, "-n", NAMESPACE]);
}

async function newUser(): Promise<{ token: string; id: string; email: string }> {
  const email = `${randomUUID()}@example.com`;
  const post = async (path: string, body: object) => {
    const answer = await fetch(`http://${TARGET_DEFAULT.host}${path}`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
    });
    return (await answer.json()) as { id: string; token: string };
  };
  const { id } = await post("/profile/register", { email, password: "correct horse battery" });
  const { token } = await post("/profile/login", { email, password: "correct horse battery" });
  await fetch(`http://${TARGET_DEFAULT.host}/billing/add-money?money=100000`, {
    method: "POST",
    headers: { authorization: `Bearer ${token}` },
  });
  return { token, id, email };
}

/** A real request to each function, as a user makes it, or a source. */
function callsOf(user: { token: string; id: string; email: string }): Call[] {
  const endpoint = (method: Call["method"], path: string, body?: object): Call => ({
    name: path.slice(1).split("?")[0]?.replace("/", "-") ?? "",
    url: `http://${TARGET_DEFAULT.host}${path}`,
    method,
    headers: { authorization: `Bearer ${user.token}`, ...(body && { "content-type": "application/json" }) },
    ...(body && { body }),
  });
  const event = (name: string, topic: string, data: object): Call => ({
    name,
    url: `http://${name}.${NAMESPACE}.svc.cluster.local/`,
    method: "POST",
    body: data,
    headers: {
      "content-type": "application/json",
      "ce-specversion": "1.0",
      "ce-id": randomUUID(),
      "ce-source": "/lotus/measure",
      "ce-type": `lotus.${topic}.v1`,
    },
  });
  return [
    { name: BARE, url: `http://${BARE}.${NAMESPACE}.svc.cluster.local/`, method: "GET" },
    endpoint("POST", "/profile/register", { email: `${randomUUID()}@example.com`, password: "correct horse battery" }),
    endpoint("POST", "/profile/login", { email: user.email, password: "correct horse battery" }),
    endpoint("GET", "/profile/me"),
    endpoint("GET", "/profile/jwks"),
    endpoint("GET", "/billing/balance"),
    endpoint("POST", "/billing/add-money?money=10"),
    endpoint("POST", "/billing/withdraw-money?money=1"),
    endpoint("GET", "/billing/history"),
    endpoint("GET", "/order/subscriptions"),
    endpoint("POST", "/order/pay?idSubscription=1"),
    endpoint("POST", "/order/create", { price: 1 }),
    endpoint("GET", "/order/list"),
    endpoint("GET", "/notification?limit=1"),
    event("billing-open-account", "user-registered", { userId: user.id, email: user.email }),
  ];
}

/** Resident memory of a function's process, in bytes: process 1 of its container reports it. */
async function memoryOf(name: string): Promise<number | undefined> {
  const [pod] = await functionPods(name);
  if (pod === undefined) return undefined;
  const read = 'console.log(require("node:fs").readFileSync("/proc/1/status", "utf8").match(/VmRSS:\\s+(\\d+)/)[1])';
  const text = await inContainer(pod, read);
  return text === undefined ? undefined : Number(text.trim()) * 1024;
}

/** Returns a new order each time, because the remaining work of a function slows the next one down. */
function shuffled<T>(items: readonly T[]): T[] {
  return items
    .map((item) => ({ item, place: Math.random() }))
    .sort((one, other) => one.place - other.place)
    .map(({ item }) => item);
}

async function measureRound(calls: readonly Call[], times: Map<string, number[]>, memory: Map<string, number>) {
  const slowest = { name: "", took: 0, at: "" };
  for (const { name, url, method, body, headers } of shuffled(calls)) {
    const began = performance.now();
    const answer = await fetch(url, { method, headers: headers ?? {}, ...(body && { body: JSON.stringify(body) }) });
    await answer.arrayBuffer();
    const took = performance.now() - began;
    if (!answer.ok) throw new Error(`${name} answered ${answer.status}`);
    times.set(name, [...(times.get(name) ?? []), took]);
    if (took > slowest.took) Object.assign(slowest, { name, took, at: new Date().toISOString() });
    const bytes = await memoryOf(name);
    if (bytes !== undefined) memory.set(name, bytes);
  }
  return slowest;
}

/** Returns the bytes of a function's image and of its last layers, as nodes report them; NaN for an image that no node reports. */
async function imageBytes(name: string, base: string): Promise<{ whole: number; own: number }> {
  const nodes = await list("nodes", "");
  const images: { names?: string[]; sizeBytes: number }[] = nodes.flatMap(({ status }) => status?.images ?? []);
  const bytesOf = (reference: string) =>
    images.find(({ names = [] }) => names.includes(reference))?.sizeBytes ?? Number.NaN;
  const service = await get("services.serving.knative.dev", name, NAMESPACE);
  const whole = bytesOf(service?.spec.template.spec.containers[0].image);
  return { whole, own: whole - bytesOf(base) };
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: { rounds: { type: "string", default: "10" }, base: { type: "string", default: BASE_DEFAULT } },
  });
  await applyBare(values.base);
  const user = await newUser();
  const times = new Map<string, number[]>();
  const memory = new Map<string, number>();
  for (let round = 1; round <= Number(values.rounds); round++) {
    await waitForZero();
    const { name, took, at } = await measureRound(callsOf(user), times, memory);
    console.log(`round ${round} of ${values.rounds} is done; the slowest: ${name}, ${took.toFixed(0)} ms, at ${at}`);
  }
  const bare = times.get(BARE) ?? [];
  const rows = [["function", "from zero, ms", `against ${BARE}`, "resident MiB", "image MB", "of these its own"]];
  for (const [name, taken] of [...times].sort(([a], [b]) => a.localeCompare(b))) {
    const { whole, own } = await imageBytes(name, values.base);
    const resident = (memory.get(name) ?? Number.NaN) / 1024 ** 2;
    const figures = [spread(taken, 0), median(ratios(taken, bare)).toFixed(2), resident.toFixed(1)];
    rows.push([name, ...figures, (whole / 1e6).toFixed(1), (own / 1e6).toFixed(2)]);
  }
  await run("kn", ["service", "delete", BARE, "-n", NAMESPACE]);
  console.log(
    `\n${table(rows)}\n\nOf ${values.rounds} rounds: the median (the least–the most); the ratio round by round.`,
  );
}

main().catch((error: unknown) => {
  console.error(describeError(error));
  process.exit(1);
});
