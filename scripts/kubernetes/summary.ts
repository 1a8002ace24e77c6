/** The summary of a deployment, with the next commands. */
import type { Environment } from "./environment.ts";
import { get } from "./kubectl.ts";
import type { ClusterPlan } from "./plan.ts";

/** Returns the address of Kourier's load balancer. On minikube it has one while the tunnel runs. */
async function gatewayAddress(gateway: string): Promise<string | undefined> {
  const kourier = await get("service", "kourier", gateway);
  const [ingress] = (kourier?.status?.loadBalancer?.ingress ?? []) as { ip?: string; hostname?: string }[];
  return ingress?.ip ?? ingress?.hostname ?? kourier?.spec.externalIPs?.[0];
}

const NEWMAN = "npx newman run postman/StreamProcessing.postman_collection.json";

/** Returns the commands that lead from this machine to the gateway: its address, minikube's tunnel, or a forwarded port. */
function gatewayCommands(
  { host, ingress, tls }: Environment,
  address: string | undefined,
  profile: string | undefined,
): string[] {
  if (tls !== undefined) return [`curl https://${host}/profile/jwks`];
  const kourier = `kubectl -n ${ingress.namespace ?? "kourier-system"}`;
  const readAddress = `${kourier} get service kourier -o jsonpath='{.status.loadBalancer.ingress[0].ip}'`;
  const forward = `${kourier} port-forward service/kourier 8080:80`;
  const hosts = (from: string) => `echo "${from} ${host}" | sudo tee -a /etc/hosts`;
  if (address !== undefined) return [hosts(address), NEWMAN];
  if (profile !== undefined) {
    return [
      `minikube tunnel --profile ${profile}`,
      "(in another terminal; leave it running)",
      hosts(`$(${readAddress})`),
      NEWMAN,
    ];
  }
  return [
    forward,
    "(in another terminal; leave it running)",
    hosts("127.0.0.1"),
    `${NEWMAN} --env-var baseUrl=http://${host}:8080`,
  ];
}

/**
 * Returns the summary of a deployment.
 * @param profile of minikube, when the cluster is one
 * @param leftovers functions that the checkout no longer contains
 */
export async function summary(
  { functions }: ClusterPlan,
  environment: Environment,
  profile: string | undefined,
  leftovers: readonly string[],
): Promise<string> {
  const lines = [
    "",
    `Lotus is deployed: ${functions.length} functions, all ready. Pods without requests end after about 90 s.`,
    ...leftovers.map(
      (name) =>
        `The checkout no longer contains ${name}. To remove it: kn service delete ${name} -n ${environment.namespace}`,
    ),
    "",
    "Next:",
    ...gatewayCommands(
      environment,
      await gatewayAddress(environment.ingress.namespace ?? "kourier-system"),
      profile,
    ).map((line) => `  ${line}`),
    "To see the pods:",
    `  kn service list -n ${environment.namespace}`,
    `  kubectl -n ${environment.namespace} get pods --watch`,
  ];
  return lines.join("\n");
}
