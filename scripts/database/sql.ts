/** The SQL files of the services: which exist, their statements, and errors that name a file and a line. */
import { existsSync, readdirSync } from "node:fs";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { type Client, DatabaseError, escapeIdentifier } from "pg";
import { ROOT } from "../project/paths.ts";

/** The outbox and the dead letters. Other services' tables may refer to it. */
const FIRST_SERVICE = "events";
/** All functions and grants of a service. Every other file of the folder is a numbered migration. */
const FUNCTIONS_FILE = "functions.sql";
const NO_TRANSACTION = "-- lotus: no-transaction";
const STATEMENT_SHOWN_LENGTH_MAX = 200;

const schemaFolder = (service: string) => join(ROOT, "functions", service, "schema");

/** The services that have a database schema, `events` first. Each has one role. */
export const SERVICES: readonly string[] = readdirSync(join(ROOT, "functions"))
  .filter((service) => existsSync(schemaFolder(service)))
  .sort((one, other) => (one === FIRST_SERVICE ? -1 : other === FIRST_SERVICE ? 1 : one < other ? -1 : 1));

export interface SqlFile {
  readonly service: string;
  /** The name in the table of applied migrations, such as `order/001-orders`. */
  readonly name: string;
  /** Relative to the checkout. */
  readonly path: string;
  /** With the real names of the roles. */
  readonly text: string;
  /** False for a file whose first line is `-- lotus: no-transaction`. */
  readonly transaction: boolean;
}

export interface SqlFiles {
  /** Each service's migrations, in the order of their numbers. */
  readonly migrations: readonly SqlFile[];
  readonly functions: readonly SqlFile[];
}

/**
 * Reads every SQL file and replaces each placeholder `"lotus:<service>"` by the service's role.
 * @param roles role names by service
 * @throws {Error} when a file is not numbered or names a service that does not exist
 */
export async function readSqlFiles(roles: ReadonlyMap<string, string>): Promise<SqlFiles> {
  const migrations: SqlFile[] = [];
  const functions: SqlFile[] = [];
  for (const service of SERVICES) {
    for (const file of (await readdir(schemaFolder(service))).sort()) {
      const path = `functions/${service}/schema/${file}`;
      if (file !== FUNCTIONS_FILE && !/^\d{3}-[a-z0-9-]+\.sql$/.test(file))
        throw new Error(`${path} is neither ${FUNCTIONS_FILE} nor a numbered migration such as 002-prices.sql.`);
      const written = await readFile(join(schemaFolder(service), file), "utf8");
      const text = written.replace(/"lotus:([^"]*)"/g, (_, named: string) => {
        const role = roles.get(named);
        if (role === undefined)
          throw new Error(`${path} names the role of ${named}. The services with a schema are ${SERVICES.join(", ")}.`);
        return escapeIdentifier(role);
      });
      const read = {
        service,
        name: `${service}/${file.replace(/\.sql$/, "")}`,
        path,
        text,
        transaction: !written.startsWith(NO_TRANSACTION),
      };
      (file === FUNCTIONS_FILE ? functions : migrations).push(read);
    }
  }
  return { migrations, functions };
}

interface Statement {
  readonly text: string;
  /** The line of its first character in the file, from 1 on. */
  readonly line: number;
}

/** Comments, strings, quoted names and dollar-quoted bodies may contain a semicolon that does not end a statement. */
const QUOTED =
  /--[^\n]*|\/\*[\s\S]*?\*\/|\b[eE]'(?:[^'\\]|\\[\s\S]|'')*'|'(?:[^']|'')*'|"(?:[^"]|"")*"|\$([A-Za-z_][\w]*)?\$[\s\S]*?\$\1\$|;/g;

/** Splits a file into statements. Functions with `begin atomic` are not supported: their bodies contain bare semicolons. */
export function splitStatements(text: string): Statement[] {
  const statements: Statement[] = [];
  let begin = 0;
  const add = (end: number) => {
    const piece = text.slice(begin, end);
    const leading = /^(?:\s|--[^\n]*\n?|\/\*[\s\S]*?\*\/)*/.exec(piece)?.[0].length ?? 0;
    const statement = piece.slice(leading).trimEnd();
    if (statement !== "") statements.push({ text: statement, line: text.slice(0, begin + leading).split("\n").length });
    begin = end + 1;
  };
  for (const match of text.matchAll(QUOTED)) if (match[0] === ";") add(match.index);
  add(text.length);
  return statements;
}

/** A statement of a file that the database refused. */
class SqlFileError extends Error {
  /** The SQLSTATE. */
  readonly code: string | undefined;

  constructor(path: string, { text, line }: Statement, error: DatabaseError) {
    const at = error.position === undefined ? 0 : text.slice(0, Number(error.position) - 1).split("\n").length - 1;
    const shown = text.replace(/\s+/g, " ").slice(0, STATEMENT_SHOWN_LENGTH_MAX);
    const advice = [error.detail, error.hint].filter((part) => part !== undefined).join(" ");
    super(`${path}:${line + at}: ${error.message}.${advice && ` ${advice}`} The statement: ${shown}`, { cause: error });
    this.code = error.code;
  }
}

/** SQLSTATE of a changed result, parameter name or default. The hint names the function in SQL, also when the server speaks another language. */
const INVALID_FUNCTION_DEFINITION = "42P13";
const DROP_HINT = /DROP (?:FUNCTION|PROCEDURE|ROUTINE) (.+\))/;

async function replaceFunction(client: Client, text: string): Promise<void> {
  await client.query("savepoint replacement");
  try {
    await client.query(text);
  } catch (error) {
    const { code, hint } = error as DatabaseError;
    const [, signature] = DROP_HINT.exec(hint ?? "") ?? [];
    if (code !== INVALID_FUNCTION_DEFINITION || signature === undefined) throw error;
    await client.query("rollback to replacement");
    await client.query(`drop routine ${signature}`);
    await client.query(text);
  }
  await client.query("release replacement");
}

/**
 * Runs every statement of a file. A function whose result type changed is dropped first; that needs a transaction.
 * @throws {SqlFileError} with the file, the line and the statement
 */
export async function runFile(client: Client, { path, text }: SqlFile): Promise<void> {
  for (const statement of splitStatements(text)) {
    const replaces = /^create\s+or\s+replace\s+(function|procedure)\b/i.test(statement.text);
    try {
      await (replaces ? replaceFunction(client, statement.text) : client.query(statement.text));
    } catch (error) {
      throw error instanceof DatabaseError ? new SqlFileError(path, statement, error) : error;
    }
  }
}
