import { once } from "node:events";
import { createServer } from "node:http";
import { afterEach, beforeEach, expect, it, vi } from "vitest";

beforeEach(() => {
  vi.doMock("#kernel/limits", async (original) => ({
    ...(await original<object>()),
    DRAIN_REQUESTS_MILLISECONDS_MAX: 50,
  }));
  vi.resetModules();
});
afterEach(() => {
  vi.doUnmock("#kernel/limits");
});

it("stops although a request receives no answer", async () => {
  const { listen } = await import("./gateway.ts");
  const server = createServer();
  const { port, stop } = await listen(server, 0, "127.0.0.1");
  const answer = fetch(`http://127.0.0.1:${port}`).catch((error: Error) => error.message);
  await once(server, "request");
  await stop();
  expect(await answer).toBe("fetch failed");
});
