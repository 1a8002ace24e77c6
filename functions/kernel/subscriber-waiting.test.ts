/** The errors of the database that a trigger waits for, and batches of events. The database is a mock: a test cannot cause most errors. */
import { randomUUID } from "node:crypto";
import * as v from "valibot";
import { describe, expect, it, vi } from "vitest";
import { subscriber, toCloudEventFunction } from "./subscriber.ts";

vi.mock("./database.ts", () => ({ query: async () => [{ id: "00000000-0000-4000-8000-000000000001" }] }));
vi.mock("./limits.ts", async (importOriginal) => ({
  ...(await importOriginal<typeof import("./limits.ts")>()),
  DATABASE_AWAY_STEP_MILLISECONDS: 1,
}));

/** Classes of SQLSTATE, with a code of each: PostgreSQL manual, Appendix A. */
const WAITED_FOR = {
  "08006": "the connection failed",
  "0A000": "the cached plan must not change",
  "0B000": "no transaction can begin",
  "25006": "the server is read-only",
  "25P03": "the session was idle in a transaction for too long",
  "26000": "the prepared statement is unknown",
  "28P01": "the password is wrong",
  "2D000": "the transaction cannot end",
  "34000": "the cursor is unknown",
  "3B001": "the savepoint is unknown",
  "3D000": "the database is unknown",
  "40001": "the transactions conflict",
  "40P01": "the transactions deadlock",
  "53100": "the disk is full",
  "53200": "the memory is full",
  "53300": "too many connections are open",
  "54000": "a limit of the server is exceeded",
  "55006": "the object is in use",
  "55P03": "the row is locked",
  "57014": "the statement was cancelled",
  "57P01": "the server shuts down",
  "57P03": "the server starts",
  "58030": "the disk fails",
  F0000: "the configuration is wrong",
  HV000: "a foreign server fails",
  XX000: "the server has a defect",
  XX001: "the data is corrupted",
} as const;
const ABOUT_THE_EVENT = {
  "21000": "a subquery returns several rows",
  "22001": "a text is too long",
  "22P02": "a text is not a number",
  "23502": "a value is missing",
  "23505": "a key is taken",
  "23514": "a check fails",
  "42501": "the role may not do this",
  "42P01": "the table is unknown",
  "44000": "a check of a view fails",
  P0001: "a function raises an error",
} as const;

/** Handles one event whose first attempt fails with this error. Returns the attempts, and whether the event was handled. */
async function attemptsWith(error: unknown): Promise<[attempts: number, handled: boolean]> {
  vi.spyOn(process.stdout, "write").mockReturnValue(true);
  let attempts = 0;
  const description = subscriber({
    topic: "sold",
    data: v.object({}),
    async handle() {
      if (++attempts === 1) throw error;
    },
  });
  const event = { specversion: "1.0", id: randomUUID(), source: "/shop", type: "sold", data: {} } as const;
  const handled = await toCloudEventFunction(
    "test-waiting",
    description,
  )(event).then(
    () => true,
    () => false,
  );
  vi.restoreAllMocks();
  return [attempts, handled];
}

describe("a trigger", () => {
  it.each(Object.entries(WAITED_FOR))("waits for a database with the error %s: %s", async (code) => {
    expect(await attemptsWith(Object.assign(new Error("a failure"), { code }))).toEqual([2, true]);
  });

  it.each(Object.entries(ABOUT_THE_EVENT))("fails at once with the error %s: %s", async (code) => {
    expect(await attemptsWith(Object.assign(new Error("a failure"), { code }))).toEqual([1, false]);
  });

  it("fails at once with an error of the function itself, and with one of Node", async () => {
    expect(await attemptsWith(new TypeError("a defect"))).toEqual([1, false]);
    expect(await attemptsWith(Object.assign(new Error("no file"), { code: "ENOENT" }))).toEqual([1, false]);
  });

  it("handles the events of a batch at the same time, and fails when one of them fails", async () => {
    vi.spyOn(process.stdout, "write").mockReturnValue(true);
    let begun = 0;
    let allHaveBegun = () => {};
    const together = new Promise<void>((resolve) => {
      allHaveBegun = resolve;
    });
    const description = subscriber({
      topic: "sold",
      data: v.object({ fails: v.boolean() }),
      async handle({ data }) {
        if (++begun === 3) allHaveBegun();
        await together;
        if (data.fails) throw new TypeError("a defect");
      },
    });
    const events = [false, true, false].map((fails) => ({
      specversion: "1.0",
      id: randomUUID(),
      source: "/shop",
      type: "sold",
      data: { fails },
    }));
    const handle = toCloudEventFunction("test-waiting", description);
    await expect(handle(Buffer.from(JSON.stringify(events)))).rejects.toThrow("test-waiting failed: a defect");
    expect(begun).toBe(3);
    vi.restoreAllMocks();
  });
});
