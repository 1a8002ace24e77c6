import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, mkdtemp, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import { type AddressInfo, createServer as createTcpServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { Client } from "pg";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { POOL_CONNECTIONS_MAX } from "#kernel/limits";
import { PROGRAM, ROOT } from "../project/paths.ts";
import { call, eventually, newUser } from "../testing/lotus.ts";

const run = promisify(execFile);
const START = [PROGRAM, "start"];
let folder: string;
const children: ChildProcess[] = [];

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "lotus-start-"));
  // A folder that Postgres can enter when root runs it as another user.
  await chmod(folder, 0o711);
});
// A failed test has not stopped its processes.
afterEach(() => {
  for (const child of children.splice(0)) child.kill("SIGKILL");
});
afterAll(() => rm(folder, { recursive: true, force: true }));

interface Started {
  readonly child: ChildProcess;
  readonly url: string;
  /** The output so far. */
  output(): string;
  ended: Promise<number | null>;
}

/** Runs `npm start` without npm, on a free port. */
async function start(...flags: string[]): Promise<Started> {
  const child = spawn(process.execPath, [...START, "--port", "0", "--folder", folder, ...flags], {
    cwd: ROOT,
  });
  children.push(child);
  let text = "";
  for (const stream of [child.stdout, child.stderr]) stream?.on("data", (chunk: Buffer) => (text += chunk));
  const ended = new Promise<number | null>((resolve) => child.once("exit", resolve));
  const url = await eventually("Lotus prints its address", () => {
    if (child.exitCode !== null) throw new Error(`Lotus ended:\n${text}`);
    return /Lotus is at (\S+) /.exec(text)?.[1];
  });
  return { child, url, output: () => text, ended };
}

/** Processes of this machine whose command line names a text. */
async function processesWith(text: string): Promise<string[]> {
  const found: string[] = [];
  for (const pid of (await readdir("/proc")).filter((entry) => /^\d+$/.test(entry))) {
    const line = await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
    const environment = await readFile(`/proc/${pid}/environ`, "utf8").catch(() => "");
    if (line.includes(text) || environment.includes(text)) found.push(line.replaceAll("\0", " "));
  }
  return found;
}

/** Runs a start that fails. Returns its exit code and output. */
async function refused(...flags: string[]): Promise<{ code: number; text: string }> {
  return run(process.execPath, [...START, ...flags], { cwd: ROOT }).then(
    () => ({ code: 0, text: "" }),
    (error: { code: number; stdout: string; stderr: string }) => ({
      code: error.code,
      text: error.stdout + error.stderr,
    }),
  );
}

