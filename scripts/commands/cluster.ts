/** lotus cluster: starts minikube with Knative. */
import { availableParallelism, totalmem } from "node:os";
import { command } from "../cli/command.ts";
import { Refusal } from "../cli/errors.ts";
import { print, step } from "../cli/output.ts";
import { attempt, run } from "../process/run.ts";

const KUBERNETES = "v1.34.4";
const SERVING = "1.23.0";
const KOURIER = "1.23.0";
const EVENTING = "1.23.0";
const KAFKA = "1.23.0";
const MINIKUBE_OLDEST = [1, 37] as const;

const release = (repository: string, version: string, file: string) =>
  `https://github.com/${repository}/releases/download/knative-v${version}/${file}`;

interface Step {
  readonly what: string;
  readonly commands: readonly (readonly [command: string, ...args: string[]])[];
}

const apply = (...urls: string[]) => ["kubectl", "apply", ...urls.flatMap((url) => ["-f", url])] as const;
const established = ["kubectl", "wait", "crd", "--all", "--for=condition=Established", "--timeout=120s"] as const;
const available = (namespace: string) =>
  ["kubectl", "wait", "deployment", "--all", "-n", namespace, "--for=condition=Available", "--timeout=600s"] as const;

/** The documented order: https://knative.dev/docs/install/yaml-install/ */
function stepsFor(profile: string, cpus: string, memory: string, driver: string | undefined): Step[] {
  const network = { data: { "ingress-class": "kourier.ingress.networking.knative.dev" } };
  const start = ["start", "--profile", profile, "--kubernetes-version", KUBERNETES, "--cpus", cpus, "--memory", memory];
  return [
    {
      what: `minikube ${profile}: Kubernetes ${KUBERNETES}, ${cpus} CPUs, ${memory}`,
      commands: [
        ["minikube", ...start, ...(driver === undefined ? [] : ["--driver", driver])],
        ["kubectl", "config", "use-context", profile],
      ],
    },
    {
      what: `Knative Serving ${SERVING}`,
      commands: [
        apply(release("knative/serving", SERVING, "serving-crds.yaml")),
        established,
        apply(release("knative/serving", SERVING, "serving-core.yaml")),
        available("knative-serving"),
      ],
    },
    {
      what: `Kourier ${KOURIER}`,
      commands: [
        apply(release("knative-extensions/net-kourier", KOURIER, "kourier.yaml")),
        [
          "kubectl",
          "patch",
          "configmap/config-network",
          "-n",
          "knative-serving",
          "--type",
          "merge",
          "-p",
          JSON.stringify(network),
        ],
        available("kourier-system"),
        available("knative-serving"),
      ],
    },
    {
      what: `Knative Eventing ${EVENTING}`,
      commands: [
        apply(release("knative/eventing", EVENTING, "eventing-crds.yaml")),
        established,
        apply(release("knative/eventing", EVENTING, "eventing-core.yaml")),
        available("knative-eventing"),
      ],
    },
    {
      what: `KafkaSource ${KAFKA}`,
      commands: [
        apply(release("knative-extensions/eventing-kafka-broker", KAFKA, "eventing-kafka-controller.yaml")),
        established,
        apply(release("knative-extensions/eventing-kafka-broker", KAFKA, "eventing-kafka-source.yaml")),
        available("knative-eventing"),
      ],
    },
  ];
}

/** 10g -> bytes; minikube counts a bare number as megabytes. */
function bytesOf(size: string): number | undefined {
  const match = /^(\d+)([mg]?)b?$/i.exec(size);
  if (match === null) return undefined;
  return Number(match[1]) * (match[2]?.toLowerCase() === "g" ? 1024 ** 3 : 1024 ** 2);
}

async function check(profile: string, cpus: string, memory: string): Promise<void> {
  const wrong: string[] = [];
  const minikube = await attempt("minikube", ["version", "--short"]);
  const [major = 0, minor = 0] = minikube.stdout.trim().replace(/^v/, "").split(".").map(Number);
  const [oldestMajor, oldestMinor] = MINIKUBE_OLDEST;
  if (minikube.code !== 0) wrong.push("minikube is missing. Install it: https://minikube.sigs.k8s.io/docs/start/");
  else if (major < oldestMajor || (major === oldestMajor && minor < oldestMinor)) {
    wrong.push(
      `minikube is ${minikube.stdout.trim()}; Kubernetes ${KUBERNETES} needs ${MINIKUBE_OLDEST.join(".")} or newer.`,
    );
  }
  if ((await attempt("kubectl", ["version", "--client"])).code !== 0) {
    wrong.push("kubectl is missing. Install it: https://kubernetes.io/docs/tasks/tools/");
  }
  const bytes = bytesOf(memory);
  if (!/^[1-9]\d*$/.test(cpus)) wrong.push(`--cpus must be a whole number; "${cpus}" is not.`);
  else if (Number(cpus) > availableParallelism()) {
    wrong.push(
      `This machine has ${availableParallelism()} CPUs and ${cpus} are asked for. Give fewer: --cpus 4 is the least that works well.`,
    );
  }
  if (bytes === undefined) wrong.push(`--memory must be a size such as 10g; "${memory}" is not.`);
  else if (bytes > totalmem()) {
    wrong.push(
      `This machine has ${(totalmem() / 1024 ** 3).toFixed(1)} GB of memory and ${memory} are asked for. Give less: --memory 6g.`,
    );
  }
  if (!/^[a-zA-Z0-9][\w-]*$/.test(profile)) wrong.push(`--profile must be a name such as lotus; "${profile}" is not.`);
  if (wrong.length > 0) throw new Refusal(wrong.join("\n"));
}

/** Formats a command as a person types it. */
function quoted(argument: string): string {
  return /^[\w./:=-]+$/.test(argument) ? argument : `'${argument}'`;
}

export default command({
  about: `Starts minikube with Kubernetes ${KUBERNETES}, Knative ${SERVING}, Kourier and KafkaSource. Safe to repeat.`,
  notes: `Needs minikube ${MINIKUBE_OLDEST.join(".")} or newer, kubectl, and a driver of minikube such as docker.`,
  options: {
    profile: { type: "string", value: "NAME", about: "minikube's profile, and kubectl's context", default: "lotus" },
    cpus: { type: "string", value: "N", about: "Knative itself requests three of them", default: "6" },
    memory: { type: "string", value: "SIZE", about: "memory of the node", default: "10g" },
    driver: { type: "string", value: "NAME", about: "minikube's driver: docker, kvm2, hyperkit … (minikube chooses)" },
    "dry-run": { type: "boolean", about: "print the commands and change nothing" },
  },
  async run(values) {
    const steps = stepsFor(values.profile, values.cpus, values.memory, values.driver);
    if (values["dry-run"]) {
      for (const { what, commands } of steps) {
        print(`# ${what}\n${commands.map((words) => words.map(quoted).join(" ")).join("\n")}`);
      }
      return;
    }
    await check(values.profile, values.cpus, values.memory);
    for (const { what, commands } of steps) {
      await step(what, async (report) => {
        for (const [program, ...args] of commands) {
          report([program, ...args].join(" ").slice(0, 100));
          await run(program, args);
        }
        report("ready");
      });
    }
    print("\nThe cluster is ready. Next: npx lotus deploy");
  },
});
