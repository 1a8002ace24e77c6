import { describe, expect, it } from "vitest";
import { functionFiles, functionOf } from "./functions.ts";

const SERVED = "export default endpoint({});\n";

describe("the file of a function", () => {
  it("is its name and its service", () => {
    expect(functionOf("functions/order/pay.ts", SERVED)).toEqual({
      name: "order-pay",
      service: "order",
      file: "functions/order/pay.ts",
    });
    expect(functionOf("functions/notification/index.ts", SERVED)?.name).toBe("notification");
    expect(functionOf("functions/order/rules.ts", "export const x = 1;\n")).toBeUndefined();
  });

  it.each([
    ["functions/order/top10.ts", SERVED, "the letters a to z"],
    ["functions/gift-cards/buy.ts", SERVED, "the letters a to z"],
    [
      "functions/order/admin/list.ts",
      SERVED,
      "a function is a file of a service folder, such as functions/order/list.ts",
    ],
    ["functions/lonely.ts", SERVED, "a function is a file of a service folder"],
    ["functions/order/cheapest.ts", "export const cheapest = endpoint({});\n", "it has no default export"],
    ["triggers/order/ship.ts", "const x = 1;\n", "it has no default export. Write: export default subscriber("],
  ])("%s is refused with an error message", (file, text, sentence) => {
    expect(() => functionOf(file, text)).toThrow(sentence);
    expect(() => functionOf(file, text)).toThrow(`${file} is not served`);
  });

  it("exists for every function of the project, each name once", async () => {
    const names = (await functionFiles()).map(({ name }) => name);
    expect(names).toContain("order-pay");
    expect(new Set(names).size).toBe(names.length);
  });
});
