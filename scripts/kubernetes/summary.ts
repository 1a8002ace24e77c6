/** What a person does next. */
import { get, HOST, NAMESPACE } from "./kubectl.ts";
import type { ClusterPlan } from "./plan.ts";

/** The address of Kourier's load balancer, once there is one: on minikube, while the tunnel runs. */
async function gatewayAddress(): Promise<string | undefined> {
  const kourier = await get("service", "kourier", "kourier-system");
  const [ingress] = (kourier?.status?.loadBalancer?.ingress ?? []) as { ip?: string; hostname?: string }[];
  return ingress?.ip ?? ingress?.hostname ?? kourier?.spec.externalIPs?.[0];
}

const GATEWAY = "kubectl -n kourier-system get service kourier -o jsonpath='{.status.loadBalancer.ingress[0].ip}'";
const FORWARD = "kubectl -n kourier-system port-forward service/kourier 8080:80";
const NEWMAN = "npx newman run postman/StreamProcessing.postman_collection.json";

/** How a caller on this machine gets to the gateway: by its address, by minikube's tunnel, or by a forwarded port. */
function wayIn(address: string | undefined, profile: string | undefined): string[] {
  const hosts = (from: string) => `echo "${from} ${HOST}" | sudo tee -a /etc/hosts`;
  if (address !== undefined) return [hosts(address), NEWMAN];
  if (profile !== undefined) {
    return [
      `minikube tunnel --profile ${profile}`,
      "(in another terminal; leave it running)",
      hosts(`$(${GATEWAY})`),
      NEWMAN,
    ];
  }
  return [
    FORWARD,
    "(in another terminal; leave it running)",
    hosts("127.0.0.1"),
    `${NEWMAN} --env-var baseUrl=http://${HOST}:8080`,
  ];
}

/**
 * The last words of a deployment.
 * @param profile minikube's, when that is the cluster
 * @param leftovers functions that are no longer in the checkout
 */
export async function summary(
  { functions }: ClusterPlan,
  profile: string | undefined,
  leftovers: readonly string[],
): Promise<string> {
  const lines = [
    "",
    `Lotus is deployed: ${functions.length} functions, all ready. Those that nobody calls are gone in about 90 s.`,
    ...leftovers.map(
      (name) => `${name} is not in this checkout any more. To remove it: kn service delete ${name} -n ${NAMESPACE}`,
    ),
    "",
    "Next:",
    ...wayIn(await gatewayAddress(), profile).map((line) => `  ${line}`),
    "To look at it:",
    `  kn service list -n ${NAMESPACE}`,
    `  kubectl -n ${NAMESPACE} get pods --watch`,
  ];
  return lines.join("\n");
}
