import { describe, expect, it } from "vitest";
import { environmentNames, LAPTOP, parseEnvironment, readEnvironment } from "./environment.ts";

const FUNCTIONS = ["order-pay", "profile-login"];
const VALID = `namespace: shop
host: shop.example
database:
  mode: cluster
kafka:
  mode: cluster
`;
const parse = (text: string) => parseEnvironment("shop", text, FUNCTIONS);

describe("an environment", () => {
  it("has defaults for all but host, database and Kafka", () => {
    expect(parse(VALID)).toMatchObject({
      name: "shop",
      clusterDomain: "cluster.local",
      servingNamespace: "knative-serving",
      pullSecrets: [],
      traffic: {},
    });
  });

  it.each([
    [
      "namespace: Shop\n",
      'shop.yaml:1: namespace must be a name of lower-case letters, digits and hyphens; "Shop" is not.',
    ],
    ["hots: x\n", "shop.yaml:1: hots is not a field. Did you mean host?"],
    [
      `${VALID}scale:\n  order-pay:\n    maxPod: 3\n`,
      "shop.yaml:9: scale.order-pay.maxPod is not a field. Did you mean maxPods?",
    ],
    [
      `${VALID}scale:\n  order-pay:\n    maxPods: many\n`,
      "shop.yaml:9: scale.order-pay.maxPods must be a whole number from 1 to 1000",
    ],
    [
      `${VALID}scale:\n  order-play: {}\n`,
      "shop.yaml:8: scale.order-play is not the name of a function. Did you mean order-pay?",
    ],
    [`${VALID}traffic:\n  order-pay: [{ revision: latest, percent: 90 }]\n`, "percents add up to 100"],
    [
      VALID.replace("mode: cluster\nkafka", "mode: outside\n  url: postgres://o:p@db/x\nkafka"),
      "shop.yaml:5: database.url must be a URL without a password",
    ],
    [
      VALID.replace("mode: cluster\nkafka", "mode: elsewhere\nkafka"),
      "shop.yaml:4: database.mode must be cluster, outside or neon",
    ],
    [`${VALID}cors: [shop.example]\n`, "shop.yaml:7: cors must be a list of origins"],
    [`${VALID}tls: {}\n`, "shop.yaml:7: tls must be either `secret: NAME`"],
    [
      VALID.replace("kafka:\n  mode: cluster", "kafka:\n  mode: outside\n  hosts: [k:1]\n  authority: true"),
      "kafka.authority needs `tls: true`",
    ],
    ["host: [\n", "shop.yaml:"],
    ["", "shop.yaml:1: host is missing"],
  ])("with a wrong field is refused with its line: %j", (text, sentence) => {
    expect(() => parse(text)).toThrow(sentence);
  });

  it("is refused without its password in the message", () => {
    const text = VALID.replace("mode: cluster\nkafka", "mode: outside\n  url: postgres://o:hush@db/x\nkafka");
    expect(() => parse(text)).toThrow(/^(?!.*hush)/);
  });

  it("exists in the checkout for a laptop, staging and production", async () => {
    const names = await environmentNames();
    expect(names).toEqual([LAPTOP, "production", "staging"].sort());
    const functions = ["order-pay", "profile-login"];
    const environments = await Promise.all(names.map((name) => readEnvironment(name, functions)));
    for (const field of ["namespace", "host"] as const)
      expect(new Set(environments.map((environment) => environment[field])).size).toBe(names.length);
    expect(new Set(environments.map(({ kafka }) => kafka.prefix)).size).toBe(names.length);
    await expect(readEnvironment("stagin", functions)).rejects.toThrow("Did you mean staging?");
  });
});
