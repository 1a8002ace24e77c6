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
    ["Each file of its own kind has one.", "a riddle"],
    ["The pod runs the image as it is built.", "a riddle"],
    ["It cannot be told how to listen.", "a riddle"],
    ["What happens when Kafka stops is below.", "a clause is the subject"],
    ["Who reads this knows it.", "a clause is the subject"],
    ["That which fails is repeated.", "a clause is the subject"],
    ["Neither the relay nor the trigger waits.", "inverted order"],
    ["Those of a topic are read in order.", "inverted order"],
    ["The call failed: nothing was changed.", "a negative pronoun"],
    ["None while the database is unavailable.", "a negative pronoun"],
    ["There is no such order here.", "is no …"],
    ["It returns texts that are no numbers.", "is no …"],
    ["We publish the event.", "reference text has no we"],
    ["The sink buries the event.", "a private word"],
  ])("finds: %s", (sentence, rule) => {
    expect(rulesOf("a.md", sentence)).toEqual([rule]);
    expect(rulesOf("a.ts", `/** ${sentence} */\nexport const a = 1; // ${sentence}\n`)).toEqual([rule, rule]);
    expect(rulesOf("a.sql", `-- ${sentence}\nselect 1;\n`)).toEqual([rule]);
    expect(rulesOf("a.ts", `throw new Error("${sentence}");\n`)).toEqual([rule]);
  });

  it.each([
    ["a.ts", `const text = \`\n  \${list.map((a) => \`\${a}: "\`").join()}\n\n  The event is told to nobody.\`;\n`, 4],
    ["a.ts", 'const found = /["`]/.test(a); // Nothing was changed.\n', 1],
    ["a.tsx", "<p>\n  Each call has a page\n  of its own here.\n</p>\n", 2],
    ["a.css", "a {\n  color: red; /* as it is printed */\n}\n", 2],
    ["a.sql", "select 1;\nraise 'there is no such event %', id;\n", 2],
    ["a.json", '{\n  "description": "Nothing was withdrawn."\n}\n', 2],
    ["a.yaml", "a: 1\nlabel: What you have seen\n", 2],
    ["Dockerfile", "FROM a\n# Nothing is needed here.\n", 2],
  ])("finds a text in %s: %j", (file, text, line) => {
    expect(checkProse(file, text).findings).toMatchObject([{ file, line }]);
  });

  it.each([
    "What does the relay do?",
    "What happens?",
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
