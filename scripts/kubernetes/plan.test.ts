/** What a deployment decides before it changes anything: options, backends, and what is completed in the YAML. */

import { describe, expect, it } from "vitest";
import { PROGRAM_NAMES } from "../build/image-files.ts";
import { command } from "../cli/command.ts";
import { SERVICES } from "../database/sql.ts";
import { AUTHORITY } from "../testing/postgres-server.ts";
import { type Backends, choose, configuration } from "./backends.ts";
import { toYaml } from "./kubectl.ts";
import { BASE_DEFAULT, DEPLOY_OPTIONS, type DeployOptions, readOptions } from "./options.ts";
import { type ClusterPlan, makePlan } from "./plan.ts";

const OWNER = "postgres://owner:secret@db.example:5433/lotus";
const NEON = "postgresql://owner:secret@ep-quiet-1.eu-central-1.aws.neon.tech/lotus?sslmode=require";
const nothing = { configuration: undefined, adminUrl: undefined };

/** Reads a command line as `lotus deploy` does. */
async function options(...args: string[]): Promise<DeployOptions> {
  let read: DeployOptions | undefined;
  const deploy = command({
    about: "",
    usage: "",
    options: DEPLOY_OPTIONS,
    async run(values, functions) {
      read = readOptions(values, functions, { KAFKA_PASSWORD: "hush" });
    },
  });
  await deploy.run("deploy", args);
  if (read === undefined) throw new Error("The command did not run.");
  return read;
}

async function planOf(backends: Backends, names = ["order-pay", "notification-store"]): Promise<ClusterPlan> {
  const images = new Map(
    [...names, ...PROGRAM_NAMES].map((name) => [name, `dev.local/lotus-${name}:0123456789abcdef`]),
  );
  return makePlan(names, images, backends);
}

const all = (plan: ClusterPlan) =>
  toYaml([
    ...plan.platform,
    plan.migrate,
    plan.topics,
    ...plan.functions.flatMap(({ service, source }) => [service, source ?? []].flat()),
  ]);
const find = (plan: ClusterPlan, kind: string, name: string) =>
  plan.platform.find((document) => document.kind === kind && document.metadata.name === name);

describe("options", () => {
  it("are everything in the cluster, unless one says otherwise", async () => {
    expect(await options()).toMatchObject({ functions: [], database: undefined, base: BASE_DEFAULT, dryRun: false });
    expect((await options("order-pay", "--brokers", "a:1, b:2")).kafka).toEqual(["a:1", "b:2"]);
    expect((await options("--registry", "ghcr.io/me/")).registry).toBe("ghcr.io/me");
  });

  it.each([
    [["--colour"], "lotus deploy has no option --colour."],
    [["--database", "mysql://a:b@c/d"], "--database must be a URL such as"],
    [["--database", "postgres://a@c/d"], "--database needs the owner's password"],
    [["--brokers", "kafka"], '"kafka" is not'],
    [["--brokers", "a:1", "--replicas", "3"], "Give one of them"],
    [["--registry", "a/b", "--load-command", "x {image}"], "Give one of them"],
    [["--load-command", "x"], "{image}"],
    [["--kafka-tls"], "need a Kafka outside the cluster: --brokers"],
    [["--brokers", "a:1", "--kafka-authority", "/nowhere"], "give --kafka-tls too"],
    [["--brokers", "a:1", "--kafka-tls", "--kafka-authority", "package.json"], "contains no certificate"],
    [["--replicas", "2"], "--replicas must be 1 or 3"],
    [["--builder", "make"], "--builder must be docker or minikube or buildah"],
    [["--registry", "https://x"], "--registry must be a host and a path"],
  ])("%j is refused with a sentence", async (args, sentence) => {
    await expect(options(...args)).rejects.toThrow(sentence);
  });
});

