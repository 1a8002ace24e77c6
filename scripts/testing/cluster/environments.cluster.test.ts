/** Two environments beside each other: one Kubernetes, one Kafka, one Postgres server. Each is applied from its rendered manifests. */
import { type ChildProcess, spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { Client, escapeIdentifier } from "pg";
import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { parseAllDocuments } from "yaml";
import { kafkaClient } from "#kernel/kafka";
import { PREFLIGHT_TYPE } from "#kernel/limits";
import { PROGRAM_NAMES } from "../../build/image-files.ts";
import { rolesOf, roleUrl } from "../../database/roles.ts";
import { verifyLedger } from "../../database/verify-ledger.ts";
import { backendsOf } from "../../kubernetes/backends.ts";
import { type Environment, parseEnvironment } from "../../kubernetes/environment.ts";
import { get, type KubernetesObject, list, secretValue } from "../../kubernetes/kubectl.ts";
import type { ImageUse } from "../../kubernetes/plan.ts";
import { render, STAGES } from "../../kubernetes/render.ts";
import { attempt, run } from "../../process/run.ts";
import { findFunctions } from "../../project/functions.ts";
import { PROGRAM, ROOT } from "../../project/paths.ts";
import { runScenario } from "../../scenario/run.ts";
import { ensureSecrets } from "../../secrets/cluster.ts";
import { asAdmin } from "../kafka.ts";
import { call, eventually, newUser, type TestUser } from "../lotus.ts";

const cluster = inject("cluster");
const backends = cluster.skipped === undefined ? cluster.backends : undefined;

const APPLY_MILLISECONDS_MAX = 1_200_000;
const SETTLE_MILLISECONDS_MAX = 120_000;
const WAIT = "--timeout=600s";
const NAMES = ["staging", "production"] as const;
type Name = (typeof NAMES)[number];
const other = (name: Name): Name => (name === "staging" ? "production" : "staging");

const all = await findFunctions();
const names = all.map(({ name }) => name);
/** The program that the laptop's deployment, made by setup.ts, brought into the cluster. */
let images: ReadonlyMap<string, ImageUse>;
let folder: string;
const sources: ChildProcess[] = [];
const databases = new Map<Name, Client>();

const databaseOf = (name: Name) => `lotus_${name}`;
const namespaceOf = (name: Name) => `lotus-${name}`;
const prefixOf = (name: Name) => `${name}.`;
/** sslip.io and the test cluster's own DNS lead the name to the address in it. */
const hostOf = (name: Name) => `${name}.${backends?.gateway}.sslip.io`;
const at = (name: Name) => ({ url: `http://${hostOf(name)}` });

/** Returns the URL of a database of the server that both environments use. */
function urlOf(base: string, database: string): string {
  const url = new URL(base);
  url.pathname = `/${database}`;
  return url.href;
}

function environmentOf(name: Name, more = ""): Environment {
  const url = new URL(urlOf(backends?.databaseUrl ?? "", databaseOf(name)));
  url.password = "";
  const text = `
namespace: ${namespaceOf(name)}
host: ${hostOf(name)}
database: { mode: outside, url: "${url.href}" }
kafka: { mode: outside, hosts: ["${backends?.kafka}"], prefix: ${prefixOf(name)}, partitions: 2, retentionBytes: 50000000 }
scale: { default: { maxPods: 2, connections: 2 } }
${more}`;
  return parseEnvironment(name, text, names, `${name}.yaml`);
}

/** Renders into a new folder. Returns the folder, and the objects of each stage. */
async function rendered(environment: Environment, from = images) {
  const files = await render({
    all,
    names,
    images: from,
    environment,
    backends: backendsOf(environment),
    version: "1.2.3",
  });
  const path = await mkdtemp(join(folder, `${environment.name}-`));
  for (const [file, text] of files) {
    await mkdir(dirname(join(path, file)), { recursive: true });
    await writeFile(join(path, file), text);
  }
  const objects = new Map<string, KubernetesObject[]>();
  for (const stage of STAGES) {
    const texts = [...files].filter(
      ([file]) => file.startsWith(`${stage}/`) && !/(?:kustomization|references)\.yaml$/.test(file),
    );
    const documents = texts.flatMap(([, text]) => parseAllDocuments(text).map((document) => document.toJS()));
    if (documents.length > 0) objects.set(stage, documents);
  }
  return { path, objects };
}

async function waitForJob(name: string, namespace: string): Promise<void> {
  const conditions = async (): Promise<{ type: string; status: string }[]> =>
    (await get("job", name, namespace))?.status?.conditions ?? [];
  const ended = await eventually(
    `the job ${name} ends`,
    async () => (await conditions()).find(({ type, status }) => /^(Complete|Failed)$/.test(type) && status === "True"),
    600_000,
  );
  if (ended.type === "Complete") return;
  const { stdout } = await attempt("kubectl", ["logs", `job/${name}`, "-n", namespace, "--tail=20"]);
  throw new Error(`The job ${name} failed:\n${stdout}`);
}

/** Applies the stages in their order, as docs/deploy.md says. Each stage is ready before the next begins. */
async function applyStages(environment: Environment, from = images): Promise<string> {
  const { namespace } = environment;
  const { path, objects } = await rendered(environment, from);
  for (const [stage, documents] of objects) {
    await run("kubectl", ["apply", "-k", join(path, stage)]);
    if (stage === "1-platform") await makeSecrets(environment);
    for (const { kind, apiVersion, metadata } of documents) {
      if (kind === "Job") await waitForJob(metadata.name, namespace);
      else if (apiVersion === "serving.knative.dev/v1")
        await waitForReady(`services.serving.knative.dev/${metadata.name}`, namespace);
      else if (kind === "PingSource") await waitForReady(`pingsource/${metadata.name}`, namespace);
      else if (kind === "Ingress")
        await waitForReady(`ingresses.networking.internal.knative.dev/${metadata.name}`, namespace);
    }
  }
  return path;
}

async function waitForReady(object: string, namespace: string): Promise<void> {
  await run("kubectl", ["wait", object, "-n", namespace, "--for=condition=Ready", WAIT]);
}

async function makeSecrets(environment: Environment): Promise<void> {
  const { database } = backendsOf(environment);
  const password = decodeURIComponent(new URL(backends?.databaseUrl ?? "").password);
  const none = { tls: false, authority: undefined, client: undefined, user: undefined };
  await ensureSecrets(database, none, environment, { password });
}

/** Replaces the data plane of KafkaSource. It reads the rendered sources of one environment. */
function startSources(name: Name, path: string): void {
  const template = `http://{name}.${namespaceOf(name)}.svc.cluster.local`;
  const args = [PROGRAM, "kafka-source", "--sources", join(path, "kafka-sources"), "--sink-template", template];
  sources.push(spawn(process.execPath, args, { cwd: ROOT, stdio: ["ignore", "inherit", "inherit"] }));
}

/** Writes the KafkaSources without the files of kustomize. */
async function kafkaSourcesOf(environment: Environment, path: string): Promise<void> {
  const { objects } = await rendered(environment);
  await mkdir(join(path, "kafka-sources"), { recursive: true });
  for (const document of objects.get("7-sources") ?? [])
    await writeFile(join(path, "kafka-sources", `${document.metadata.name}.yaml`), JSON.stringify(document));
}

/** Returns the image that the laptop's deployment uses for each function and job. */
async function imagesInCluster(): Promise<Map<string, ImageUse>> {
  const found = new Map<string, ImageUse>();
  const note = (name: string, { metadata, spec }: KubernetesObject["spec"]) =>
    found.set(name, {
      reference: spec.containers[0].image,
      content: metadata.annotations["lotus/content"],
      commit: "c0ffee",
    });
  for (const { metadata, spec } of await list("services.serving.knative.dev", "lotus"))
    note(metadata.name, spec.template);
  for (const { metadata, spec } of await list("jobs", "lotus"))
    note(metadata.labels?.["app.kubernetes.io/name"] ?? "", spec.template);
  expect([...found.keys()].sort()).toEqual([...names, ...PROGRAM_NAMES].sort());
  return found;
}

/** Removes what an earlier run left: namespaces, topics, consumer groups, databases and roles. */
async function removeAll(server: Client): Promise<void> {
  for (const name of NAMES)
    await run("kubectl", ["delete", "namespace", namespaceOf(name), "--ignore-not-found", "--wait", WAIT]);
  const isOurs = (text: string) => NAMES.some((name) => text.startsWith(prefixOf(name)));
  await asAdmin([backends?.kafka ?? ""], async (admin) => {
    const { groups } = await admin.listGroups();
    const own = groups.map(({ groupId }) => groupId).filter(isOurs);
    if (own.length > 0) await admin.deleteGroups(own);
    const topics = (await admin.listTopics()).filter(isOurs);
    if (topics.length > 0) await admin.deleteTopics({ topics });
  });
  for (const name of NAMES) {
    await server.query(`drop database if exists ${databaseOf(name)} with (force)`);
    for (const role of rolesOf(databaseOf(name)).values())
      await server.query(`drop role if exists ${escapeIdentifier(role)}`);
  }
}

interface Received {
  readonly topic: string;
  readonly type: string;
  readonly source: string;
}

/** Reads every record of topics. */
async function recordsOf(topics: readonly string[]): Promise<Received[]> {
  const bootstrap = [backends?.kafka ?? ""];
  const total = await asAdmin(bootstrap, async (admin) => {
    const offsets = await Promise.all(topics.map((topic) => admin.fetchTopicOffsets(topic)));
    return offsets.flat().reduce((sum, { high, low }) => sum + Number(high) - Number(low), 0);
  });
  const consumer = (await kafkaClient(bootstrap)).consumer({ groupId: `test-${randomUUID()}` });
  const received: Received[] = [];
  await consumer.connect();
  try {
    await consumer.subscribe({ topics: [...topics], fromBeginning: true });
    await consumer.run({
      eachMessage: async ({ topic, message: { headers = {} } }) => {
        received.push({ topic, type: String(headers.ce_type), source: String(headers.ce_source) });
      },
    });
    await eventually("every record is read", () => received.length >= total, SETTLE_MILLISECONDS_MAX);
  } finally {
    await consumer.disconnect();
  }
  return received;
}

const rowsOf = async <T>(name: Name, sql: string): Promise<T[]> =>
  ((await databases.get(name)?.query(sql))?.rows ?? []) as T[];

async function settle(name: Name): Promise<void> {
  await eventually(
    `the outbox of ${name} is empty`,
    async () => (await rowsOf(name, "select 1 from events.outbox limit 1")).length === 0,
    SETTLE_MILLISECONDS_MAX,
  );
  expect(await rowsOf(name, "select subscriber, reason from events.dead_letters")).toEqual([]);
  const database = databases.get(name);
  if (database !== undefined) expect(await verifyLedger(database)).toBeUndefined();
}

async function scenario(name: Name): Promise<void> {
  const { requests, assertions, failures } = await runScenario({ baseUrl: at(name).url, quiet: true });
  expect({ name, requests, assertions, failures }).toEqual({ name, requests: 14, assertions: 22, failures: [] });
}

/** By name of a function, the revision that receives all of its traffic. */
async function servingRevisions(name: Name): Promise<Map<string, string>> {
  const services = await list("services.serving.knative.dev", namespaceOf(name));
  return new Map(
    services.map(({ metadata, status }) => {
      const traffic: { revisionName: string; percent?: number }[] = status?.traffic ?? [];
      return [metadata.name, traffic.find(({ percent }) => percent === 100)?.revisionName ?? "split"];
    }),
  );
}

describe.skipIf(backends === undefined)("staging and production on one cluster, one Kafka and one Postgres", () => {
  let server: Client;
  const users = new Map<Name, TestUser>();

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "lotus-environments-"));
    images = await imagesInCluster();
    server = new Client({ connectionString: backends?.localDatabaseUrl });
    await server.connect();
    await removeAll(server);
    for (const name of NAMES) {
      await server.query(`create database ${databaseOf(name)}`);
      const path = await applyStages(environmentOf(name));
      await kafkaSourcesOf(environmentOf(name), path);
      startSources(name, path);
      const database = new Client({ connectionString: urlOf(backends?.localDatabaseUrl ?? "", databaseOf(name)) });
      await database.connect();
      databases.set(name, database);
    }
  }, 2 * APPLY_MILLISECONDS_MAX);

  afterAll(async () => {
    for (const source of sources) {
      const ended = new Promise((resolve) => source.once("close", resolve));
      source.kill();
      await ended;
    }
    for (const database of databases.values()) await database.end();
    await removeAll(server);
    await server.end();
    await rm(folder, { recursive: true, force: true });
  }, APPLY_MILLISECONDS_MAX);

  it("both play the scenario at the same time", async () => {
    await Promise.all(NAMES.map(scenario));
    await Promise.all(NAMES.map(settle));
  });

  it("keep their users, accounts and notifications apart", async () => {
    for (const name of NAMES) users.set(name, await newUser(at(name), 100));
    await Promise.all(NAMES.map(settle));
    const tables = {
      "profile.users": "id",
      "billing.accounts where kind = 'user'": "id",
      "notification.notifications": "user_id",
      "billing.transfers": "id",
    };
    for (const [table, column] of Object.entries(tables)) {
      const [staging = [], production = []] = await Promise.all(
        NAMES.map(async (name) =>
          (await rowsOf<{ id: string }>(name, `select ${column} as id from ${table}`)).map(({ id }) => id),
        ),
      );
      expect(staging.length, table).toBeGreaterThan(0);
      expect(production.length, table).toBeGreaterThan(0);
      expect(staging.filter((id) => production.includes(id))).toEqual([]);
    }
  });

  it.each(NAMES)("%s: the other refuses its users and tokens", async (name) => {
    const { email = "", password = "", token = "" } = users.get(name) ?? {};
    const login = await call(at(other(name)), "POST /profile/login", { body: { email, password } });
    expect(login.status).toBe(401);
    expect((await call(at(other(name)), "GET /billing/balance", { token })).status).toBe(401);
    expect((await call(at(name), "GET /billing/balance", { token })).status).toBe(200);
  });

  it("a topic has events of one installation only, and a consumer group reads topics of one prefix", async () => {
    const topics = await asAdmin([backends?.kafka ?? ""], (admin) => admin.listTopics());
    for (const name of NAMES) {
      const [installation] = await rowsOf<{ id: string }>(name, "select events.installation_id() as id");
      const own = topics.filter((topic) => topic.startsWith(prefixOf(name)));
      expect(own).toHaveLength(3);
      const records = await recordsOf(own);
      const events = records.filter(({ type }) => type !== PREFLIGHT_TYPE);
      expect(records.length - events.length).toBe(own.length);
      expect(events.length).toBeGreaterThan(3);
      for (const { source } of events) expect(source).toMatch(new RegExp(`^/lotus/${installation?.id}/`));
    }
    await asAdmin([backends?.kafka ?? ""], async (admin) => {
      for (const name of NAMES) {
        const { groups } = await admin.listGroups();
        const own = groups.map(({ groupId }) => groupId).filter((group) => group.startsWith(prefixOf(name)));
        expect(own.length).toBeGreaterThan(1);
        for (const groupId of own)
          for (const { topic } of await admin.fetchOffsets({ groupId }))
            expect(topic.startsWith(prefixOf(name))).toBe(true);
      }
    });
  });

  it.each(NAMES)("%s: its roles cannot connect to the database of the other", async (name) => {
    const secret = await get("secret", "database-order", namespaceOf(name));
    const own = new URL(roleUrl(urlOf(backends?.localDatabaseUrl ?? "", databaseOf(name)), "order"));
    own.password = secretValue(secret, "password") ?? "";
    const connect = async (database: string) => {
      const client = new Client({ connectionString: urlOf(own.href, database) });
      return client.connect().then(
        async () => {
          await client.end();
          return "connected";
        },
        (error: { code: string }) => error.code,
      );
    };
    expect(await connect(databaseOf(name))).toBe("connected");
    expect(await connect(databaseOf(other(name)))).toBe("42501");
  });

  it(
    "staging rolls forward and back, and production keeps its revisions and serves meanwhile",
    async () => {
      const ORIGIN = "https://new.example";
      const allowed = async (name: Name) =>
        (await call(at(name), "GET /order/subscriptions", { headers: { origin: ORIGIN } })).headers.get(
          "access-control-allow-origin",
        );
      const [staging, production] = [await servingRevisions("staging"), await servingRevisions("production")];
      expect(await allowed("staging")).toBeNull();
      const { token = "" } = users.get("staging") ?? {};
      const balance = async () => (await call(at("staging"), "GET /billing/balance", { token })).body;
      const before = await balance();

      const next = new Map([...images].map(([name, image]) => [name, { ...image, content: "f".repeat(16) }]));
      const forward = applyStages(environmentOf("staging", `cors: ["${ORIGIN}"]`), next);
      await Promise.all([forward, scenario("production")]);
      const rolled = await servingRevisions("staging");
      for (const name of names) expect(rolled.get(name), name).not.toBe(staging.get(name));
      expect(await allowed("staging")).toBe(ORIGIN);
      expect(await allowed("production")).toBeNull();
      await scenario("staging");

      await Promise.all([applyStages(environmentOf("staging")), scenario("production")]);
      expect(await allowed("staging")).toBeNull();
      await scenario("staging");
      expect(await balance()).toEqual(before);
      expect(await servingRevisions("production")).toEqual(production);
      await Promise.all(NAMES.map(settle));
    },
    2 * APPLY_MILLISECONDS_MAX,
  );
});
