/** Compares the row type of each statement with the columns that Postgres describes. */
import { readdirSync } from "node:fs";
import type { Connection, QueryResult, Submittable } from "pg";
import { Client } from "pg";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { type StatementCall, statementCalls } from "../check/statements.ts";
import { ROOT } from "../project/paths.ts";
import { createTestDatabase, type TestDatabase } from "../testing/database.ts";

/** Postgres cuts a longer name of a prepared statement. */
const NAME_BYTES_MAX = 63;

/** A statement whose text and row type are known. */
interface Described extends Pick<StatementCall, "place" | "columns"> {
  readonly name: string;
  readonly text: string;
}

interface Batch {
  readonly file: string;
  readonly name: string;
  readonly many: string;
  readonly one: string;
}

/** The descriptions that the modules passed to `batched` when they were imported. */
const batches = vi.hoisted((): Batch[] => []);

vi.mock("#kernel/batch", () => ({
  batched: (description: Omit<Batch, "file">) => {
    // The stack names the file that calls batched(): line 0 is the message, line 1 this function.
    const caller = new Error().stack?.split("\n")[2] ?? "";
    batches.push({ ...description, file: /((?:functions|triggers)\/[\w/-]+\.ts)/.exec(caller)?.[1] ?? caller });
  },
}));

const files = ["functions", "triggers"].flatMap((folder) =>
  readdirSync(`${ROOT}/${folder}`, { recursive: true, encoding: "utf8" })
    .map((file) => `${folder}/${file.replaceAll("\\", "/")}`)
    .filter(
      (file) => file.endsWith(".ts") && !file.endsWith(".test.ts") && !/kernel\/(?:database|batch)\.ts$/.test(file),
    ),
);

const calls = statementCalls(files);
const described: Described[] = [];
let database: Client;
let copy: TestDatabase;

beforeAll(async () => {
  copy = await createTestDatabase();
  database = new Client({ connectionString: copy.url });
  await database.connect();
  for (const file of files) await import(`${ROOT}/${file}`);
  for (const { place, file, callee, name, text, columns } of calls) {
    if (callee === "query" && name !== undefined && text !== undefined) described.push({ place, name, text, columns });
    if (callee === "query") continue;
    for (const batch of batches.filter((candidate) => candidate.file === file)) {
      described.push({ place, name: batch.name, text: batch.one, columns });
      // A row of `many` names its call.
      const ofMany = new Map([...(columns ?? []), ["position", ["int4"]] as const]);
      described.push({ place, name: `${batch.name} (many)`, text: batch.many, columns: ofMany });
    }
  }
});
afterAll(async () => {
  await database.end();
  await copy.drop();
});

interface Field {
  readonly name: string;
  readonly dataTypeID: number;
}

/** Lets Postgres parse a statement and describe its columns, without running it. */
class Description implements Submittable {
  fields: readonly Field[] = [];
  readonly text: string;
  readonly done: Promise<readonly Field[]>;
  #resolve: (fields: readonly Field[]) => void = () => undefined;
  #reject: (error: Error) => void = () => undefined;

  constructor(text: string) {
    this.text = text;
    this.done = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
  }

  submit(connection: Connection): void {
    connection.parse({ name: "", text: this.text, types: [] }, true);
    connection.describe({ type: "S", name: "" }, true);
    connection.sync();
  }

  handleRowDescription({ fields }: Pick<QueryResult, "fields">): void {
    this.fields = fields;
  }

  handleReadyForQuery(): void {
    this.#resolve(this.fields);
  }

  handleError(error: Error): void {
    this.#reject(error);
  }
}

async function describeColumns(text: string): Promise<Map<string, string>> {
  const { done } = database.query(new Description(text));
  const fields = await done;
  const { rows } = await database.query<{ oid: number; name: string }>(
    "select oid::int4, typname as name from pg_type where oid = any($1::oid[])",
    [fields.map(({ dataTypeID }) => dataTypeID)],
  );
  const names = new Map(rows.map(({ oid, name }) => [oid, name]));
  return new Map(fields.map(({ name, dataTypeID }) => [name, names.get(dataTypeID) ?? String(dataTypeID)]));
}

/** Returns the differences between a row type and the columns of Postgres. */
function compare(declared: ReadonlyMap<string, readonly string[]>, actual: ReadonlyMap<string, string>): string[] {
  const missing = [...declared].flatMap(([column, types]) => {
    const type = actual.get(column);
    if (type === undefined) return [`the statement returns no column ${column}`];
    return types.includes(type)
      ? []
      : [`${column} is ${type}; its TypeScript type matches ${types.join(", ") || "no type"}`];
  });
  const unknown = [...actual.keys()].filter((column) => column !== "position" && !declared.has(column));
  return [...missing, ...unknown.map((column) => `the row type lacks the column ${column}`)];
}

describe("the statements of the functions", () => {
  it("have a constant text, or one that batched() receives", () => {
    const hidden = calls.filter(
      ({ callee, name, text }) => callee === "query" && (name === undefined || text === undefined),
    );
    expect(hidden.map(({ place }) => place)).toEqual([]);
    const unseen = calls.filter(
      ({ callee, file }) => callee === "batched" && !batches.some((batch) => batch.file === file),
    );
    expect(unseen.map(({ place }) => place)).toEqual([]);
    expect(described.length).toBeGreaterThanOrEqual(calls.length);
  });

  it("return the columns of their row types", async () => {
    const differences: string[] = [];
    for (const { place, name, text, columns } of described) {
      const actual = await describeColumns(text);
      if (columns === undefined) continue;
      differences.push(...compare(columns, actual).map((difference) => `${place} ${name}: ${difference}`));
    }
    expect(differences).toEqual([]);
  });

  it("have names that Postgres keeps apart: one text a name, and no name is cut", () => {
    const texts = new Map<string, string>();
    for (const { name, text } of described) {
      expect(Buffer.byteLength(name), name).toBeLessThanOrEqual(NAME_BYTES_MAX);
      expect(texts.get(name) ?? text, name).toBe(text);
      texts.set(name, text);
    }
  });
});
