import { readFile, writeFile } from "node:fs/promises";
import { createLocalJWKSet, jwtVerify } from "jose";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { KEY_OVERLAP_SECONDS, TOKEN_SECONDS } from "#kernel/limits";
import { call, newUser, startTestLotus, type TestLotus } from "../../scripts/testing/lotus.ts";

let lotus: TestLotus;
beforeAll(async () => {
  lotus = await startTestLotus();
});
afterAll(() => lotus.stop());

describe("GET /profile/jwks", () => {
  it("returns the keys that verify tokens to anyone, who may cache them", async () => {
    const { status, headers, body } = await call(lotus, "GET /profile/jwks");
    expect([status, headers.get("cache-control")]).toEqual([200, "public, max-age=60"]);
    const { token, id } = await newUser(lotus);
    const { payload } = await jwtVerify(token, createLocalJWKSet(body), { issuer: "lotus", audience: "lotus" });
    expect(payload.sub).toBe(id);
  });

  it("returns public members of keys that are accepted, and nothing else of the file", async () => {
    const file = lotus.manifests.functions.get("profile-jwks")?.JWKS_FILE ?? "";
    const { keys } = JSON.parse(await readFile(file, "utf8"));
    const now = Math.floor(Date.now() / 1000);
    const ends = TOKEN_SECONDS + KEY_OVERLAP_SECONDS;
    const secrets = { ...keys[0], d: "c2VjcmV0", note: "x" };
    await writeFile(
      file,
      JSON.stringify({
        keys: [
          { ...secrets, kid: "signs" },
          { ...secrets, kid: "retired", retiredAt: now - ends + 60 },
          { ...secrets, kid: "ended", retiredAt: now - ends },
          { ...secrets, kid: "ended long ago", retiredAt: 1 },
        ],
        more: 1,
      }),
    );
    const { body } = await call(lotus, "GET /profile/jwks");
    expect(Object.keys(body)).toEqual(["keys"]);
    expect(body.keys.map(({ kid }: { kid: string }) => kid)).toEqual(["signs", "retired"]);
    for (const key of body.keys) expect(Object.keys(key).sort()).toEqual(["alg", "crv", "kid", "kty", "use", "x"]);
  });
});
