/**
 * The outbox protocol as a state machine. Each state is explored over every interleaving of the steps, with a limited number of
 * faults. docs/events.md describes the same protocol in words; protocol.test.ts explores it.
 */

/** Two events of one topic, and two consumers that each event waits for. */
const EVENTS = [0, 1] as const;
const CONSUMERS = [0, 1] as const;
/** Faults in one trace. Three suffice for a crash, a lost record and a duplicate in one trace. */
const FAULTS_MAX = 3;
/** Copies of one record that wait for one consumer. */
const COPIES_MAX = 2;
/** Publications of one event before the relay moves it to the dead letters. More than the faults of a trace, as in the relay. */
const ATTEMPTS_MAX = 4;
/** The event and the consumer that refuses its data until a developer corrects the consumer. */
const POISON = { event: 1, consumer: 1 } as const;

/** A fault of the code or of the SQL. The exploration finds a counterexample for each. */
export type Sabotage =
  | "no-dedupe"
  | "no-outbox-row"
  | "relay-never-runs"
  | "dead-letter-dropped"
  | "answer-before-commit"
  | "settle-before-effect"
  | "read-does-not-settle";

interface EventState {
  /** The client has received its answer, or may have. */
  readonly answered: boolean;
  /** The change is committed. */
  readonly committed: boolean;
  /** The function's process still has to publish the event. */
  readonly inMemory: boolean;
  /** The outbox row's `awaiting`, one entry a consumer. Both false: the row does not exist. */
  readonly awaiting: readonly [boolean, boolean];
  readonly attempts: number;
  /** Records that wait for each consumer. */
  readonly copies: readonly [number, number];
  /** Effects that each consumer has made. More than one is an error. */
  readonly effects: readonly [number, number];
  readonly deadLetters: readonly [boolean, boolean];
}

export interface State {
  readonly events: readonly [EventState, EventState];
  readonly faults: number;
  /** A developer has corrected the consumer that refused the poison event. */
  readonly corrected: boolean;
  /** A reader saw a state without an effect that the reader's own change asked for. */
  readonly staleRead: boolean;
}

/** One step of the protocol: its name, such as `deliver event 0 to consumer 1`, and the state that follows. */
export interface Step {
  readonly name: string;
  /** A fault is limited in number. A choice, such as a read, may never happen. Progress happens sooner or later. */
  readonly kind: "progress" | "choice" | "fault";
  readonly next: State;
}

const NEW_EVENT: EventState = {
  answered: false,
  committed: false,
  inMemory: false,
  awaiting: [false, false],
  attempts: 0,
  copies: [0, 0],
  effects: [0, 0],
  deadLetters: [false, false],
};

export const START: State = { events: [NEW_EVENT, NEW_EVENT], faults: 0, corrected: false, staleRead: false };

type Pair<T> = readonly [T, T];
const replaced = <T>(pair: Pair<T>, index: number, value: T): Pair<T> =>
  index === 0 ? [value, pair[1]] : [pair[0], value];
const hasRow = ({ awaiting }: EventState) => awaiting[0] || awaiting[1];
const published = ({ copies }: EventState): Pair<number> => [
  Math.min(copies[0] + 1, COPIES_MAX),
  Math.min(copies[1] + 1, COPIES_MAX),
];

/** The consumer's transaction: the effect, whose primary key is the event's id, and the settle of the outbox row. */
function handle(event: EventState, consumer: number, sabotage: Sabotage | undefined): EventState {
  const known = event.effects[consumer] ?? 0;
  const effects = sabotage === "no-dedupe" ? known + 1 : Math.max(known, 1);
  return {
    ...event,
    effects: replaced(event.effects, consumer, Math.min(effects, 2)),
    awaiting: replaced(event.awaiting, consumer, false),
  };
}

/** The consumer's transaction for an event that it can never handle. */
function moveToDeadLetters(event: EventState, consumer: number, sabotage: Sabotage | undefined): EventState {
  const done = (event.effects[consumer] ?? 0) > 0;
  return {
    ...event,
    deadLetters: done ? event.deadLetters : replaced(event.deadLetters, consumer, sabotage !== "dead-letter-dropped"),
    awaiting: replaced(event.awaiting, consumer, false),
  };
}

