import { expect, it, vi } from "vitest";
import { joinGroup } from "./group-member.ts";

const consumer = vi.hoisted(() => ({ connect: vi.fn(), subscribe: vi.fn(), run: vi.fn(), disconnect: vi.fn() }));
vi.mock("#kernel/kafka", () => ({ kafkaClient: async () => ({ consumer: () => consumer }) }));

it.each(["subscribe", "run"] as const)("a member whose %s fails disconnects", async (call) => {
  for (const part of Object.values(consumer)) part.mockReset().mockResolvedValue(undefined);
  consumer[call].mockRejectedValue(new Error("refused"));
  await expect(joinGroup(["broker:9092"], "group", ["topic"], false)).rejects.toThrow("refused");
  expect(consumer.disconnect).toHaveBeenCalledOnce();
});
