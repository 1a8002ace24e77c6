import { writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { AUTHORITY } from "../../scripts/testing/postgres-server.ts";
import { DatabaseUrlError, isNeon, readDatabaseAddress, tlsOptions } from "./database-url.ts";

const modeOf = (url: string, authorityFile?: string) => readDatabaseAddress(url, authorityFile).tlsMode;

describe("a database URL", () => {
  it("contains percent-encoded parts", () => {
    expect(readDatabaseAddress("postgresql://my%40shop:p%40%2F%23%25%3A%3F%26@127.0.0.1/my%20shop")).toMatchObject({
      host: "127.0.0.1",
      port: 5432,
      user: "my@shop",
      password: "p@/#%:?&",
      database: "my shop",
      applicationName: undefined,
    });
  });

  it("may omit the password and the database, which is then named after the user", () => {
    expect(readDatabaseAddress("postgres://shop@[::1]:6432?application_name=till")).toMatchObject({
      host: "::1",
      port: 6432,
      password: undefined,
      database: "shop",
      applicationName: "till",
    });
  });

  it.each([
    ["of another kind", "mysql://a@b/c", "must look like postgres://"],
    ["without a host", "postgres:///c", "names no host"],
    ["without a database and a user", "postgres://127.0.0.1", "names no database"],
    ["with an unknown parameter", "postgres://a@127.0.0.1/c?ssl=true", "has the parameter ssl"],
    [
      "with an unknown mode",
      "postgres://a@127.0.0.1/c?sslmode=prefer",
      "must be disable, require, verify-ca, verify-full",
    ],
    [
      "with channel binding",
      "postgres://a@127.0.0.1/c?channel_binding=require",
      "channel_binding=require is not supported",
    ],
    [
      "with a password that is not encoded",
      "postgres://a:100%25%@127.0.0.1/c",
      "password in the database URL is not percent-encoded",
    ],
    ["with an authority that does not exist", "postgres://a@db.example/c?sslrootcert=/none.pem", "cannot be read"],
  ])("%s is refused with an error message", (_, url, sentence) => {
    expect(() => readDatabaseAddress(url)).toThrow(DatabaseUrlError);
    expect(() => readDatabaseAddress(url)).toThrow(sentence);
  });

  it("with a file that contains no certificate is refused", () => {
    const file = join(tmpdir(), `lotus-no-certificate-${process.pid}`);
    writeFileSync(file, "a certificate\n");
    expect(() => readDatabaseAddress("postgres://a@db.example/c", file)).toThrow("contains no PEM certificate");
  });
});

describe("the TLS mode", () => {
  it("is verify-full for a remote host, and disable on this machine and in the cluster", () => {
    for (const host of ["db.example", "10.0.0.1", "db", "localhost.example", "127.example", "svc", "a.svc.example"])
      expect([host, modeOf(`postgres://a@${host}/b`)]).toEqual([host, "verify-full"]);
    for (const host of ["localhost", "127.0.0.1", "127.1.2.3", "[::1]", "db.lotus.svc.cluster.local", "db.lotus.svc"])
      expect([host, modeOf(`postgres://a@${host}/b`)]).toEqual([host, "disable"]);
  });

  it("is the value of sslmode, and require verifies a given authority as in libpq", () => {
    expect(modeOf("postgres://a@db.example/b?sslmode=disable")).toBe("disable");
    expect(modeOf("postgres://a@127.0.0.1/b?sslmode=verify-ca")).toBe("verify-ca");
    expect(modeOf("postgres://a@db.example/b?sslmode=require")).toBe("require");
    expect(modeOf("postgres://a@db.example/b?sslmode=require", AUTHORITY)).toBe("verify-ca");
    expect(modeOf(`postgres://a@db.example/b?sslmode=require&sslrootcert=${AUTHORITY}`)).toBe("verify-ca");
  });

  it("is verify-full for Neon, although its URLs ask for require and channel binding", () => {
    expect(isNeon("ep-quiet-1.eu-central-1.aws.neon.tech")).toBe(true);
    expect(isNeon("neon.tech.example")).toBe(false);
    expect(modeOf("postgres://a@ep-1.neon.tech/b?sslmode=require&channel_binding=require")).toBe("verify-full");
  });
});

describe("the options of TLS", () => {
  const optionsOf = (url: string) => tlsOptions(readDatabaseAddress(url));

  it("are absent without TLS", () => {
    expect(optionsOf("postgres://a@127.0.0.1/b")).toBeUndefined();
  });

  it("name the host to the server, unless it is an IP address", () => {
    expect(optionsOf("postgres://a@db.example/b")).toEqual({
      host: "db.example",
      servername: "db.example",
      rejectUnauthorized: true,
    });
    expect(optionsOf("postgres://a@10.0.0.1/b")).toEqual({ host: "10.0.0.1", rejectUnauthorized: true });
  });

  it("trust the authority of the URL before the one of the setting, and with `system` those of Node", () => {
    const url = `postgres://a@db.example/b?sslrootcert=${AUTHORITY}`;
    expect(tlsOptions(readDatabaseAddress(url, "/none.pem"))?.ca).toContain("BEGIN CERTIFICATE");
    expect(optionsOf("postgres://a@db.example/b?sslrootcert=system")).not.toHaveProperty("ca");
  });

  it("with require accept any certificate", () => {
    expect(optionsOf("postgres://a@db.example/b?sslmode=require")).toMatchObject({ rejectUnauthorized: false });
  });
});
