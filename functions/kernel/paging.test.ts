import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { newUser, settled, startTestLotus, type TestLotus, type TestUser } from "../../scripts/testing/lotus.ts";
import { CURSOR_LENGTH_MAX } from "./limits.ts";

const ROWS = 12;

let lotus: TestLotus;
let user: TestUser;
let stranger: TestUser;
beforeAll(async () => {
  lotus = await startTestLotus();
  [user, stranger] = [await newUser(lotus), await newUser(lotus, 500)];
  await stranger.call("POST /order/create", { body: { price: 1 } });
  await user.call("POST /billing/add-money?money=500");
  for (let price = 2; price <= ROWS; price++) await user.call("POST /order/create", { body: { price } });
  await user.call("POST /order/create", { body: { price: 1000 } });
  await settled(lotus);
});
afterAll(() => lotus.stop());

type Item = Record<string, unknown>;

const nextOf = (headers: Headers) => /^<([^>]+)>; rel="next"$/.exec(headers.get("link") ?? "")?.[1];

/** Every page, by the links; `between` runs after each. */
async function pages(of: TestUser, path: string, limit: number, between = async () => {}): Promise<Item[][]> {
  const seen: Item[][] = [];
  for (let next: string | undefined = `${path}?limit=${limit}`; next !== undefined; ) {
    const { status, headers, body } = await of.call(`GET ${next}`);
    expect(status).toBe(200);
    seen.push(body);
    next = nextOf(headers);
    await between();
  }
  return seen;
}

/** A forged cursor for a position. */
const forged = (position: unknown) => Buffer.from(JSON.stringify(position)).toString("base64url");

// Twelve rows of history: a deposit and eleven orders. The list of orders has a refused one, the notifications have the welcome.
describe.each([
  {
    path: "/billing/history",
    rows: ROWS,
    key: "number",
    value: "amount",
    newest: /^12$/,
    strangers: [1, 500],
    // Its cursor is the number of an entry. Each account counts its entries, so another user has the same numbers.
    strangersAfter: [1],
  },
  {
    path: "/order/list",
    rows: ROWS,
    key: "id",
    value: "price",
    newest: /^1000$/,
    strangers: [1],
    strangersAfter: [],
  },
  {
    path: "/notification",
    rows: ROWS + 2,
    key: "id",
    value: "message",
    newest: /Order cost amount 1000\./,
    strangers: [
      "Hello! You pay for order. Order cost amount 1. You balance after 499",
      "Hello! You add money to account. Amount 500. You balance after 500",
      "Hello! You are welcome. Your account is open",
    ],
    strangersAfter: [],
  },
])("GET $path", ({ path, rows, key, value, newest, strangers, strangersAfter }) => {
  const keys = (items: Item[]) => items.map((item) => item[key]);

  it("lists the newest first", async () => {
    const { body, headers } = await user.call(`GET ${path}`);
    expect(body).toHaveLength(rows);
    expect(nextOf(headers)).toBeUndefined();
    expect(String(body[0][value])).toMatch(newest);
    const times = body.map(({ createdAt }: { createdAt: string }) => Date.parse(createdAt));
    expect(times).toEqual([...times].sort((one, other) => other - one));
  });

  it("lists all rows, page by page, without a gap or a repetition", async () => {
    const whole = keys((await user.call(`GET ${path}`)).body);
    for (const limit of [1, 5, rows - 1, rows]) {
      const seen = await pages(user, path, limit);
      expect(seen.map((page) => page.length)).toEqual(
        Array.from({ length: Math.ceil(rows / limit) }, (_, page) => Math.min(limit, rows - page * limit)),
      );
      expect(keys(seen.flat())).toEqual(whole);
    }
  });

  it("lists the caller's rows only, also after a cursor of another user", async () => {
    const values = (items: Item[]) => items.map((item) => item[value]);
    const link = nextOf((await user.call(`GET ${path}?limit=1`)).headers);
    expect(values((await stranger.call(`GET ${path}`)).body)).toEqual(strangers);
    expect(values((await stranger.call(`GET ${link}`)).body)).toEqual(strangersAfter);
  });

  it.each(["0", "101", "-1", "x", "1.5", "", "1e1", "+1", "%00"])("refuses the limit %j", async (limit) => {
    const { status, body } = await user.call(`GET ${path}?limit=${limit}`);
    expect([status, body.code, body.errors?.[0]?.field]).toEqual([400, "invalid-request", "limit"]);
  });

  it("accepts a limit from 1 to 100", async () => {
    expect((await user.call(`GET ${path}?limit=1`)).body).toHaveLength(1);
    expect((await user.call(`GET ${path}?limit=100`)).body).toHaveLength(rows);
  });

  it("refuses an invented cursor", async () => {
    const uuid = "ffffffff-ffff-4fff-bfff-ffffffffffff";
    const cursors = [
      "",
      "x",
      "%00",
      ...[
        null,
        {},
        [],
        [null],
        [-1],
        [0],
        [1.5],
        [2 ** 53],
        ["1"],
        [`${uuid}'--`],
        ["2026-02-31 10:00:00+00", uuid],
      ].map(forged),
      forged(["x".repeat(300)]),
      Buffer.from(`${" ".repeat(CURSOR_LENGTH_MAX)}[1]`).toString("base64url"),
      Buffer.from(`${" ".repeat(CURSOR_LENGTH_MAX)}["${uuid}"]`).toString("base64url"),
      Buffer.from("[".repeat(140)).toString("base64url"),
    ];
    for (const cursor of cursors) {
      const { status, body } = await user.call(`GET ${path}?cursor=${cursor}`);
      expect([cursor, status, body.errors?.[0]?.field]).toEqual([cursor, 400, "cursor"]);
    }
  });

  it("keeps other parameters of the query out of the link", async () => {
    const { headers } = await user.call(`GET ${path}?limit=1&x=%0d%0aSet-Cookie:%20a=b&y=%3E;rel=%22next%22`);
    expect(headers.get("link")).toMatch(new RegExp(`^<${path}\\?limit=1&cursor=[\\w-]+>; rel="next"$`));
    expect(headers.get("set-cookie")).toBeNull();
  });

  it("lists the rows of the first moment once, also when rows are added meanwhile", async () => {
    const buyer = await newUser(lotus, 100);
    const buy = async () => void (await buyer.call("POST /order/create", { body: { price: "0.01" } }));
    for (let bought = 0; bought < 5; bought++) await buy();
    const whole = keys((await buyer.call(`GET ${path}`)).body);
    expect(keys((await pages(buyer, path, 2, buy)).flat())).toEqual(whole);
  });
});