describe("npm start", () => {
  it.runIf(process.platform === "linux")(
    "serves until Ctrl-C, keeps the data, and leaves no process behind",
    async () => {
      const first = await start();
      const user = await newUser(first, 42);
      expect(first.output()).toMatch(/POST \/order\/pay .*functions\/order\/pay\.ts/);
      first.child.kill("SIGINT");
      expect(await first.ended).toBe(0);
      expect(first.output()).toContain("Lotus has stopped.");
      expect(await processesWith(folder)).toEqual([]);

      const second = await start();
      expect((await call(second, "GET /billing/balance", { token: user.token })).body).toEqual({ balance: 42 });
      second.child.kill("SIGKILL");
      await second.ended;
      await eventually("Postgres and the functions have ended", async () => (await processesWith(folder)).length === 0);
      const third = await start();
      expect((await call(third, "GET /billing/balance", { token: user.token })).body).toEqual({ balance: 42 });
      third.child.kill("SIGINT");
      expect(await third.ended).toBe(0);
      expect(await processesWith(folder)).toEqual([]);
    },
  );

  it.runIf(process.platform === "linux").each([
    ["SIGINT", /Starting Postgres/],
    ["SIGTERM", /Migrating/],
    ["SIGHUP", /Lotus is at/],
  ] as const)("leaves no process behind after %s, as early as %s", async (signal, when) => {
    const child = spawn(process.execPath, [...START, "--port", "0", "--folder", folder], { cwd: ROOT });
    children.push(child);
    let text = "";
    for (const stream of [child.stdout, child.stderr]) stream?.on("data", (chunk: Buffer) => (text += chunk));
    const ended = new Promise<number | null>((resolve) => child.once("exit", resolve));
    await eventually(`it says ${when}`, () => when.test(text));
    child.kill(signal);
    expect([await ended, text]).toEqual([0, expect.stringContaining("Lotus has stopped")]);
    expect(await processesWith(folder)).toEqual([]);
    expect(await readdir(folder)).not.toContain("run.json");
  });

  it("is listed, killed, followed and stopped by the commands", async () => {
    const lotus = await start("--quiet");
    const command = (...words: string[]) =>
      run(process.execPath, [PROGRAM, ...words, "--folder", folder], { cwd: ROOT }).catch(
        (error: { code: number; stdout: string; stderr: string }) => error,
      );
    await call(lotus, "GET /order/subscriptions");
    const listed = JSON.parse((await command("ps", "--json")).stdout) as {
      name: string;
      state: string;
      starts: number;
    }[];
    expect(listed.find(({ name }) => name === "order-subscriptions")).toMatchObject({ state: "running", starts: 1 });
    expect(listed.find(({ name }) => name === "order-pay")).toMatchObject({ state: "zero", starts: 0 });
    expect((await command("kill", "order-subscriptions")).stdout).toBe("order-subscriptions was killed.\n");
    expect((await call(lotus, "GET /order/subscriptions")).status).toBe(200);
    expect((await command("kill", "order-pay")).stderr).toBe("order-pay has no process now.\n");
    expect((await command("kill", "nothing")).stderr).toBe("No process is called nothing.\n");
    const logs = spawn(process.execPath, [PROGRAM, "logs", "order-subscriptions", "--folder", folder], { cwd: ROOT });
    children.push(logs);
    let text = "";
    logs.stdout.on("data", (chunk: Buffer) => (text += chunk));
    await eventually("the log shows the request", () => /200 GET \/order\/subscriptions/.test(text));
    expect((await command("stop")).stdout).toBe("Lotus has stopped.\n");
    expect(await lotus.ended).toBe(0);
    expect((await command("ps")).stderr).toMatch(/^No Lotus runs in \S+\. Start it with npm start/);
  });

  it.runIf(process.platform === "linux")("stops when the reader of its output has ended", async () => {
    const lotus = await start();
    lotus.child.stdout?.destroy();
    lotus.child.stderr?.destroy();
    await call(lotus, "GET /order/subscriptions");
    expect(await lotus.ended).toBe(0);
    expect(await processesWith(folder)).toEqual([]);
  });

  it.runIf(process.platform === "linux")("starts its Postgres again after a kill", async () => {
    const lotus = await start("--quiet");
    const user = await newUser(lotus, 42);
    const database = new Client({
      connectionString: await readFile(join(folder, "secrets/database-admin/url"), "utf8"),
    });
    database.on("error", () => undefined);
    await database.connect();
    const { rows } = await database.query("select pg_backend_pid() as pid");
    const postmaster = /\) \S (\d+)/.exec(await readFile(`/proc/${rows[0].pid}/stat`, "utf8"))?.[1];
    process.kill(Number(postmaster), "SIGKILL");
    await eventually("the restart is printed", () =>
      /postgres +ended, SIGKILL; it is started again.+postgres +runs again/s.test(lotus.output()),
    );
    const { body } = await eventually("the balance is served again", async () => {
      const answer = await user.call("GET /billing/balance");
      return answer.status === 200 && answer;
    });
    expect(body).toEqual({ balance: 42 });
    lotus.child.kill("SIGTERM");
    expect(await lotus.ended).toBe(0);
    expect(await processesWith(folder)).toEqual([]);
  });

  it("ends at once at the second Ctrl-C, during any step", async () => {
    const silent = createTcpServer().listen(0, "127.0.0.1");
    await once(silent, "listening");
    const { port } = silent.address() as AddressInfo;
    const database = `postgres://a:b@127.0.0.1:${port}/c`;
    const child = spawn(process.execPath, [...START, "--port", "0", "--folder", folder, "--database", database], {
      cwd: ROOT,
    });
    children.push(child);
    let text = "";
    child.stdout?.on("data", (chunk: Buffer) => (text += chunk));
    const ended = once(child, "exit");
    await eventually("it waits for the database", () => text.includes("Migrating"));
    child.kill("SIGINT");
    await eventually("it says so", () => text.includes("Ctrl-C once more ends Lotus at once"));
    child.kill("SIGINT");
    expect(await ended).toEqual([130, null]);
    silent.close();
  });

  it("ends every process when its folder is removed", async () => {
    const gone = await mkdtemp(join(folder, "gone-"));
    await chmod(gone, 0o711);
    const lotus = await start("--quiet", "--folder", gone);
    await rename(gone, `${gone}-away`);
    lotus.child.kill("SIGTERM");
    expect(await lotus.ended).toBe(1);
    expect(lotus.output()).toMatch(/Lotus did not stop cleanly: ENOENT/);
    expect(await processesWith(gone)).toEqual([]);
  });

  it("finishes requests in progress when it receives SIGTERM", async () => {
    const lotus = await start("--quiet");
    const users = await Promise.all(Array.from({ length: POOL_CONNECTIONS_MAX }, () => newUser(lotus, 1000)));
    const database = new Client({
      connectionString: await readFile(join(folder, "secrets/database-admin/url"), "utf8"),
    });
    await database.connect();
    // The lock on the accounts' rows holds the requests.
    await database.query("begin; select from billing.accounts where balance = 100000 for update");
    const answers = Promise.all(users.map((user) => user.call("POST /billing/withdraw-money?money=1")));
    // The number of waiting sessions is not enough: one statement contains the calls of many users.
    await eventually("all requests are in the function, and the first one waits for its row", async () => {
      const { stdout } = await run(process.execPath, [PROGRAM, "ps", "--json", "--folder", folder], { cwd: ROOT });
      const processes = JSON.parse(stdout) as { name: string; inFlight?: number }[];
      const withdraw = processes.find(({ name }) => name === "billing-withdraw-money");
      const { rows } = await database.query("select from pg_locks where not granted and pid <> pg_backend_pid()");
      return withdraw?.inFlight === users.length && rows.length > 0;
    });
    lotus.child.kill("SIGTERM");
    await eventually("Lotus refuses connections", () =>
      fetch(lotus.url).then(
        () => false,
        () => true,
      ),
    );
    await database.query("rollback");
    await database.end();
    expect((await answers).map(({ status }) => status)).toEqual(users.map(() => 200));
    expect(await lotus.ended).toBe(0);
  });

  it("refuses a second run in the same folder, and names the address of the first one", async () => {
    const early = spawn(process.execPath, [...START, "--port", "0", "--folder", folder], { cwd: ROOT });
    children.push(early);
    await eventually("the first one is starting", () =>
      readFile(join(folder, "run.json"), "utf8").then(
        (text) => text.includes("pid"),
        () => false,
      ),
    );
    const tooEarly = await refused("--port", "0", "--folder", folder);
    expect([tooEarly.code, tooEarly.text]).toEqual([
      1,
      expect.stringMatching(new RegExp(`Lotus runs here already(, at \\S+)? \\(process ${early.pid}\\)`)),
    ]);
    const url = await eventually("the first one runs", () =>
      readFile(join(folder, "run.json"), "utf8").then((text) => JSON.parse(text).url as string | undefined),
    );
    const { code, text } = await refused("--port", "0", "--folder", folder);
    expect([code, text]).toEqual([1, expect.stringContaining(`Lotus runs here already, at ${url}`)]);
    const ended = new Promise((resolve) => early.once("exit", resolve));
    early.kill("SIGTERM");
    await ended;
  });

  it("starts after a killed run that left a complete or incomplete run file", async () => {
    for (const text of [
      "",
      "{",
      '{"pid":999999999}',
      JSON.stringify({ pid: process.pid, url: "http://localhost:1" }),
    ]) {
      await writeFile(join(folder, "run.json"), text);
      const lotus = await start("--quiet");
      lotus.child.kill("SIGTERM");
      expect([text, await lotus.ended]).toEqual([text, 0]);
    }
  });

  it("names a busy port, and leaves no process behind", async () => {
    const busy: Server = createServer();
    await new Promise<void>((resolve) => busy.listen(0, resolve));
    const { port } = busy.address() as AddressInfo;
    const { code, text } = await refused("--port", String(port), "--folder", folder);
    busy.close();
    expect(code).toBe(1);
    expect(text).toContain(`Port ${port} is taken by another program. Choose another: npm start -- --port ${port + 1}`);
    if (process.platform === "linux") expect(await processesWith(folder)).toEqual([]);
  });

  it("names a folder that cannot be used", async () => {
    const file = join(folder, "a-file");
    await writeFile(file, "");
    const { code, text } = await refused("--folder", join(file, "data"));
    expect([code, text]).toEqual([1, expect.stringMatching(/A file is in the place of a folder: \S+a-file/)]);
  });

  it("reports that the database of --database does not answer", async () => {
    const { code, text } = await refused(
      "--port",
      "0",
      "--folder",
      folder,
      "--database",
      "postgres://a:b@127.0.0.1:1/c",
    );
    expect([code, text]).toEqual([
      1,
      expect.stringMatching(/^Lotus did not start\. No server listens at 127\.0\.0\.1:1 /m),
    ]);
  });

  it.each([
    [["--prot", "1"], /lotus start has no option --prot\. Did you mean --port\? See: npx lotus start --help/],
    [["--port", "70000"], /--port must be a whole number from 0 to 65535; "70000" is not/],
    [["--folder="], /--folder must name a folder/],
    [["--database", "mysql://x/y"], /--database must be a URL such as postgres:/],
    [["--port", "x"], /--port must be a whole number from 0 to 65535; "x" is not/],
  ])("refuses %j with an error message", async (flags, sentence) => {
    const { code, text } = await refused(...flags);
    expect([code, text]).toEqual([2, expect.stringMatching(sentence)]);
  });

  it("names the needed version to an old Node", async () => {
    const old = `data:text/javascript,Object.defineProperty(process,"versions",{value:{...process.versions,node:"18.20.4"}})`;
    const failed = await run(process.execPath, ["--import", old, "scripts/install.mjs"], { cwd: ROOT }).catch(
      (error) => error,
    );
    expect([failed.code, failed.stderr]).toEqual([
      1,
      expect.stringContaining("Lotus needs Node 20.19 or newer; this is 18.20.4."),
    ]);
  });
});
