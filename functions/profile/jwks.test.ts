import { readFile, writeFile } from "node:fs/promises";
import { createLocalJWKSet, jwtVerify } from "jose";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { call, newUser, startTestLotus, type TestLotus } from "../../scripts/testing/lotus.ts";

let lotus: TestLotus;
beforeAll(async () => {
  lotus = await startTestLotus();
});
afterAll(() => lotus.stop());

describe("GET /profile/jwks", () => {
  it("gives anyone what tokens are checked with, and lets them keep it for a while", async () => {
    const { status, headers, body } = await call(lotus, "GET /profile/jwks");
    expect([status, headers.get("cache-control")]).toEqual([200, "public, max-age=60"]);
    const { token, id } = await newUser(lotus);
    const { payload } = await jwtVerify(token, createLocalJWKSet(body), { issuer: "lotus", audience: "lotus" });
    expect(payload.sub).toBe(id);
  });

  it("gives the public members only, whatever lies in the file", async () => {
    const file = lotus.manifests.functions.get("profile-jwks")?.JWKS_FILE ?? "";
    const { keys } = JSON.parse(await readFile(file, "utf8"));
    const secrets = { d: "c2VjcmV0", retiredAt: 1, note: "x" };
    await writeFile(file, JSON.stringify({ keys: [{ ...keys[0], ...secrets }], more: 1 }));
    const { body } = await call(lotus, "GET /profile/jwks");
    expect(Object.keys(body)).toEqual(["keys"]);
    expect(Object.keys(body.keys[0]).sort()).toEqual(["alg", "crv", "kid", "kty", "use", "x"]);
  });
});
