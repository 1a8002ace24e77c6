/**
 * Prepares the cluster's tests: finds the cluster and deploys Lotus. Variables of the environment:
 *   CLUSTER_TEST=yes     kubectl's cluster may be used: Lotus is deployed there, its pods are deleted
 *   CLUSTER_DEPLOY=…     further options of npx lotus deploy, such as --base IMAGE --load-command 'CMD {image}'
 *   CLUSTER_HOST=…       Postgres and Kafka run beside the cluster, on this machine; pods know it by this address
 *   CLUSTER_GATEWAY=…    the address of Kourier, when it is not CLUSTER_HOST; the two environments have hosts below it
 *   DATABASE_ADMIN_URL=… without CLUSTER_HOST: the database, as this machine reaches it, for what is looked up in it
 */
import { spawn } from "node:child_process";
import { join } from "node:path";
import type { TestProject } from "vitest/node";
import { withoutPassword } from "../../kubernetes/backends.ts";
import { get } from "../../kubernetes/kubectl.ts";
import { attempt } from "../../process/run.ts";

import { ROOT } from "../../project/paths.ts";
import { type ExternalBackends, startExternalBackends, startKafkaSource } from "./external-backends.ts";

/** The context of the tests. `skipped` is the reason to skip them. */
export type ClusterContext =
  | { readonly skipped: string }
  | {
      readonly skipped: undefined;
      readonly databaseUrl: string;
      readonly deployArguments: string;
      /** Postgres and Kafka beside the cluster, where tests may create databases and topics. */
      readonly backends:
        | {
            /** The owner's URL with the password, as pods reach it, and as this machine does. */
            readonly databaseUrl: string;
            readonly localDatabaseUrl: string;
            readonly kafka: string;
            readonly gateway: string;
          }
        | undefined;
    };

declare module "vitest" {
  export interface ProvidedContext {
    cluster: ClusterContext;
  }
}

/** Runs npx lotus deploy with arguments that a shell reads, and shows its output. */
export async function deploy(shellArguments: string): Promise<string> {
  const child = spawn(`node scripts/lotus.mjs deploy ${shellArguments}`, {
    cwd: ROOT,
    shell: true,
    stdio: ["ignore", "pipe", "inherit"],
  });
  let said = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    said += text;
  });
  const code = await new Promise<number | null>((resolve) => child.once("close", resolve));
  if (code !== 0) throw new Error(`lotus deploy failed:\n${said}`);
  return said;
}

async function reasonToSkip(): Promise<string | undefined> {
  const { code, stdout } = await attempt("kubectl", ["config", "current-context"]);
  if (code !== 0) return "The cluster's tests are skipped: kubectl is missing, or has no cluster.";
  if (process.env.CLUSTER_TEST !== "yes") {
    return `The cluster's tests are skipped: they would deploy Lotus to kubectl's cluster, ${stdout.trim()}. If that is meant: CLUSTER_TEST=yes`;
  }
  if ((await attempt("kubectl", ["get", "crd", "services.serving.knative.dev", "--request-timeout=10s"])).code !== 0) {
    return `The cluster's tests are skipped: ${stdout.trim()} does not answer, or has no Knative.`;
  }
  if (process.env.CLUSTER_HOST === undefined && process.env.DATABASE_ADMIN_URL === undefined) {
    return "The cluster's tests are skipped: set DATABASE_ADMIN_URL, so that they can read the database.";
  }
  return undefined;
}

export default async function setup(project: TestProject): Promise<(() => Promise<void>) | undefined> {
  const skipped = await reasonToSkip();
  if (skipped !== undefined) {
    console.log(skipped);
    project.provide("cluster", { skipped });
    return undefined;
  }
  const host = process.env.CLUSTER_HOST;
  const backends: ExternalBackends | undefined = host
    ? await startExternalBackends(host, join(ROOT, ".lotus/external-backends"))
    : undefined;
  const where = backends ? `--database '${withoutPassword(backends.databaseUrl)}' --brokers ${backends.kafka}` : "";
  // Deployments of the tests inherit the variable: a command line does not contain the password.
  if (backends) process.env.DATABASE_ADMIN_PASSWORD = decodeURIComponent(new URL(backends.databaseUrl).password);
  const deployArguments = `${process.env.CLUSTER_DEPLOY ?? ""} ${where}`;
  console.log(
    await deploy(deployArguments).catch(async (error: unknown) => {
      // vitest does not call the teardown of a setup that failed, and the servers would keep the process alive.
      await backends?.stop();
      throw error;
    }),
  );
  const controlled = await get("deployment", "kafka-controller", "knative-eventing");
  const source = controlled === undefined && backends ? startKafkaSource(backends.kafka) : undefined;
  const databaseUrl = backends?.localDatabaseUrl ?? process.env.DATABASE_ADMIN_URL ?? "";
  project.provide("cluster", {
    skipped: undefined,
    databaseUrl,
    deployArguments,
    backends: backends && {
      databaseUrl: backends.databaseUrl,
      localDatabaseUrl: backends.localDatabaseUrl,
      kafka: backends.kafka,
      gateway: process.env.CLUSTER_GATEWAY ?? host ?? "",
    },
  });
  return async () => {
    source?.kill();
    await backends?.stop();
  };
}