describe("backends", () => {
  it("follow the command line", async () => {
    expect(choose(await options("--database", NEON), nothing).database.kind).toBe("neon");
    expect(choose(await options("--database", OWNER), nothing).database.kind).toBe("outside");
    expect(choose(await options("--replicas", "3"), nothing).kafka).toEqual({ kind: "cluster", brokers: 3 });
    const local = await options("--database", "postgres://a:b@localhost/d");
    expect(() => choose(local, nothing)).toThrow("cannot be reached from the cluster");
  });

  it("keep the origins of pages until --cors names others, or none", async () => {
    const origins = (backends: Backends) => configuration(backends).data;
    const first = choose(await options("--cors", "https://shop.example, http://localhost:3000"), nothing);
    expect(origins(first)).toMatchObject({ "cors-origins": "https://shop.example,http://localhost:3000" });
    const written = { kafka: "cluster-1", "cors-origins": "https://shop.example" };
    const previous = { configuration: written, adminUrl: undefined };
    expect(origins(choose(await options(), previous))).toMatchObject({ "cors-origins": "https://shop.example" });
    expect(origins(choose(await options("--cors", ""), previous))).not.toHaveProperty("cors-origins");
    await expect(options("--cors", "shop.example")).rejects.toThrow('"shop.example" is not');
  });

  it("stay as they were without options", async () => {
    const configuration = { kafka: "outside", "kafka-brokers": "a:1,b:2" };
    const { database, kafka } = choose(await options(), { configuration, adminUrl: OWNER });
    expect(database).toEqual({ kind: "outside", adminUrl: OWNER });
    expect(kafka).toEqual({ kind: "outside", hosts: ["a:1", "b:2"], security: undefined });
    const own = "postgres://lotus:secret@postgres.lotus.svc.cluster.local:5432/lotus";
    const again = choose(await options(), { configuration: { kafka: "cluster-3" }, adminUrl: own });
    expect(again).toEqual({ database: { kind: "cluster" }, kafka: { kind: "cluster", brokers: 3 } });
  });

  it("keep that a pooler keeps no prepared statements, until another database is named", async () => {
    const { database } = choose(await options("--database", OWNER, "--no-prepare"), nothing);
    const { data } = configuration({ database, kafka: { kind: "cluster", brokers: 1 } });
    expect(data["database-prepare"]).toBe("false");
    const same = choose(await options(), { configuration: data, adminUrl: OWNER });
    expect(same.database).toEqual(database);
    const other = choose(await options("--database", OWNER), { configuration: data, adminUrl: OWNER });
    expect(other.database).not.toHaveProperty("prepare");
  });

  it("keep the prefix of topics, and refuse another one", async () => {
    const backends = choose(await options("--brokers", "k:1", "--kafka-prefix", "shop."), nothing);
    expect(backends.kafkaPrefix).toBe("shop.");
    const { data } = configuration(backends);
    expect(choose(await options(), { configuration: data, adminUrl: undefined }).kafkaPrefix).toBe("shop.");
    const another = await options("--kafka-prefix", "x.");
    expect(() => choose(another, { configuration: data, adminUrl: undefined })).toThrow(
      'The topics here begin with "shop."',
    );
    await expect(options("--kafka-prefix", "a b")).rejects.toThrow("--kafka-prefix must be up to 100 letters");
  });

  it("do not change a running Kafka's voters", async () => {
    const previous = { configuration: { kafka: "cluster-1" }, adminUrl: undefined };
    const three = await options("--replicas", "3");
    expect(() => choose(three, previous)).toThrow("Kafka runs with 1 brokers here");
  });
});

