import { describe, expect, it } from "vitest";
import { explore, isFinal, type Sabotage, START, type State, stepsOf, violationOf } from "./protocol.ts";

describe("the outbox protocol", () => {
  it("keeps I4 and I7 in every interleaving of two events, two consumers and three faults", () => {
    const { states, finalStates, counterexample } = explore();
    expect(counterexample).toBeUndefined();
    expect(finalStates).toBeGreaterThan(0);
    // A model without most of its steps would pass too.
    expect(states).toBeGreaterThan(30_000);
  });

  it("drains from every reachable state without further faults", () => {
    const seen = new Set<string>();
    const rest = (state: State, steps: number): State => {
      if (isFinal(state)) return state;
      const step = stepsOf(state).find(({ kind }) => kind === "progress");
      if (step === undefined || steps > 100) throw new Error(`No rest after ${steps} steps: ${JSON.stringify(state)}`);
      return rest(step.next, steps + 1);
    };
    let frontier = [START];
    for (let depth = 0; depth < 7; depth++) {
      frontier = frontier
        .flatMap((state) => stepsOf(state).map(({ next }) => next))
        .filter((state) => !seen.has(JSON.stringify(state)) && seen.add(JSON.stringify(state)));
      for (const state of frontier) expect(violationOf(rest(state, 0))).toBeUndefined();
    }
    expect(seen.size).toBeGreaterThan(2_000);
  });

  it.each<[Sabotage, string, string[]]>([
    [
      "no-dedupe",
      "I4: event 0 has 2 effects at consumer 0",
      [
        "commit event 0 and answer",
        "publish event 0",
        "deliver event 0 to consumer 0 and lose the acknowledgement",
        "deliver event 0 to consumer 0",
      ],
    ],
    [
      "no-outbox-row",
      "I4: event 0 has neither an effect nor a dead letter at consumer 0",
      ["commit event 0 and crash before the answer", "commit event 1 and crash before the answer"],
    ],
    [
      "relay-never-runs",
      "I7: the outbox cannot drain",
      ["commit event 0 and crash before the answer", "commit event 1 and crash before the answer"],
    ],
    [
      "answer-before-commit",
      "I4: event 0 has neither an effect nor a dead letter at consumer 0",
      ["answer event 0 and crash before the commit", "answer event 1 and crash before the commit"],
    ],
    [
      "dead-letter-dropped",
      "I4: event 1 has neither an effect nor a dead letter at consumer 1",
      [
        "commit event 0 and crash before the answer",
        "a reader settles event 0 of consumer 0",
        "a reader settles event 0 of consumer 1",
        "commit event 1 and answer",
        "publish event 1",
        "deliver event 1 to consumer 0",
        "deliver event 1 to consumer 1",
      ],
    ],
    [
      "settle-before-effect",
      "I4: event 1 has neither an effect nor a dead letter at consumer 1",
      [
        "commit event 0 and crash before the answer",
        "a reader settles event 0 of consumer 0",
        "a reader settles event 0 of consumer 1",
        "commit event 1 and answer",
        "publish event 1",
        "deliver event 1 to consumer 0",
        "settle event 1 for consumer 1 and crash before the effect",
      ],
    ],
    [
      "read-does-not-settle",
      "I4: a reader did not see the effect of the reader's own change",
      ["commit event 0 and answer", "a reader looks at event 0 of consumer 0"],
    ],
  ])("has a shortest counterexample with the sabotage %s", (sabotage, violation, trace) => {
    expect(explore(sabotage).counterexample).toEqual({ violation, trace });
  });
});
