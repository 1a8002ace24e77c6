/** The decisions of a deployment before it changes anything: options, backends and the plan. */
import { describe, expect, it } from "vitest";
import { PROGRAM_NAMES } from "../build/image-files.ts";
import { command } from "../cli/command.ts";
import { SERVICES } from "../database/sql.ts";
import { findFunctions } from "../project/functions.ts";
import { AUTHORITY } from "../testing/postgres-server.ts";
import { type Backends, choose as chooseIn, configuration as configurationIn, type Previous } from "./backends.ts";
import { LAPTOP, parseEnvironment, readEnvironment } from "./environment.ts";
import { toYaml } from "./kubectl.ts";
import { BASE_DEFAULT, DEPLOY_OPTIONS, type DeployOptions, readOptions } from "./options.ts";
import { type ClusterPlan, makePlan } from "./plan.ts";
import { trafficFault } from "./services.ts";

const OWNER = "postgres://owner@db.example:5433/lotus";
const OWNER_WITH_PASSWORD = "postgres://owner:secret@db.example:5433/lotus";
const NEON = "postgresql://owner@ep-quiet-1.eu-central-1.aws.neon.tech/lotus?sslmode=require";
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

const functions = await findFunctions();
const functionNames = functions.map(({ name }) => name);
const laptop = await readEnvironment(LAPTOP, functionNames);
const choose = (given: DeployOptions, previous: Previous, environment = laptop) =>
  chooseIn(given, previous, environment);
const configuration = (backends: Backends) => configurationIn(backends, laptop);
const IMAGE = "dev.local/lotus:0123456789abcdef";

async function planOf(
  backends: Backends,
  names = ["order-pay", "notification-store"],
  environment = laptop,
): Promise<ClusterPlan> {
  const images = new Map(
    [...functionNames, ...PROGRAM_NAMES].map((name) => [name, { reference: IMAGE, content: "0".repeat(16) }]),
  );
  const plan = await makePlan({ all: functions, names, images, environment, backends, version: "1.2.3" });
  const order = (name: string) => names.indexOf(name);
  return { ...plan, functions: [...plan.functions].sort((a, b) => order(a.name) - order(b.name)) };
}

const all = (plan: ClusterPlan) =>
  toYaml([
    ...plan.platform,
    ...plan.backends,
    plan.migrate,
    plan.topics,
    plan.preflight,
    ...plan.functions.flatMap(({ service, source }) => [service, source ?? []].flat()),
  ]);
const find = (plan: ClusterPlan, kind: string, name: string) =>
  [...plan.platform, ...plan.backends].find((document) => document.kind === kind && document.metadata.name === name);

describe("options", () => {
  it("are all in the cluster by default", async () => {
    expect(await options()).toMatchObject({ functions: [], database: undefined, base: BASE_DEFAULT, dryRun: false });
    expect((await options("order-pay", "--brokers", "a:1, b:2")).kafka).toEqual(["a:1", "b:2"]);
    expect((await options("--registry", "ghcr.io/me/")).registry).toBe("ghcr.io/me");
  });

  it.each([
    [["--colour"], "lotus deploy has no option --colour."],
    [["--database", "mysql://a:b@c/d"], "--database must be a URL such as"],
    [["--database", "postgres://a:b@c/d"], "--database must not contain the password"],
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
  ])("%j is refused with an error message", async (args, sentence) => {
    await expect(options(...args)).rejects.toThrow(sentence);
  });
});

