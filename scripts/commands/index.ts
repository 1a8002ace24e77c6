/** The commands of the program `lotus`. A command is loaded when it is called. */
import type { Command } from "../cli/command.ts";
import type { Commands, Entry } from "../cli/program.ts";

type Group = "Run" | "Data" | "Develop" | "Cluster";

const entry = (group: Group, about: string, load: () => Promise<{ readonly default: Command }>): Entry => ({
  group,
  about,
  load: async () => (await load()).default,
});

/** Every command by its name. The file of a command has the same name. */
export const COMMANDS: Commands = {
  start: entry("Run", "run everything on this machine until Ctrl-C", () => import("./start.ts")),
  dev: entry("Run", "the same, and serve every edit", () => import("./dev.ts")),
  scenario: entry("Run", "play the Postman scenario against a running Lotus", () => import("./scenario.ts")),
  ps: entry("Run", "list the functions of a running Lotus", () => import("./ps.ts")),
  logs: entry("Run", "follow the log lines of a running Lotus", () => import("./logs.ts")),
  kill: entry("Run", "kill a process of a running Lotus", () => import("./kill.ts")),
  stop: entry("Run", "stop a running Lotus", () => import("./stop.ts")),
  kafka: entry("Run", "run Apache Kafka alone until Ctrl-C", () => import("./kafka.ts")),
  "kafka-source": entry("Run", "deliver records of Kafka to functions", () => import("./kafka-source.ts")),

  "dead-letters": entry("Data", "list, show and replay dead letters", () => import("./dead-letters.ts")),
  "verify-ledger": entry("Data", "recompute the ledger", () => import("./verify-ledger.ts")),
  keys: entry("Data", "list and rotate the keys that sign tokens", () => import("./keys.ts")),
  migrate: entry("Data", "bring a database up to date", () => import("./migrate.ts")),
  topics: entry("Data", "create the topics in Kafka", () => import("./topics.ts")),

  new: entry("Develop", "write the first files of an endpoint, an event or a service", () => import("./new.ts")),
  generate: entry("Develop", "write manifests, OpenAPI and event schemas", () => import("./generate.ts")),
  build: entry("Develop", "bundle the functions into dist/", () => import("./build.ts")),
  images: entry("Develop", "write the contents of the images", () => import("./images.ts")),
  chaos: entry("Develop", "inject faults under load and check the invariants", () => import("./chaos.ts")),
  fuzz: entry("Develop", "send generated requests to every endpoint", () => import("./fuzz.ts")),
  licences: entry("Develop", "list the licences of the packages that ship", () => import("./licences.ts")),
  screenshots: entry("Develop", "take the pictures of the console", () => import("./screenshots.ts")),
  "trace-picture": entry("Develop", "print one trace of a payment", () => import("./trace-picture.ts")),
  bench: entry("Develop", "measure Lotus against floors", () => import("./bench.ts")),

  cluster: entry("Cluster", "start minikube with Knative", () => import("./cluster.ts")),
  preflight: entry("Cluster", "prove that roles and topics work", () => import("./preflight.ts")),
  deploy: entry("Cluster", "deploy Lotus with kubectl and kn", () => import("./deploy.ts")),
  undeploy: entry("Cluster", "remove Lotus from the cluster", () => import("./undeploy.ts")),
  rotate: entry("Cluster", "renew keys and passwords in the cluster", () => import("./rotate.ts")),
};
