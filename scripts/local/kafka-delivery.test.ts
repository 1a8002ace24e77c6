import { readFileSync } from "node:fs";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { expect, it } from "vitest";
import type { Kafka } from "../kafka/cluster.ts";
import { freePorts } from "../process/ports.ts";
import { ROOT } from "../project/paths.ts";
import { parseSource } from "../sources/delivery.ts";
import { eventually, startTestLotus } from "../testing/lotus.ts";
import { deliverFromKafka } from "./kafka-delivery.ts";

it("serves while the brokers do not answer", async () => {
  const open = new Set<Socket>();
  const silent = createServer((socket) => void open.add(socket.on("error", () => undefined)));
  await new Promise<void>((resolve) => silent.listen(0, "127.0.0.1", resolve));
  const refuse = () => {
    throw new Error("This Kafka only listens.");
  };
  const kafka: Kafka = {
    bootstrap: [`127.0.0.1:${(silent.address() as AddressInfo).port}`],
    secured: [],
    owned: false,
    running: true,
    stop: async () => undefined,
    kill: refuse,
    restart: refuse,
    erase: refuse,
  };
  const [port = 0] = await freePorts(1);
  let started = false;
  const starting = startTestLotus({ kafka, port }).finally(() => {
    started = true;
  });
  starting.catch(() => undefined);
  await eventually("the gateway answers", () =>
    fetch(`http://127.0.0.1:${port}/profile/jwks`).then(
      ({ ok }) => ok,
      () => false,
    ),
  );
  expect(started).toBe(false);
  silent.close();
  for (const socket of open) socket.destroy();
  await (await starting).stop();
});

it("starts without the database and the brokers, runs the sources when the database answers, and stops while it waits", async () => {
  const [port = 0] = await freePorts(1);
  const file = join(ROOT, "knative", "sources", "notification-store.yaml");
  const source = parseSource(file, readFileSync(file, "utf8"));
  if (source.kind !== "KafkaSource") throw new Error(`${file} is not a KafkaSource`);
  let isAway = true;
  const news: string[] = [];
  const start = () =>
    deliverFromKafka({
      brokers: [`127.0.0.1:${port}`],
      prefix: "",
      sources: [source],
      async installation() {
        if (isAway) throw new Error("connect ECONNREFUSED");
        return "installation";
      },
      resolve: (name) => name,
      tell: (_, line) => void news.push(line),
    });
  const stopped = await start();
  expect(news).toContain("The database does not answer: connect ECONNREFUSED. The events wait until it does.");
  await stopped.stop();
  expect(stopped.sources()).toEqual([]);
  const delivery = await start();
  isAway = false;
  const [running] = await eventually("the source runs", () => delivery.sources().length > 0 && delivery.sources());
  expect(running?.spec.consumerGroup).toBe(`${source.spec.consumerGroup}.installation`);
  await delivery.stop();
});
