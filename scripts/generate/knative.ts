/** Knative manifests of the functions: Services, sources and routes. */
import { usesOf } from "#kernel/server";
import { PODS_MAX_DEFAULT } from "../database/connections.ts";
import type { LotusFunction } from "../project/functions.ts";

const NAMESPACE = "lotus";
export const HOST = "arch.homework";
/** Every route leads to Kourier's own entrance for calls inside the cluster; only the host differs (decision 0011). */
const GATEWAY = "kn-local-gateway";
/** `npx lotus deploy` replaces this tag by the hash of the image. */
const UNBUILT = "unbuilt";

export const HEADER =
  "# Written by `npm run manifests` from the functions' descriptions. Change those, not this file.\n";
export const UNBUILT_NOTE = `# npx lotus deploy puts an image's tag where \`${UNBUILT}\` stands, and applies it; scripts/generate/knative.ts has the reasons.\n`;

/** Kubernetes names of what a function is given, and where it finds it. */
function environmentOf(fn: LotusFunction) {
  const uses = usesOf(fn.description);
  const env: object[] = [];
  const mounts: { name: string; secret: string; path: string }[] = [];
  if (uses.includes("database")) {
    env.push(
      { name: "DATABASE_URL", valueFrom: { secretKeyRef: { name: `database-${fn.service}`, key: "url" } } },
      { name: "DATABASE_PASSWORD_FILE", value: "/etc/lotus/database/password" },
      {
        name: "DATABASE_PREPARE",
        valueFrom: { configMapKeyRef: { name: "lotus", key: "database-prepare", optional: true } },
      },
      {
        name: "DATABASE_POOL",
        valueFrom: { configMapKeyRef: { name: "lotus", key: "database-pool", optional: true } },
      },
    );
    mounts.push({ name: "database", secret: `database-${fn.service}`, path: "/etc/lotus/database" });
  }
  if (uses.includes("public-keys")) {
    env.push({ name: "JWKS_FILE", value: "/etc/lotus/public-keys/jwks.json" });
    mounts.push({ name: "public-keys", secret: "public-keys", path: "/etc/lotus/public-keys" });
  }
  if (uses.includes("signing-key")) {
    env.push({ name: "SIGNING_KEY_FILE", value: "/etc/lotus/signing-key/key.json" });
    mounts.push({ name: "signing-key", secret: "signing-key", path: "/etc/lotus/signing-key" });
  }
  if (uses.includes("database")) {
    for (const name of ["KAFKA_BROKERS", "KAFKA_PREFIX"]) {
      const key = name.toLowerCase().replace("_", "-");
      env.push({ name, valueFrom: { configMapKeyRef: { name: "lotus", key, optional: true } } });
    }
  }
  // Kourier sees the client and appends its address.
  if (fn.kind === "endpoint")
    env.push(
      { name: "TRUSTED_PROXIES", value: "1" },
      {
        name: "CORS_ORIGINS",
        valueFrom: { configMapKeyRef: { name: "lotus", key: "cors-origins", optional: true } },
      },
    );
  return { env, mounts };
}

export function knativeService(fn: LotusFunction): object {
  const { env, mounts } = environmentOf(fn);
  return {
    apiVersion: "serving.knative.dev/v1",
    kind: "Service",
    metadata: {
      name: fn.name,
      namespace: NAMESPACE,
      // Endpoints as well: the one way in from outside is routes.yaml.
      labels: { "networking.knative.dev/visibility": "cluster-local" },
    },
    spec: {
      template: {
        metadata: {
          // The network policies go by these.
          labels: {
            "app.kubernetes.io/part-of": "lotus",
            "app.kubernetes.io/component": "function",
            "lotus/service": fn.service,
            ...(usesOf(fn.description).includes("database") && { "lotus/database": "true" }),
          },
          annotations: {
            // No function earns a 1: waking costs a second, and what is in use stays awake. Where even the first caller
            // must not wait, it is profile-login and order-pay that people wait for.
            "autoscaling.knative.dev/min-scale": "0",
            // All pods of all functions share the connections of one Postgres.
            "autoscaling.knative.dev/max-scale": String(PODS_MAX_DEFAULT),
            "autoscaling.knative.dev/target": "50",
            "autoscaling.knative.dev/target-burst-capacity": "0",
            // The default window is a minute: a function that wakes every minute would be half gone each time it is called.
            ...("schedule" in fn.description && { "autoscaling.knative.dev/window": "10s" }),
          },
        },
        spec: {
          timeoutSeconds: 60,
          enableServiceLinks: false,
          containers: [
            {
              image: `dev.local/lotus-${fn.name}:${UNBUILT}`,
              imagePullPolicy: "IfNotPresent",
              ports: [{ containerPort: 8080 }],
              env,
              // A process rests at some 60 MiB. Half a core more or less is the cold start, so the limit is a whole one.
              resources: { requests: { cpu: "25m", memory: "64Mi" }, limits: { cpu: "1", memory: "192Mi" } },
              securityContext: {
                runAsNonRoot: true,
                runAsUser: 1000,
                allowPrivilegeEscalation: false,
                readOnlyRootFilesystem: true,
                capabilities: { drop: ["ALL"] },
                seccompProfile: { type: "RuntimeDefault" },
              },
              ...(mounts.length > 0 && {
                volumeMounts: mounts.map(({ name, path }) => ({ name, mountPath: path, readOnly: true })),
              }),
            },
          ],
          ...(mounts.length > 0 && {
            volumes: mounts.map(({ name, secret }) => ({ name, secret: { secretName: secret } })),
          }),
        },
      },
    },
  };
}