describe("backends", () => {
  it("follow the command line", async () => {
    expect(choose(await options("--database", NEON), nothing).database.kind).toBe("neon");
    expect(choose(await options("--database", OWNER), nothing).database.kind).toBe("outside");
    expect(choose(await options("--replicas", "3"), nothing).kafka).toEqual({ kind: "cluster", brokers: 3 });
    const local = await options("--database", "postgres://a@localhost/d");
    expect(() => choose(local, nothing)).toThrow("Pods cannot reach the database at localhost");
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

  it("stay unchanged without options", async () => {
    const configuration = { kafka: "outside", "kafka-brokers": "a:1,b:2" };
    const { database, kafka } = choose(await options(), { configuration, adminUrl: OWNER_WITH_PASSWORD });
    expect(database).toEqual({ kind: "outside", url: OWNER });
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
    const again = choose(await options("--database", OWNER), { configuration: data, adminUrl: OWNER });
    expect(again.database).not.toHaveProperty("prepare");
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
    expect(() => choose(three, previous)).toThrow("The Kafka of this namespace has 1 broker,");
  });
});

describe("the plan", () => {
  it("leaves no image unbuilt", async () => {
    const plan = await planOf({ database: { kind: "cluster" }, kafka: { kind: "cluster", brokers: 1 } });
    expect(all(plan)).not.toContain("unbuilt");
    expect(find(plan, "StatefulSet", "postgres")).toBeDefined();
    expect(find(plan, "StatefulSet", "kafka")?.spec.replicas).toBe(1);
  });

  it("has three brokers and three copies with --replicas 3", async () => {
    const plan = await planOf({ database: { kind: "cluster" }, kafka: { kind: "cluster", brokers: 3 } });
    expect(find(plan, "StatefulSet", "kafka")?.spec.replicas).toBe(3);
    expect(plan.topics.spec.template.spec.containers[0].args.slice(1, 3)).toEqual(["--replication", "3"]);
  });

  it("lets functions reach a Postgres outside, and never shows the owner's password", async () => {
    const plan = await planOf({
      database: { kind: "outside", url: OWNER },
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

  it("passes the connection budget to the migration, and limits the scale to it", async () => {
    const plan = await planOf(choose(await options("--database", OWNER, "--pods", "1", "--pool", "2"), nothing));
    const databaseFunctions = functionNames.length - 1;
    expect(plan.migrate.spec.template.spec.containers[0].args.slice(-2)).toEqual([
      "--connections",
      `${databaseFunctions * 2}x2`,
    ]);
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
    const plan = await planOf({ database: { kind: "neon", url: NEON }, kafka: { kind: "cluster", brokers: 1 } });
    expect(find(plan, "NetworkPolicy", "functions-outside")?.spec.egress[0].ports).toEqual([
      { protocol: "TCP", port: 443 },
    ]);
  });

  it("configures functions, jobs and sources for a secured Kafka, also in the next deployment", async () => {
    const args = ["--brokers", "k:9093", "--kafka-tls", "--kafka-user", "lotus", "--kafka-mechanism", "plain"];
    const backends = choose(await options(...args, "--database", NEON), nothing);
    const plan = await planOf(backends, ["order-pay", "profile-jwks", "notification-store"]);
    const [pay, jwks, store] = plan.functions;
    const variables = (fn: typeof pay) =>
      fn?.service.spec.template.spec.containers[0].env.map(({ name }: { name: string }) => name);
    expect(variables(pay)).toEqual(expect.arrayContaining(["KAFKA_TLS", "KAFKA_USERNAME_FILE", "KAFKA_PASSWORD_FILE"]));
    expect(variables(jwks)).not.toContain("KAFKA_USERNAME_FILE");
    expect(plan.topics.spec.template.spec.volumes).toEqual([{ name: "kafka", secret: { secretName: "kafka" } }]);
    expect(store?.source?.spec.net).toMatchObject({ tls: { enable: true }, sasl: { enable: true } });
    expect(all(plan)).not.toContain("hush");
    const configuration = find(plan, "ConfigMap", "lotus")?.data;
    expect(choose(await options(), { configuration, adminUrl: NEON })).toEqual(backends);
  });

  it("makes a new revision only when the configuration changes", async () => {
    const annotation = async (backends: Backends) =>
      (await planOf(backends)).functions[0]?.service.spec.template.metadata.annotations["lotus/configuration"];
    const here: Backends = { database: { kind: "cluster" }, kafka: { kind: "cluster", brokers: 1 } };
    expect(await annotation(here)).toBe(await annotation(structuredClone(here)));
    expect(await annotation(here)).not.toBe(
      await annotation({ ...here, kafka: { kind: "outside", hosts: ["k:1"], security: undefined } }),
    );
  });
});

it.each(["migrate", "preflight"] as const)("the job %s has the password of each service", async (name) => {
  const plan = await planOf({ database: { kind: "cluster" }, kafka: { kind: "cluster", brokers: 1 } });
  const { containers, volumes } = plan[name].spec.template.spec;
  const paths = containers[0].volumeMounts.map(({ mountPath }: { mountPath: string }) => mountPath);
  for (const service of SERVICES) expect(paths).toContain(`/etc/lotus/database-${service}`);
  expect(volumes).toHaveLength(containers[0].volumeMounts.length);
});

describe("the preflight job", () => {
  const here: Backends = { database: { kind: "cluster" }, kafka: { kind: "cluster", brokers: 1 } };

  it("does not receive the owner's password", async () => {
    const { spec } = (await planOf(here)).preflight.spec.template;
    const [authority] = spec.volumes;
    expect(authority.secret).toEqual({
      secretName: "database-admin",
      optional: true,
      items: [{ key: "ca.crt", path: "ca.crt" }],
    });
    expect(JSON.stringify(spec.containers)).not.toContain("database-admin");
  });

  it("runs again when a function changes, and not when everything is the same", async () => {
    const nameOf = async (minPods: number) =>
      (await planOf(here, ["order-pay"], { ...laptop, scale: { "order-pay": { minPods } } })).preflight.metadata.name;
    expect(await nameOf(0)).toBe(await nameOf(0));
    expect(await nameOf(1)).not.toBe(await nameOf(0));
  });
});

describe("the installation that exists", () => {
  const here = {
    configuration: { kafka: "outside", "kafka-brokers": "k1:9092,k2:9092" },
    adminUrl: OWNER_WITH_PASSWORD,
  };

  it("keeps its database: another one is refused, unless the move is confirmed", async () => {
    const elsewhere = await options("--database", "postgres://owner@elsewhere.example/empty");
    expect(() => choose(elsewhere, here)).toThrow(
      "keeps its ledger in db.example:5433/lotus. The deployment names elsewhere.example:5432/empty",
    );
    expect(() => choose(elsewhere, { ...here, configuration: { database: "cluster" } })).toThrow("keeps its ledger in");
    expect(choose({ ...elsewhere, move: true }, here).database).toMatchObject({ url: elsewhere.database });
    const anotherUser = await options("--database", "postgres://other@db.example:5433/lotus");
    expect(choose(anotherUser, here).database).toMatchObject({ url: anotherUser.database });
  });

  it("keeps its Kafka: another one is refused, and further brokers of the same one are not", async () => {
    const elsewhere = await options("--brokers", "other:9092");
    expect(() => choose(elsewhere, here)).toThrow("uses the Kafka k1:9092,k2:9092. The deployment names other:9092");
    const more = await options("--brokers", "k2:9092,k3:9092");
    expect(choose(more, here).kafka).toMatchObject({ hosts: ["k2:9092", "k3:9092"] });
    const cluster = { configuration: { kafka: "cluster-1" }, adminUrl: undefined };
    expect(() => choose(elsewhere, cluster)).toThrow("uses the Kafka in its namespace");
  });
});

describe("an environment other than the laptop", () => {
  const shop = (more = "") =>
    parseEnvironment(
      "shop",
      `namespace: shop
host: shop.example
tls: { issuer: letsencrypt }
ingress: { namespace: knative-serving-ingress }
database: { mode: outside, url: "${OWNER}" }
kafka: { mode: outside, hosts: ["k:9093"], tls: true, authority: true, clientCertificate: true, prefix: shop. }
pullSecrets: [registry]
${more}`,
      functionNames,
    );

  it("refuses an option that its file contains", async () => {
    await expect(options("--environment", "staging", "--brokers", "a:1")).rejects.toThrow(
      "--brokers belongs in knative/environments/staging.yaml.",
    );
  });

  it("names the authority of the database and of its pooler as pods find it", async () => {
    const text = `host: shop.example
database: { mode: outside, url: "${OWNER}?sslmode=verify-full", pooler: "postgres://pool.example:6432", authority: true }
kafka: { mode: cluster }`;
    const environment = parseEnvironment("shop", text, functionNames);
    const backends = choose(await options(), nothing, environment);
    const file = `sslrootcert=${encodeURIComponent("/etc/lotus/database/ca.crt")}`;
    expect(backends.database).toMatchObject({ url: `${OWNER}?sslmode=verify-full&${file}` });
    expect(backends.pooler).toContain(file);
    const plan = await planOf(backends, ["order-pay"], environment);
    for (const object of [plan.functions[0]?.service, plan.migrate, plan.preflight]) {
      const mounts = object?.spec.template.spec.containers[0].volumeMounts;
      expect(mounts).toContainEqual(expect.objectContaining({ mountPath: "/etc/lotus/database" }));
    }
    const { databaseAuthority } = await options("--environment", "staging", "--database-authority", AUTHORITY);
    expect(databaseAuthority).toContain("BEGIN CERTIFICATE");
    await expect(options("--database-authority", AUTHORITY)).rejects.toThrow(
      "On the laptop the URL names the authority",
    );
  });

  it("reaches Kafka with a client certificate, in functions, in jobs and in the source", async () => {
    const environment = shop();
    const backends = choose(await options(), nothing, environment);
    const plan = await planOf(backends, ["order-pay", "notification-store"], environment);
    for (const pod of [plan.functions[0]?.service, plan.topics, plan.preflight].map(
      (object) => object?.spec.template.spec,
    )) {
      expect(pod.containers[0].env).toEqual(
        expect.arrayContaining([
          { name: "KAFKA_TLS_CERTIFICATE_FILE", value: "/etc/lotus/kafka/user.crt" },
          { name: "KAFKA_TLS_KEY_FILE", value: "/etc/lotus/kafka/user.key" },
        ]),
      );
      expect(pod.volumes).toContainEqual({ name: "kafka", secret: { secretName: "kafka" } });
    }
    expect(plan.functions[1]?.source?.spec.net.tls).toEqual({
      enable: true,
      caCert: { secretKeyRef: { name: "kafka", key: "ca.crt" } },
      cert: { secretKeyRef: { name: "kafka", key: "user.crt" } },
      key: { secretKeyRef: { name: "kafka", key: "user.key" } },
    });
    expect(plan.functions[1]?.source?.spec.topics).toEqual(["shop.notification-requested"]);
  });

  it("names the collector and the share of the traces in every function", async () => {
    const variablesOf = async (tracing: string) => {
      const environment = shop(`tracing: ${tracing}`);
      const plan = await planOf(choose(await options(), nothing, environment), undefined, environment);
      return plan.functions.map(({ service }) =>
        service.spec.template.spec.containers[0].env.filter(({ name }: { name: string }) => name.startsWith("OTEL_")),
      );
    };
    const expected = (ratio: string) => [
      { name: "OTEL_EXPORTER_OTLP_ENDPOINT", value: "http://collector:4318" },
      { name: "OTEL_TRACES_SAMPLER", value: "parentbased_traceidratio" },
      { name: "OTEL_TRACES_SAMPLER_ARG", value: ratio },
    ];
    const given = await variablesOf('{ endpoint: "http://collector:4318", sampleRatio: 0.1 }');
    expect(given).toEqual([expected("0.1"), expected("0.1")]);
    const byDefault = await variablesOf('{ endpoint: "http://collector:4318" }');
    expect(byDefault).toEqual([expected("1"), expected("1")]);
    expect(() => shop('tracing: { endpoint: "http://collector:4318", sampleRatio: 2 }')).toThrow(
      "tracing.sampleRatio must be a number from 0 to 1",
    );
  });

  it("leaves the copies of a record to the brokers, unless it names a number", async () => {
    const argsOf = async (environment: ReturnType<typeof shop>) => {
      const plan = await planOf(choose(await options(), nothing, environment), [], environment);
      return plan.topics.spec.template.spec.containers[0].args;
    };
    expect(await argsOf(shop())).toEqual(["/app/topics/program.mjs"]);
    const kafka = shop().kafka;
    expect(await argsOf({ ...shop(), kafka: { ...kafka, replication: 3, retentionBytes: 1_000 } })).toEqual([
      "/app/topics/program.mjs",
      "--replication",
      "3",
      "--retention-bytes",
      "1000",
    ]);
  });

  it("gives every pod its account and its pull secret, and no token", async () => {
    const environment = shop("serviceAccount: { name: shop }");
    const plan = await planOf(choose(await options(), nothing, environment), functionNames, environment);
    for (const pod of [plan.migrate, plan.topics, plan.preflight, ...plan.functions.map(({ service }) => service)])
      expect(pod.spec.template.spec).toMatchObject({
        serviceAccountName: "shop",
        imagePullSecrets: [{ name: "registry" }],
        automountServiceAccountToken: false,
      });
    expect(find(plan, "ServiceAccount", "shop")).toMatchObject({ automountServiceAccountToken: false });
  });

  it("has TLS for its host, and redirects plain HTTP", async () => {
    const environment = shop();
    const { routes } = await planOf(choose(await options(), nothing, environment), [], environment);
    const certificate = routes.find(({ kind }) => kind === "Certificate");
    const ingress = routes.find(({ kind }) => kind === "Ingress");
    expect(certificate?.spec).toMatchObject({ dnsNames: ["shop.example"], issuerRef: { name: "letsencrypt" } });
    expect(ingress?.spec).toMatchObject({
      httpOption: "Redirected",
      tls: [{ hosts: ["shop.example"], secretName: certificate?.spec.secretName, secretNamespace: "shop" }],
    });
    const inLaptop = (await planOf(choose(await options(), nothing))).routes.find(({ kind }) => kind === "Ingress");
    expect(inLaptop?.spec).toMatchObject({ httpOption: "Enabled" });
  });

  it("names the namespace of its ingress only", async () => {
    const environment = shop();
    const plan = await planOf(choose(await options(), nothing, environment), functionNames, environment);
    const text = toYaml([...plan.platform, ...plan.routes]);
    expect(text).toContain("kourier-internal.knative-serving-ingress.svc.cluster.local");
    expect(text).not.toContain("kourier-system");
  });

  it("labels every object", async () => {
    const environment = shop("metrics: { labels: { release: prometheus } }\nscale: { order-pay: { minPods: 1 } }");
    const plan = await planOf(choose(await options(), nothing, environment), functionNames, environment);
    const objects = [
      ...plan.namespace,
      ...plan.platform,
      plan.migrate,
      plan.topics,
      plan.preflight,
      ...plan.routes,
      ...plan.metrics,
      ...plan.functions.flatMap(({ service, source, disruptionBudget }) =>
        [service, source ?? [], disruptionBudget ?? []].flat(),
      ),
    ];
    for (const { metadata } of objects)
      expect(metadata.labels).toMatchObject({
        "app.kubernetes.io/part-of": "lotus",
        "app.kubernetes.io/instance": "shop",
        "app.kubernetes.io/version": "1.2.3",
      });
    expect(plan.metrics[0]?.metadata.labels).toMatchObject({ release: "prometheus" });
    expect(objects.filter(({ kind }) => kind === "PodDisruptionBudget").map(({ metadata }) => metadata.name)).toEqual([
      "order-pay",
    ]);
  });

  it("overrides the scale of a description, which overrides the default", async () => {
    const annotationsOf = async (more: string) => {
      const environment = shop(more);
      const plan = await planOf(
        choose(await options(), nothing, environment),
        ["profile-login", "order-pay"],
        environment,
      );
      return plan.functions.map(({ service }) => service.spec.template.metadata.annotations);
    };
    const max = "autoscaling.knative.dev/max-scale";
    const [login, pay] = await annotationsOf("scale: { default: { maxPods: 9 } }");
    expect([login?.[max], pay?.[max]]).toEqual(["7", "9"]);
    expect(login?.["autoscaling.knative.dev/target"]).toBe("4");
    const [wide] = await annotationsOf("scale: { profile-login: { maxPods: 30 } }");
    expect(wide?.[max]).toBe("30");
  });

  it("gives a trigger memory for 50 events of 1 MiB", async () => {
    const [pay, store] = (await planOf(choose(await options(), nothing))).functions;
    const memoryOf = (fn: typeof pay) => fn?.service.spec.template.spec.containers[0].resources.limits.memory;
    expect([memoryOf(pay), memoryOf(store)]).toEqual(["192Mi", "384Mi"]);
  });

  it("splits the traffic as in its file, and otherwise sends all of it to the latest revision", async () => {
    const environment = shop(
      "traffic: { order-pay: [{ revision: order-pay-00001, percent: 90 }, { revision: latest, percent: 10, tag: canary }] }\nrolloutSeconds: 60",
    );
    const [pay, store] = (await planOf(choose(await options(), nothing, environment), undefined, environment))
      .functions;
    expect(pay?.service.spec.traffic).toEqual([
      { latestRevision: false, revisionName: "order-pay-00001", percent: 90 },
      { latestRevision: true, percent: 10, tag: "canary" },
    ]);
    expect(store?.service.spec.traffic).toEqual([{ latestRevision: true, percent: 100 }]);
    expect(pay?.service.metadata.annotations).toMatchObject({ "serving.knative.dev/rollout-duration": "60s" });
  });
});

describe("the traffic of a function", () => {
  const all = [{ latestRevision: true, percent: 100 }];

  it("equals the rendered traffic when the latest revision receives all of it", () => {
    const actual = [{ latestRevision: true, revisionName: "pay-00002", percent: 100 }];
    expect(trafficFault("pay", all, actual, "pay-00002")).toBeUndefined();
  });

  it("is a fault when a pinned revision receives it", () => {
    const pinned = [{ latestRevision: false, revisionName: "pay-00001", percent: 100 }];
    expect(trafficFault("pay", all, pinned, "pay-00002")).toBe(
      "The traffic of pay goes 100 % to pay-00001; the deployment asks for 100 % to pay-00002.",
    );
  });
});