describe("the plan", () => {
  it("leaves no image unbuilt", async () => {
    const plan = await planOf({ database: { kind: "cluster" }, kafka: { kind: "cluster", brokers: 1 } });
    expect(all(plan)).not.toContain("unbuilt");
    expect(find(plan, "StatefulSet", "postgres")).toBeDefined();
    expect(find(plan, "StatefulSet", "kafka")?.spec.replicas).toBe(1);
  });

  it("has three brokers, and as many copies, where that is wanted", async () => {
    const plan = await planOf({ database: { kind: "cluster" }, kafka: { kind: "cluster", brokers: 3 } });
    expect(find(plan, "StatefulSet", "kafka")?.spec.replicas).toBe(3);
    expect(plan.topics.spec.template.spec.containers[0].args.slice(-2)).toEqual(["--replication", "3"]);
  });

  it("lets functions reach a Postgres outside, and shows the owner's password nowhere", async () => {
    const plan = await planOf({
      database: { kind: "outside", adminUrl: OWNER },
      kafka: { kind: "outside", hosts: ["k:9093"], security: undefined },
    });
    expect(find(plan, "StatefulSet", "postgres")).toBeUndefined();
    expect(find(plan, "StatefulSet", "kafka")).toBeUndefined();
    for (const policy of ["functions-outside", "jobs-outside"]) {
      expect(find(plan, "NetworkPolicy", policy)?.spec.egress[0].ports).toContainEqual({ protocol: "TCP", port: 5433 });
    }
    expect(plan.functions[1]?.source?.spec.bootstrapServers).toEqual(["k:9093"]);
    expect(all(plan)).not.toContain("secret@");
  });

  it("tells the migration what all functions may connect, and scales no further", async () => {
    const plan = await planOf(choose(await options("--database", OWNER, "--pods", "1", "--pool", "2"), nothing));
    expect(plan.migrate.spec.template.spec.containers[0].args.slice(-2)).toEqual(["--connections", "2x1x2x2"]);
    expect(plan.functions[0]?.service.spec.template.metadata.annotations["autoscaling.knative.dev/max-scale"]).toBe(
      "1",
    );
    const data = find(plan, "ConfigMap", "lotus")?.data;
    expect(data).toMatchObject({ "database-pool": "2", "max-pods": "1" });
    expect(choose(await options(), { configuration: data, adminUrl: OWNER }).limits).toEqual({ pods: 1, pool: 2 });
  });

  it("sends functions to a pooler, and checks its logins", async () => {
    const plan = await planOf(
      choose(await options("--database", OWNER, "--pooler", "postgres://pool.example:6432"), nothing),
    );
    expect(plan.migrate.spec.template.spec.containers[0].args.slice(-2)).toEqual([
      "--pooler",
      "postgres://pool.example:6432",
    ]);
    const portsOf = (policy: string) =>
      find(plan, "NetworkPolicy", policy)?.spec.egress[0].ports.map(({ port }: { port: number }) => port);
    expect(portsOf("functions-outside")).toEqual([6432]);
    expect(portsOf("jobs-outside")).toEqual([6432, 5433]);
    const data = find(plan, "ConfigMap", "lotus")?.data;
    expect(choose(await options(), { configuration: data, adminUrl: OWNER }).pooler).toBe(
      "postgres://pool.example:6432",
    );
  });

  it("reads the authority of a database on this machine, and names the place where pods find it", async () => {
    const { database, databaseAuthority } = await options(
      "--database",
      `${OWNER}?sslmode=verify-full&sslrootcert=${AUTHORITY}`,
    );
    expect(database).toContain(`sslrootcert=${encodeURIComponent("/etc/lotus/database/ca.crt")}`);
    expect(databaseAuthority).toContain("BEGIN CERTIFICATE");
    await expect(options("--database", `${OWNER}?sslmode=verify-full&sslrootcert=/nowhere`)).rejects.toThrow(
      "cannot be read",
    );
    await expect(options("--database", `${OWNER}?sslmode=no-verify`)).rejects.toThrow(
      "sslmode in the database URL must be",
    );
    await expect(options("--database", `${OWNER}?pgbouncer=true`)).rejects.toThrow("parameter pgbouncer");
  });

  it("begins topics and consumer groups with the prefix", async () => {
    const plan = await planOf({
      database: { kind: "cluster" },
      kafka: { kind: "cluster", brokers: 1 },
      kafkaPrefix: "shop.",
    });
    const { topics, consumerGroup } = plan.functions[1]?.source?.spec ?? {};
    expect([topics, consumerGroup]).toEqual([["shop.notification-requested"], "shop.notification-store"]);
    for (const pod of [plan.topics.spec.template.spec, plan.functions[1]?.service.spec.template.spec]) {
      expect(pod.containers[0].env).toContainEqual(expect.objectContaining({ name: "KAFKA_PREFIX" }));
    }
  });

  it("lets functions reach Neon's WebSocket", async () => {
    const plan = await planOf({ database: { kind: "neon", adminUrl: NEON }, kafka: { kind: "cluster", brokers: 1 } });
    expect(find(plan, "NetworkPolicy", "functions-outside")?.spec.egress[0].ports).toEqual([
      { protocol: "TCP", port: 443 },
    ]);
  });

  it("tells everyone how to speak to a secured Kafka, and the next deployment too", async () => {
    const args = ["--brokers", "k:9093", "--kafka-tls", "--kafka-user", "lotus", "--kafka-mechanism", "plain"];
    const backends = choose(await options(...args, "--database", NEON), nothing);
    const plan = await planOf(backends, ["order-pay", "profile-jwks", "notification-store"]);
    const [pay, jwks, store] = plan.functions;
    const variables = (fn: typeof pay) =>
      fn?.service.spec.template.spec.containers[0].env.map(({ name }: { name: string }) => name);
    expect(variables(pay)).toEqual(expect.arrayContaining(["KAFKA_TLS", "KAFKA_USERNAME", "KAFKA_PASSWORD_FILE"]));
    expect(variables(jwks)).not.toContain("KAFKA_USERNAME");
    expect(plan.topics.spec.template.spec.volumes).toEqual([{ name: "kafka", secret: { secretName: "kafka" } }]);
    expect(store?.source?.spec.net).toMatchObject({ tls: { enable: true }, sasl: { enable: true } });
    expect(all(plan)).not.toContain("hush");
    const configuration = find(plan, "ConfigMap", "lotus")?.data;
    expect(choose(await options(), { configuration, adminUrl: NEON })).toEqual(backends);
  });

  it("makes a new revision when the configuration changes, and none when it does not", async () => {
    const annotation = async (backends: Backends) =>
      (await planOf(backends)).functions[0]?.service.spec.template.metadata.annotations["lotus/configuration"];
    const here: Backends = { database: { kind: "cluster" }, kafka: { kind: "cluster", brokers: 1 } };
    expect(await annotation(here)).toBe(await annotation(structuredClone(here)));
    expect(await annotation(here)).not.toBe(
      await annotation({ ...here, kafka: { kind: "outside", hosts: ["k:1"], security: undefined } }),
    );
  });
});

it("the migration has the password of each service", async () => {
  const plan = await planOf({ database: { kind: "cluster" }, kafka: { kind: "cluster", brokers: 1 } });
  const { containers, volumes } = plan.migrate.spec.template.spec;
  const paths = containers[0].volumeMounts.map(({ mountPath }: { mountPath: string }) => mountPath);
  for (const service of SERVICES) expect(paths).toContain(`/etc/lotus/database-${service}`);
  expect(volumes).toHaveLength(containers[0].volumeMounts.length);
});
