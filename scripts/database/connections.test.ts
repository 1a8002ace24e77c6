import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { connectTo } from "./client.ts";
import { checkBudget, connectionBudget, connectionsOf, readBudget, writeBudget } from "./connections.ts";

let client: Awaited<ReturnType<typeof connectTo>>;
beforeAll(async () => {
  client = await connectTo(inject("templateUrl").replace(/\/lotus$/, "/postgres"));
});
afterAll(() => client.end());

describe("the connection budget", () => {
  it("adds up pods, connections, the revisions of a rollout, and jobs", () => {
    const budget = connectionBudget([
      { pods: 3, pool: 4 },
      { pods: 7, pool: 2 },
    ]);
    expect(connectionsOf(budget)).toBe((3 * 4 + 7 * 2) * 2 + 12);
    expect(readBudget(writeBudget(budget))).toEqual(budget);
    expect(readBudget("16x3x4")).toBeUndefined();
  });

  it("is accepted by a server that allows as many, and refused with the arithmetic by one that does not", async () => {
    const { rows } = await client.query<{ most: number }>(
      "select current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int as most",
    );
    const most = rows[0]?.most ?? 0;
    await checkBudget(client, { connections: most - 12, revisions: 1 });
    await expect(checkBudget(client, { connections: most - 11, revisions: 1 })).rejects.toThrow(
      `= ${most + 1} connections. The server allows ${most} (max_connections`,
    );
    await expect(checkBudget(client, { connections: 320, revisions: 2 })).rejects.toThrow(
      "320 connections × 2 revisions during a rollout + 12 for jobs = 652 connections",
    );
  });

  it("proposes a sum that the same server accepts", async () => {
    const refused = await checkBudget(client, { connections: 9_999, revisions: 2 }).catch(
      (error: Error) => error.message,
    );
    const [, connections] = /to at most (\d+) together/.exec(String(refused)) ?? [];
    await checkBudget(client, { connections: Number(connections), revisions: 2 });
  });

  it("is compared with the limit of the database, when that is lower", async () => {
    const name = `budget_${process.pid}`;
    await client.query(`create database ${name} connection limit 50`);
    const limited = await connectTo(inject("templateUrl").replace(/\/lotus$/, `/${name}`));
    try {
      await checkBudget(limited, { connections: 38, revisions: 1 });
      await expect(checkBudget(limited, { connections: 39, revisions: 1 })).rejects.toThrow(
        /The server allows 50 .*; the database at most 50\)\. Raise the connection limit of the database to 51, lower/,
      );
    } finally {
      await limited.end();
      await client.query(`drop database ${name}`);
    }
  });
});
