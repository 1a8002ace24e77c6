import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { chmod, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { ROOT, TYPESCRIPT } from "../project/paths.ts";
import { asAdmin, canStartKafka, makeTopic, startTestKafka } from "../testing/kafka.ts";
import { eventually } from "../testing/lotus.ts";
import { endLeftover } from "./broker-process.ts";
import { findKafka, startKafka } from "./cluster.ts";
import { clusterIdOf, serverProperties, toEnvironment } from "./properties.ts";

let folder: string;
const endings: (() => Promise<unknown>)[] = [];
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "lotus-kafka-"));
});
afterEach(async () => {
  for (const end of endings.splice(0).reverse()) await end();
  vi.unstubAllEnvs();
  await rm(folder, { recursive: true, force: true });
});

const alive = (pid: number) => {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
};

it("the id of a cluster follows from its folder, and does not begin with a hyphen", () => {
  const ids = Array.from({ length: 1_000 }, (_, index) => clusterIdOf(`/folder/${index}`));
  expect(ids.filter((id) => !/^\w[\w-]{21}$/.test(id))).toEqual([]);
  expect(new Set(ids).size).toBe(1_000);
  expect(clusterIdOf("/folder/7")).toBe(ids[7]);
});

describe("where Kafka comes from", () => {
  /** A program of this name, first on the PATH. */
  async function program(name: string, script: string): Promise<void> {
    await writeFile(join(folder, name), `#!/bin/sh\n${script}\n`);
    await chmod(join(folder, name), 0o755);
    vi.stubEnv("PATH", [folder, process.env.PATH].join(delimiter));
  }

  it("is KAFKA_BROKERS first, and Lotus does not stop those brokers", async () => {
    vi.stubEnv("KAFKA_BROKERS", "one:9092, two:9092");
    const kafka = await startKafka({ brokers: 1, folder });
    expect(kafka.bootstrap).toEqual(["one:9092", "two:9092"]);
    expect(() => kafka.kill(0)).toThrow("did not start the brokers");
    await expect(kafka.erase()).rejects.toThrow("did not start the brokers");
    await kafka.stop();
  });

  it("is an error that names the three ways when all are missing", async () => {
    vi.stubEnv("KAFKA_BROKERS", "");
    for (const name of ["docker", "java", "mvn"]) await program(name, "exit 1");
    vi.stubEnv("JAVA_HOME", undefined);
    expect(await findKafka()).toBeUndefined();
    await expect(startKafka({ brokers: 1, folder })).rejects.toThrow(
      /KAFKA_BROKERS with running brokers .*, a running docker, or Java 17 \(or newer\) with Maven/,
    );
  });

  it("is docker when its engine answers, and the containers are killed and removed by their names", async () => {
    vi.stubEnv("KAFKA_BROKERS", "");
    await program(
      "docker",
      `echo "$@" >> ${folder}/calls
       case "$1 $2" in
         start*) echo "[KafkaRaftServer nodeId=1] Kafka Server started"; exec sleep 60 ;;
         *inspect) exit 1 ;;
       esac`,
    );
    const kafka = await startKafka({ brokers: 3, folder });
    kafka.kill(1);
    await kafka.restart(1);
    await kafka.stop();
    const calls = (await readFile(join(folder, "calls"), "utf8")).trim().split("\n");
    const count = (pattern: RegExp) => calls.filter((call) => pattern.test(call)).length;
    expect(count(/^pull --quiet apache\/kafka:4\.\d+\.\d+$/)).toBe(1);
    expect(count(/^create --name lotus-kafka-\w+-[123] .*--publish 127\.0\.0\.1:(\d+):\1 .*KAFKA_NODE_ID=/)).toBe(4);
    expect(count(/^start --attach lotus-kafka-\w+-[123]$/)).toBe(4);
    expect(count(/^kill lotus-kafka-\w+-2$/)).toBe(1);
    expect(count(/^stop --time 10 /)).toBe(3);
    expect(count(/^rm --force --volumes /)).toBe(6);
  });
});