/** Returns every step that is possible in a state. */
export function stepsOf(state: State, sabotage?: Sabotage): Step[] {
  const steps: Step[] = [];
  const faultsLeft = state.faults < FAULTS_MAX;
  const add = (name: string, index: number, event: EventState) =>
    steps.push({ name, kind: "progress", next: { ...state, events: replaced(state.events, index, event) } });
  const addChoice = (name: string, index: number, event: EventState, more: Partial<State> = {}) =>
    steps.push({ name, kind: "choice", next: { ...state, ...more, events: replaced(state.events, index, event) } });
  const addFault = (name: string, index: number, event: EventState) =>
    steps.push({
      name,
      kind: "fault",
      next: { ...state, faults: state.faults + 1, events: replaced(state.events, index, event) },
    });

  for (const index of EVENTS) {
    const event = state.events[index];
    if (!event.committed && !(event.answered && sabotage === "answer-before-commit")) {
      const row: Pair<boolean> = sabotage === "no-outbox-row" ? [false, false] : [true, true];
      const committed = { ...event, answered: true, committed: true, inMemory: true, awaiting: row };
      add(`commit event ${index} and answer`, index, committed);
      if (faultsLeft) {
        addFault(`commit event ${index} and crash before the answer`, index, { ...committed, inMemory: false });
        if (sabotage === "answer-before-commit")
          addFault(`answer event ${index} and crash before the commit`, index, { ...event, answered: true });
      }
    }
    if (event.inMemory) {
      add(`publish event ${index}`, index, { ...event, inMemory: false, copies: published(event) });
      if (faultsLeft) {
        addFault(`crash before the publication of event ${index}`, index, { ...event, inMemory: false });
        addFault(`crash after the publication of event ${index}, unnoticed`, index, {
          ...event,
          copies: published(event),
        });
      }
    }
    // The relay takes rows that have waited: no process still has to publish them, and no record is on its way.
    if (
      hasRow(event) &&
      !event.inMemory &&
      event.copies[0] + event.copies[1] === 0 &&
      sabotage !== "relay-never-runs"
    ) {
      if (event.attempts < ATTEMPTS_MAX)
        add(`the relay publishes event ${index}`, index, {
          ...event,
          attempts: event.attempts + 1,
          copies: published(event),
        });
      else {
        const moved = CONSUMERS.filter((consumer) => event.awaiting[consumer]).reduce(
          (before: EventState, consumer) => moveToDeadLetters(before, consumer, sabotage),
          event,
        );
        add(`the relay moves event ${index} to the dead letters`, index, moved);
      }
    }
    for (const consumer of CONSUMERS) {
      const refuses = index === POISON.event && consumer === POISON.consumer && !state.corrected;
      const copies = event.copies[consumer];
      const handled = refuses ? moveToDeadLetters(event, consumer, sabotage) : handle(event, consumer, sabotage);
      if (copies > 0) {
        const acknowledged = replaced(event.copies, consumer, copies - 1);
        add(`deliver event ${index} to consumer ${consumer}`, index, { ...handled, copies: acknowledged });
        if (faultsLeft) {
          addFault(`deliver event ${index} to consumer ${consumer} and lose the acknowledgement`, index, handled);
          addFault(`lose a record of event ${index} for consumer ${consumer}`, index, {
            ...event,
            copies: acknowledged,
          });
          if (copies < COPIES_MAX)
            addFault(`duplicate a record of event ${index} for consumer ${consumer}`, index, {
              ...event,
              copies: replaced(event.copies, consumer, copies + 1),
            });
          if (sabotage === "settle-before-effect")
            addFault(`settle event ${index} for consumer ${consumer} and crash before the effect`, index, {
              ...event,
              copies: acknowledged,
              awaiting: replaced(event.awaiting, consumer, false),
            });
        }
      }
      if (event.awaiting[consumer] && !refuses) {
        if (sabotage === "read-does-not-settle")
          addChoice(`a reader looks at event ${index} of consumer ${consumer}`, index, event, { staleRead: true });
        else
          addChoice(
            `a reader settles event ${index} of consumer ${consumer}`,
            index,
            handle(event, consumer, sabotage),
          );
      }
      if (event.deadLetters[consumer] && !refuses)
        addChoice(`replay event ${index} for consumer ${consumer}`, index, {
          ...event,
          attempts: 0,
          deadLetters: replaced(event.deadLetters, consumer, false),
          awaiting: replaced(event.awaiting, consumer, true),
        });
    }
  }
  if (!state.corrected)
    steps.push({ name: "a developer corrects the consumer", kind: "choice", next: { ...state, corrected: true } });
  return steps;
}

