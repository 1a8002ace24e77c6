/** lotus fuzz: sends generated requests to every endpoint and checks each answer against docs/openapi.json. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { command } from "../cli/command.ts";
import { Refusal, UsageError } from "../cli/errors.ts";
import { print } from "../cli/output.ts";
import { startLotus } from "../local/lotus.ts";
import { findFunctions } from "../project/functions.ts";
import { ROOT } from "../project/paths.ts";

const SCHEMATHESIS = "schemathesis==4.32.5";
const CASES_DEFAULT = 10_000;
/** A round costs some seconds, so it generates more than a few cases. */
const CASES_OF_ROUND_MIN = 20;
const FOLDER = join(ROOT, "node_modules/.cache/lotus-fuzz");
/** The programs of the virtual environment; Windows has another folder name. */
const PROGRAMS = join(FOLDER, process.platform === "win32" ? "Scripts" : "bin");
/** The document must describe each status, content type, header and body; an answer of 5xx is a failure. */
const CHECKS = [
  "not_a_server_error",
  "status_code_conformance",
  "content_type_conformance",
  "response_headers_conformance",
  "response_schema_conformance",
  "unsupported_method",
  "allow_header_conformance",
  "ignored_auth",
];

/** Runs a program with its output on this terminal. Returns its exit code; undefined when it does not exist. */
function run(program: string, words: readonly string[], folder = ROOT): Promise<number | undefined> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, words, { cwd: folder, stdio: ["ignore", "inherit", "inherit"] });
    child.once("error", (error: NodeJS.ErrnoException) =>
      error.code === "ENOENT" ? resolve(undefined) : reject(error),
    );
    child.once("exit", (code) => resolve(code ?? 1));
  });
}

/** Runs Schemathesis with its output on this terminal. Returns its exit code, and the number of requests that it generated. */
async function generate(words: readonly string[], folder: string): Promise<{ code: number; generated: number }> {
  const child = spawn(join(PROGRAMS, "schemathesis"), words, { cwd: folder, stdio: ["ignore", "pipe", "inherit"] });
  let written = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    process.stdout.write(text);
    written += text;
  });
  const [code] = await once(child, "close");
  return { code: code ?? 1, generated: Number(/^ *(\d+) generated/m.exec(written)?.[1] ?? 0) };
}

/** @throws {Refusal} a sentence, when Python is missing or the installation fails */
async function install(): Promise<void> {
  if (existsSync(join(FOLDER, SCHEMATHESIS))) return;
  print(`Installing ${SCHEMATHESIS} from PyPI into ${FOLDER}. Delete that folder to remove it.`);
  await rm(FOLDER, { recursive: true, force: true });
  const made = await run("python3", ["-m", "venv", FOLDER]);
  if (made === undefined)
    throw new Refusal("npm run fuzz needs Python 3.10 or later: the program python3 was not found.");
  if (made !== 0) throw new Refusal("Python could not create a virtual environment. On Debian, install python3-venv.");
  const installed = await run(join(PROGRAMS, "python"), ["-m", "pip", "install", "--quiet", SCHEMATHESIS]);
  if (installed !== 0)
    throw new Refusal(`pip could not install ${SCHEMATHESIS}. It needs PyPI and Python 3.10 or later.`);
  // This step is last, so that an interrupted installation is repeated.
  await mkdir(join(FOLDER, SCHEMATHESIS));
}

async function post(url: string, body?: object, token?: string): Promise<Record<string, string>> {
  const headers = {
    "content-type": "application/json",
    ...(token !== undefined && { authorization: `Bearer ${token}` }),
  };
  const answer = await fetch(url, {
    method: "POST",
    headers,
    ...(body !== undefined && { body: JSON.stringify(body) }),
  });
  if (!answer.ok) throw new Refusal(`${url} answered ${answer.status}: ${await answer.text()}`);
  return (await answer.json()) as Record<string, string>;
}

/** Registers a user with money. Returns their token. */
async function newToken(url: string): Promise<string> {
  const user = { email: "fuzz@example.com", password: "correct horse battery" };
  await post(`${url}/profile/register`, user);
  const { token = "" } = await post(`${url}/profile/login`, user);
  await post(`${url}/billing/add-money?money=1000000`, undefined, token);
  return token;
}

function step<T>(what: string, work: () => Promise<T>): Promise<T> {
  print(`${what} …`);
  return work();
}

export default command({
  about:
    "Sends generated requests to every endpoint, with a token and without, and checks each answer against docs/openapi.json.",
  notes: `Schemathesis, a Python program, generates the requests. The command installs ${SCHEMATHESIS} from PyPI into
${relative(ROOT, FOLDER)}, and runs it against a separate Lotus with an empty database.`,
  options: {
    cases: { type: "string", value: "N", about: "requests in total, at least", default: String(CASES_DEFAULT) },
    seed: { type: "string", value: "N", about: "repeat the requests of an earlier run" },
  },
  async run(values) {
    if (!/^[1-9]\d{0,6}$/.test(values.cases)) throw new UsageError("--cases must be a number from 1 to 9999999.");
    if (values.seed !== undefined && !/^\d{1,40}$/.test(values.seed)) throw new UsageError("--seed must be a number.");
    await install();
    const endpoints = (await findFunctions()).filter(({ kind }) => kind === "endpoint").length;
    const cases = Number(values.cases);
    const folder = await mkdtemp(join(tmpdir(), "lotus-fuzz-"));
    const failures: string[] = [];
    let sent = 0;
    // Schemathesis would otherwise register a user and send that user's token.
    const config = join(folder, "schemathesis.toml");
    await writeFile(config, "[auth]\nauto-signup = false\n");
    const lotus = await startLotus({ port: 0, folder, step });
    try {
      const token = await newToken(lotus.url);
      // An endpoint without inputs has few different requests, so a round may generate fewer than it may send.
      for (let round = 0; sent < cases && failures.length === 0; round++) {
        const before = sent;
        const casesPerEndpoint = Math.max(CASES_OF_ROUND_MIN, Math.ceil((cases - sent) / endpoints / 2));
        for (const [how, headers] of [
          ["without a token", []],
          ["with a token", ["-H", `Authorization: Bearer ${token}`]],
        ] as const) {
          print(`\n${how}: at most ${casesPerEndpoint} random cases for each of ${endpoints} endpoints`);
          const words = [
            ...["--config-file", config, "run", join(ROOT, "docs/openapi.json")],
            ...["--url", lotus.url, "--checks", CHECKS.join(","), "--max-examples", String(casesPerEndpoint)],
            // One worker: the parser of Python 3.11 fails when two threads use it.
            ...["--workers", "1", "--warnings", "off", "--continue-on-failure"],
            // The other phases would repeat the requests of the first round.
            ...(round === 0 ? [] : ["--phases", "fuzzing"]),
            ...(values.seed === undefined ? [] : ["--seed", String(BigInt(values.seed) + BigInt(round))]),
            ...headers,
          ];
          // Schemathesis keeps its cache in the working directory.
          const { code, generated } = await generate(words, folder);
          sent += generated;
          if (code !== 0) failures.push(how);
        }
        if (sent === before) throw new Refusal("Schemathesis generated no request.");
      }
    } finally {
      await lotus.stop();
      await rm(folder, { recursive: true, force: true });
    }
    print(`\nSchemathesis generated ${sent} cases.`);
    if (failures.length > 0)
      throw new Refusal(`Schemathesis found failures ${[...new Set(failures)].join(" and ")}. Its report is above.`);
  },
});
