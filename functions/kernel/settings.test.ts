import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import { bundleOf } from "../../scripts/build/bundles.ts";
import { readSettings, SettingsError } from "./settings.ts";

const run = promisify(execFile);

describe("the settings", () => {
  it("have defaults for optional variables, and an empty variable counts as unset", () => {
    expect(readSettings({ PORT: "", KAFKA_BROKERS: "" })).toEqual({
      PORT: 8080,
      OTEL_TRACES_EXPORTER: "otlp",
      OTEL_METRICS_EXPORTER: "otlp",
      OTEL_SDK_DISABLED: false,
      OTEL_TRACES_SAMPLER: "parentbased_always_on",
      OTEL_TRACES_SAMPLER_ARG: 1,
      REGISTRATIONS_PER_ADDRESS_MAX: 100,
      DATABASE_POOL: 4,
      DATABASE_PREPARE: true,
      KAFKA_PREFIX: "",
      KAFKA_SASL_MECHANISM: "scram-sha-512",
      TRUSTED_PROXIES: 0,
    });
  });

  it("read a list of brokers", () => {
    expect(readSettings({ KAFKA_BROKERS: "one:9092, two:9093" }).KAFKA_BROKERS).toEqual(["one:9092", "two:9093"]);
  });

  it.each([
    [{ PORT: "http" }, 'The environment variable PORT must be a port number, 0 to 65535; "http" is not.'],
    [{ PORT: "65536" }, 'The environment variable PORT must be a port number, 0 to 65535; "65536" is not.'],
    [
      { DATABASE_URL: "mysql://u:hidden@h/n" },
      "The environment variable DATABASE_URL must be a URL that begins with postgres:// or postgresql://; its value is not.",
    ],
    [
      { DATABASE_TRANSPORT: "udp" },
      'The environment variable DATABASE_TRANSPORT must be tcp or websocket; "udp" is not.',
    ],
    [{ DATABASE_PREPARE: "no" }, 'The environment variable DATABASE_PREPARE must be true or false; "no" is not.'],
    [
      { KAFKA_BROKERS: "one:9092,two" },
      'The environment variable KAFKA_BROKERS must be host:port, several separated by commas; "one:9092,two" is not.',
    ],
    [
      { TRUSTED_PROXIES: "-1" },
      'The environment variable TRUSTED_PROXIES must be a number of proxies, 0 to 9; "-1" is not.',
    ],
    [
      { K_SINK: "broker" },
      'The environment variable K_SINK must be a URL that begins with http:// or https://; "broker" is not.',
    ],
  ])("refuse %j with an error message", (environment, sentence) => {
    expect(() => readSettings(environment)).toThrow(new SettingsError(sentence));
  });

  it("report all wrong variables at once", () => {
    expect(() => readSettings({ PORT: "x", K_SINK: "y" })).toThrow(/PORT must be .*\n.*K_SINK must be /);
  });
});

describe("a function whose environment is wrong", () => {
  const database = { DATABASE_URL: "postgres://billing@127.0.0.1:1/lotus" };

  it.each([
    [
      "a variable that cannot be used",
      { PORT: "http" },
      'The environment variable PORT must be a port number, 0 to 65535; "http" is not.',
    ],
    ["a variable that is missing", {}, "The environment variable DATABASE_URL is not set, and this function needs it."],
    [
      "a file that is missing",
      { ...database, JWKS_FILE: "/nowhere/jwks.json" },
      "The file that JWKS_FILE names, /nowhere/jwks.json, cannot be read: ENOENT: no such file or directory, open '/nowhere/jwks.json'.",
    ],
    [
      "a password file that is missing",
      { ...database, JWKS_FILE: bundleOf("billing-balance"), DATABASE_PASSWORD_FILE: "/nowhere/password" },
      "The file that DATABASE_PASSWORD_FILE names, /nowhere/password, cannot be read: ENOENT: no such file or directory, open '/nowhere/password'.",
    ],
  ])("ends with the sentence and exit code 1: %s", async (_, environment, sentence) => {
    const failed = await run(process.execPath, [bundleOf("billing-balance")], {
      env: { PORT: "0", ...environment },
    }).catch((error) => error);
    expect([failed.code, failed.stdout, failed.stderr]).toEqual([1, "", `${sentence}\n`]);
  });
});