/** Whether the system rests: each event is committed, and no row, record or publication remains. */
export function isFinal({ events }: State): boolean {
  return events.every(
    (event) => event.answered && !event.inMemory && !hasRow(event) && event.copies[0] + event.copies[1] === 0,
  );
}

/** Returns the invariant that a state violates. I4: each outcome has exactly one effect. I7: the outbox drains. */
export function violationOf(state: State): string | undefined {
  for (const [index, event] of state.events.entries()) {
    for (const consumer of CONSUMERS) {
      const effects = event.effects[consumer];
      if (effects > 1) return `I4: event ${index} has ${effects} effects at consumer ${consumer}`;
      if (event.deadLetters[consumer] && !(index === POISON.event && consumer === POISON.consumer))
        return `I7: event ${index} became a dead letter at consumer ${consumer}, which can handle it`;
      if (isFinal(state) && event.answered && effects === 0 && !event.deadLetters[consumer])
        return `I4: event ${index} has neither an effect nor a dead letter at consumer ${consumer}`;
    }
  }
  if (state.staleRead) return "I4: a reader did not see the effect of the reader's own change";
  return undefined;
}

export interface Exploration {
  /** The number of different states. */
  readonly states: number;
  /** The number of different states in which the system rests. */
  readonly finalStates: number;
  /** The shortest trace to a violation. */
  readonly counterexample: { readonly violation: string; readonly trace: readonly string[] } | undefined;
}

const keyOf = ({ events, faults, corrected, staleRead }: State) =>
  `${events
    .map(({ answered, committed, inMemory, awaiting, attempts, copies, effects, deadLetters }) =>
      [
        +answered,
        +committed,
        +inMemory,
        +awaiting[0],
        +awaiting[1],
        attempts,
        ...copies,
        ...effects,
        +deadLetters[0],
        +deadLetters[1],
      ].join(""),
    )
    .join("-")}-${faults}${+corrected}${+staleRead}`;

/**
 * Explores every interleaving, nearest states first, and stops at the first violation. A state that is not final and
 * has no step of progress violates I7: the outbox cannot drain.
 */
export function explore(sabotage?: Sabotage): Exploration {
  const origins = new Map<string, { readonly from: string; readonly name: string } | undefined>();
  const traceTo = (key: string): string[] => {
    const names: string[] = [];
    for (let at = origins.get(key); at !== undefined; at = origins.get(at.from)) names.unshift(at.name);
    return names;
  };
  origins.set(keyOf(START), undefined);
  let frontier: State[] = [START];
  let finalStates = 0;
  while (frontier.length > 0) {
    const found: State[] = [];
    for (const state of frontier) {
      const from = keyOf(state);
      const steps = stepsOf(state, sabotage);
      const isStuck = !isFinal(state) && !steps.some(({ kind }) => kind === "progress");
      const violation = violationOf(state) ?? (isStuck ? "I7: the outbox cannot drain" : undefined);
      if (violation !== undefined)
        return { states: origins.size, finalStates, counterexample: { violation, trace: traceTo(from) } };
      if (isFinal(state)) finalStates++;
      for (const { name, next } of steps) {
        const key = keyOf(next);
        if (origins.has(key)) continue;
        origins.set(key, { from, name });
        found.push(next);
      }
    }
    frontier = found;
  }
  return { states: origins.size, finalStates, counterexample: undefined };
}
