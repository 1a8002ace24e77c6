/** Finds the SQL statements that the functions send, with the row types that TypeScript knows for them. */
import type { Expression, Node, TypeNode } from "typescript/unstable/ast";
import { isCallExpression, isIdentifier } from "typescript/unstable/ast/is";
import { API, type Checker, type Type } from "typescript/unstable/sync";
import { ROOT } from "../project/paths.ts";

/** The Postgres types whose values the driver returns as a TypeScript type. */
const POSTGRES_TYPES = {
  string: ["text", "varchar", "uuid", "int8", "numeric"],
  number: ["int2", "int4", "float4", "float8"],
  boolean: ["bool"],
  Date: ["timestamptz"],
  object: ["json", "jsonb"],
} as const;

/** The Postgres types that each column of a row type allows. */
export type Columns = ReadonlyMap<string, readonly string[]>;

/** A call of `query` or `batched` in a source file. */
export interface StatementCall {
  /** The path from the checkout, and the line counted from 1. */
  readonly place: string;
  readonly file: string;
  readonly callee: "query" | "batched";
  /** The name and the text of a `query`; undefined when they are not constants. `batched` computes both. */
  readonly name: string | undefined;
  readonly text: string | undefined;
  /** Undefined when the call ignores its rows. */
  readonly columns: Columns | undefined;
}

function constantOf(checker: Checker, argument: Expression | undefined): string | undefined {
  const type = argument && checker.getTypeAtLocation(argument);
  const value = type && "value" in type ? type.value : undefined;
  return typeof value === "string" ? value : undefined;
}

function kindOf(checker: Checker, type: Type): keyof typeof POSTGRES_TYPES {
  if (checker.isTypeAssignableTo(type, checker.getStringType())) return "string";
  if (checker.isTypeAssignableTo(type, checker.getNumberType())) return "number";
  if (checker.isTypeAssignableTo(type, checker.getBooleanType())) return "boolean";
  return checker.typeToString(type) === "Date" ? "Date" : "object";
}

/** The driver returns one type for a column: a union such as `string | number` matches no column. */
function postgresTypesOf(checker: Checker, type: Type): readonly string[] {
  const value = checker.getNonNullableType(type) ?? type;
  const kinds = new Set((value.isUnionType() ? value.getTypes() : [value]).map((member) => kindOf(checker, member)));
  const [kind] = kinds;
  return kinds.size === 1 && kind !== undefined ? POSTGRES_TYPES[kind] : [];
}

function columnsOf(checker: Checker, row: TypeNode | undefined): Columns | undefined {
  const type = row && checker.getTypeFromTypeNode(row);
  if (type === undefined) return undefined;
  return new Map(
    checker.getPropertiesOfType(type).map((property) => {
      const of = checker.getTypeOfSymbol(property);
      return [property.name, of === undefined ? [] : postgresTypesOf(checker, of)];
    }),
  );
}

/** Returns the calls of `query` and `batched` in files. @param files paths from the checkout */
export function statementCalls(files: readonly string[]): StatementCall[] {
  const api = new API({ cwd: ROOT });
  try {
    const project = api.updateSnapshot({ openProjects: [`${ROOT}/tsconfig.json`] }).getProjects()[0];
    if (project === undefined) throw new Error("tsconfig.json describes no project");
    const { program, checker } = project;
    const calls: StatementCall[] = [];
    for (const file of files) {
      const source = program.getSourceFile(`${ROOT}/${file}`);
      if (source === undefined) throw new Error(`tsconfig.json does not include ${file}`);
      const visit = (node: Node): void => {
        if (isCallExpression(node) && isIdentifier(node.expression)) {
          const callee = node.expression.text;
          if (callee === "query" || callee === "batched") {
            const line = source.text.slice(0, node.end).split("\n").length;
            calls.push({
              place: `${file}:${line}`,
              file,
              callee,
              name: callee === "query" ? constantOf(checker, node.arguments[0]) : undefined,
              text: callee === "query" ? constantOf(checker, node.arguments[1]) : undefined,
              columns: columnsOf(checker, node.typeArguments?.at(-1)),
            });
          }
        }
        node.forEachChild(visit);
      };
      visit(source);
    }
    return calls;
  } finally {
    api.close();
  }
}
