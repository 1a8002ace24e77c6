import { once } from "node:events";
import { type AddressInfo, connect } from "node:net";
import * as v from "valibot";
import { afterEach, expect, it, vi } from "vitest";
import { eventually } from "../../scripts/testing/lotus.ts";
import { endpoint, ok } from "./endpoint.ts";
import { createFunctionServer } from "./server.ts";

const IN_FLIGHT_MAX = 2;
vi.mock("./limits.ts", async (importOriginal) => ({
  ...(await importOriginal<typeof import("./limits.ts")>()),
  REQUESTS_IN_FLIGHT_MAX: 2,
}));

const endings: (() => unknown)[] = [];
afterEach(async () => {
  for (const end of endings.splice(0).reverse()) await end();
});

it("refuses a request above the limit of a process before it receives its body, and serves again afterwards", async () => {
  const releases: (() => void)[] = [];
  const { server } = createFunctionServer(
    "slow-work",
    endpoint({
      method: "POST",
      caller: "anyone",
      summary: "Waits for its release.",
      body: v.object({}),
      answers: { 200: v.object({}) },
      async handle() {
        await new Promise<void>((resolve) => releases.push(resolve));
        return ok({});
      },
    }),
  );
  server.listen(0, "127.0.0.1");
  endings.push(() => server.close());
  endings.push(() => server.closeAllConnections());
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  const work = () =>
    fetch(`http://127.0.0.1:${port}/slow/work`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: "{}",
    });
  const accepted = Array.from({ length: IN_FLIGHT_MAX }, work);
  await eventually("the requests are in progress", () => releases.length === IN_FLIGHT_MAX);
  const socket = connect(port, "127.0.0.1");
  endings.push(() => socket.destroy());
  socket.write("POST /slow/work HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{");
  const [data] = (await once(socket, "data")) as [Buffer];
  expect(data.toString()).toMatch(/^HTTP\/1\.1 503 .*retry-after: 1\r\n.*"code":"unavailable"/s);
  for (const release of releases.splice(0)) release();
  expect((await Promise.all(accepted)).map(({ status }) => status)).toEqual([200, 200]);
  const again = work();
  await eventually("the request is in progress", () => releases.length === 1);
  releases[0]?.();
  expect((await again).status).toBe(200);
});
