import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { connectTo } from "./client.ts";
import { checkBudget, clusterBudget, connectionsOf, readBudget, writeBudget } from "./connections.ts";

let client: Awaited<ReturnType<typeof connectTo>>;
beforeAll(async () => {
  client = await connectTo(inject("templateUrl").replace(/\/lotus$/, "/postgres"));
});
afterAll(() => client.end());

describe("the connection budget", () => {
  it("adds up functions, pods, connections, the revisions of a rollout, and jobs", () => {
    expect(connectionsOf(clusterBudget(16, 3, 4))).toBe(16 * 3 * 4 * 2 + 12);
    expect(readBudget(writeBudget(clusterBudget(16, 3, 4)))).toEqual(clusterBudget(16, 3, 4));
    expect(readBudget("16x3")).toBeUndefined();
  });

  it("is accepted by a server that allows as many, and refused with the arithmetic by one that does not", async () => {
    const { rows } = await client.query<{ most: number }>(
      "select current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int as most",
    );
    const most = rows[0]?.most ?? 0;
    await checkBudget(client, { functions: most - 12, pods: 1, pool: 1, revisions: 1 });
    await expect(checkBudget(client, { functions: most - 11, pods: 1, pool: 1, revisions: 1 })).rejects.toThrow(
      `= ${most + 1} connections. The server allows ${most} (max_connections`,
    );
    await expect(checkBudget(client, clusterBudget(16, 5, 4))).rejects.toThrow(
      "16 functions × 5 pods × 4 connections × 2 revisions + 12 for jobs = 652 connections",
    );
  });

  it("proposes limits that the same server accepts", async () => {
    const refused = await checkBudget(client, clusterBudget(16, 50, 50)).catch((error: Error) => error.message);
    const [, pods, pool] = /--pods (\d+) --pool (\d+)/.exec(String(refused)) ?? [];
    await checkBudget(client, clusterBudget(16, Number(pods), Number(pool)));
  });
});
