import { describe, expect, it } from "vitest";
import { checkProse } from "./prose.ts";

const rulesOf = (file: string, text: string) => checkProse(file, text).findings.map(({ rule }) => rule.split(":")[0]);

describe("the prose check", () => {
  it.each([
    ["What is not settled stays in the outbox.", "a clause is the subject"],
    ["Whoever reads sees the effect.", "a clause is the subject"],
    ["Of the sentence, the first word counts.", "inverted order"],
    ["So neither waits for the other.", "inverted order"],
    ["It is an event that nobody awaits.", "a negative pronoun"],
    ["The user is told of each outcome.", "a riddle"],
    ["Each function has a file of its own.", "a riddle"],
    ["We publish the event.", "reference text has no we"],
    ["The sink buries the event.", "a private word"],
  ])("finds: %s", (sentence, rule) => {
    expect(rulesOf("a.md", sentence)).toEqual([rule]);
    expect(rulesOf("a.ts", `/** ${sentence} */\nexport const a = 1; // ${sentence}\n`)).toEqual([rule, rule]);
    expect(rulesOf("a.sql", `-- ${sentence}\nselect 1;\n`)).toEqual([rule]);
    expect(rulesOf("a.ts", `throw new Error("${sentence}");\n`)).toEqual([rule]);
  });

  it.each([
    "What does the relay do?",
    "`account-not-open` means that no account exists for this user.",
    "The relay publishes the row again. Each effect has the id of its event.",
    "Run `what is told nobody` to see the list.",
    "| what | what happens |",
  ])("accepts: %s", (sentence) => {
    expect(rulesOf("a.md", sentence)).toEqual([]);
  });

  it("names the line of the passage and ignores code in fences", () => {
    const { findings } = checkProse("a.md", "# Title\n\n```sh\nnobody knows\n```\n\nNobody knows it.\n");
    expect(findings).toMatchObject([{ file: "a.md", line: 7 }]);
  });

  it("finds a sentence with too many words", () => {
    expect(rulesOf("a.md", `The relay ${"very ".repeat(40)}often runs.`)).toEqual([
      "a sentence has more than 40 words",
    ]);
  });
});
