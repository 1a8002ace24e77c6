import { describe, expect, it } from "vitest";
import { SCRAM_ITERATIONS_MAX } from "./limits.ts";
import { scramProof } from "./scram.ts";

/** The example of RFC 7677, section 3. */
const NONCE = "rOprNGfwEbeRWgbNEkqO";
const SERVER_FIRST = `r=${NONCE}%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096`;

describe("the proof of a password", () => {
  it("is equal for both forms of an accented letter", async () => {
    const composed = await scramProof(NONCE, "caf\u00e9", SERVER_FIRST);
    expect(await scramProof(NONCE, "cafe\u0301", SERVER_FIRST)).toEqual(composed);
    expect(composed.response).toMatch(/^c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj\)hNlF\$k0,p=.{43}=$/);
  });

  it.each([
    ["another nonce", SERVER_FIRST.replace("r=r", "r=x")],
    ["no server nonce", `r=${NONCE},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096`],
    ["no salt", `r=${NONCE}abc,i=4096`],
    ["no iterations", `r=${NONCE}abc,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=0`],
    ["an error", "e=other-error"],
  ])("is refused to a server that sends %s", async (_, serverFirst) => {
    await expect(scramProof(NONCE, "pencil", serverFirst)).rejects.toThrow("broke the SCRAM protocol");
  });

  it("is refused to a server that asks for too many iterations", async () => {
    const many = SERVER_FIRST.replace("i=4096", `i=${SCRAM_ITERATIONS_MAX + 1}`);
    await expect(scramProof(NONCE, "pencil", many)).rejects.toThrow(
      `asks for ${SCRAM_ITERATIONS_MAX + 1} SCRAM iterations; at most ${SCRAM_ITERATIONS_MAX} are accepted`,
    );
  });
});