const knativeSink = (name: string) => ({ ref: { apiVersion: "serving.knative.dev/v1", kind: "Service", name } });

export function source(fn: LotusFunction, deadLetterSink: string): object | undefined {
  if (fn.kind !== "subscriber") return undefined;
  const metadata = { name: fn.name, namespace: NAMESPACE };
  if ("topic" in fn.description) {
    return {
      apiVersion: "sources.knative.dev/v1",
      kind: "KafkaSource",
      metadata,
      spec: {
        bootstrapServers: [`kafka.${NAMESPACE}.svc.cluster.local:9092`],
        topics: [fn.description.topic],
        // Named, because it can never be changed, and a source that is made anew must go on where the old one stopped.
        consumerGroup: fn.name,
        consumers: 1,
        initialOffset: "earliest",
        ordering: "unordered",
        // Written out in full: a part of it would switch the rest off. The first wait is twice the delay: 0.4 to 6.4 s.
        delivery: {
          retry: 5,
          backoffPolicy: "exponential",
          backoffDelay: "PT0.2S",
          timeout: "PT30S",
          deadLetterSink: knativeSink(deadLetterSink),
        },
        sink: knativeSink(fn.name),
      },
    };
  }
  if ("schedule" in fn.description) {
    return {
      apiVersion: "sources.knative.dev/v1",
      kind: "PingSource",
      metadata,
      spec: {
        schedule: fn.description.schedule,
        contentType: "application/json",
        data: "{}",
        sink: knativeSink(fn.name),
      },
    };
  }
  return undefined;
}

export function routes(functions: readonly LotusFunction[]): object[] {
  const endpoints = functions.filter((fn) => fn.kind === "endpoint");
  const route = (path: string, name: string) => ({
    path,
    rewriteHost: `${name}.${NAMESPACE}.svc.cluster.local`,
    appendHeaders: { "K-Original-Host": HOST },
    splits: [{ serviceName: GATEWAY, serviceNamespace: NAMESPACE, servicePort: 80, percent: 100 }],
  });
  const paths = endpoints.map(({ path, name }) => route(path, name));
  // Only so that Kourier's readiness probe finds something: queue-proxy answers it without a start of the function.
  const probed = endpoints.find(({ name }) => name === "order-subscriptions") ?? endpoints[0];
  if (probed !== undefined) paths.push(route("/healthz", probed.name));
  paths.sort((a, b) => b.path.length - a.path.length || a.path.localeCompare(b.path));
  return [
    {
      apiVersion: "v1",
      kind: "Service",
      metadata: { name: GATEWAY, namespace: NAMESPACE },
      spec: {
        type: "ExternalName",
        externalName: "kourier-internal.kourier-system.svc.cluster.local",
        ports: [{ name: "http", port: 80, targetPort: 80 }],
      },
    },
    {
      apiVersion: "networking.internal.knative.dev/v1alpha1",
      kind: "Ingress",
      metadata: {
        name: HOST.replace(".", "-"),
        namespace: NAMESPACE,
        annotations: { "networking.knative.dev/ingress.class": "kourier.ingress.networking.knative.dev" },
      },
      spec: { httpOption: "Enabled", rules: [{ hosts: [HOST], visibility: "ExternalIP", http: { paths } }] },
    },
  ];
}