describe("the settings of a broker", () => {
  const node = { host: "h", bind: "0.0.0.0", clientPort: 1, internalPort: 2, controllerPort: 3, securedPort: 4 };

  it("keep three copies, two of them in sync, with three brokers", () => {
    const properties = serverProperties([node, node, node], 2, "/data", undefined);
    expect(properties.get("min.insync.replicas")).toBe("2");
    expect(properties.get("node.id")).toBe("3");
    expect(properties.get("controller.quorum.voters")).toBe("1@h:3,2@h:3,3@h:3");
    expect(properties.get("advertised.listeners")).toBe("CLIENT://127.0.0.1:1,INTERNAL://h:2");
  });

  it("are written as the image's variables", () => {
    const environment = toEnvironment(new Map([["a.b_c-d", "x"]]));
    expect(environment).toEqual({ KAFKA_A_B__C___D: "x" });
  });
});

describe.skipIf(process.platform === "win32")("a broker of an earlier run", () => {
  async function leftBehind(mark: string, parent: number) {
    const child = spawn("sh", ["-c", "sleep 60; true", mark], { stdio: "ignore" });
    endings.push(async () => child.kill("SIGKILL"));
    await writeFile(join(folder, "pid"), `${child.pid} ${parent}`);
    return child;
  }
  const nobody = 2 ** 22 + 1;

  it("is ended", async () => {
    const child = await leftBehind("its-properties", nobody);
    const exited = once(child, "exit");
    await endLeftover(join(folder, "pid"), "its-properties");
    expect((await exited)[1]).toBe("SIGKILL");
    expect(existsSync(join(folder, "pid"))).toBe(false);
  });

  it("keeps running while the run that started it runs", async () => {
    const child = await leftBehind("its-properties", process.pid);
    await expect(endLeftover(join(folder, "pid"), "its-properties")).rejects.toThrow(
      `process ${process.pid} started it`,
    );
    expect(child.exitCode).toBeNull();
  });

  it("is not confused with another process that has its number", async () => {
    const child = await leftBehind("something else", nobody);
    await endLeftover(join(folder, "pid"), "its-properties");
    expect(child.exitCode).toBeNull();
  });
});

describe.skipIf(!canStartKafka)("started brokers", () => {
  it("keep their data when they are stopped, killed and started again, and lose it when they are erased", async () => {
    const first = await startKafka({ brokers: 1, folder });
    endings.push(() => first.stop());
    await makeTopic(first.bootstrap, "kept");
    first.kill(0);
    await first.restart(0);
    const topics = () => asAdmin(first.bootstrap, (admin) => admin.listTopics());
    expect(await topics()).toContain("kept");
    await first.erase();
    expect(await topics()).not.toContain("kept");
    await expect(startKafka({ brokers: 1, folder })).rejects.toThrow("This Kafka runs already");
  });

  it("report a port that is taken", async () => {
    const server = createServer().listen(0, "127.0.0.1");
    endings.push(async () => server.close());
    await once(server, "listening");
    const { port } = server.address() as { port: number };
    await expect(startKafka({ brokers: 1, folder, port })).rejects.toThrow(`Port ${port} is taken.`);
  });

  it("name the log file when one does not start", async () => {
    const secured = {
      protocol: "SSL",
      properties: { "listener.name.secured.ssl.keystore.location": "/nowhere" },
    } as const;
    await expect(startKafka({ brokers: 1, folder, secured })).rejects.toThrow(
      /broker-1 did not start: .*broker-1\.log/,
    );
    expect(existsSync(join(folder, "broker-1.pid"))).toBe(false);
  });

  it("end when their parent is killed by SIGKILL", async () => {
    const program = `
      import { startKafka } from "./scripts/kafka/cluster.ts";
      await startKafka({ brokers: 1, folder: process.argv[1] });
      console.log("serves");`;
    const child = spawn(process.execPath, ["--import", TYPESCRIPT, "--input-type=module", "-e", program, folder], {
      cwd: ROOT,
      stdio: ["ignore", "pipe", "inherit"],
    });
    await once(child.stdout, "data");
    const [pid] = (await readFile(join(folder, "broker-1.pid"), "utf8")).split(" ").map(Number);
    expect(alive(pid as number)).toBe(true);
    child.kill("SIGKILL");
    await eventually("the broker has ended", () => !alive(pid as number));
    const next = await startTestKafka({ folder });
    await next.stop();
  });
});
