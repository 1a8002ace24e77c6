/** The API as OpenAPI 3.1 and the events as JSON Schema, from the functions' own valibot schemas. */
import { readFile } from "node:fs/promises";
import { STATUS_CODES } from "node:http";
import { join } from "node:path";
import { type JsonSchema, toJsonSchema } from "@valibot/to-json-schema";
import type * as v from "valibot";
import type { Endpoint } from "#kernel/endpoint";
import { PROBLEM_CODES, type ProblemCode, statusOf, titleOf } from "#kernel/problem";
import {
  CURSOR_LENGTH_MAX,
  IDEMPOTENCY_KEY_DAYS,
  IDEMPOTENCY_KEY_LENGTH_MAX,
  PAGE_ROWS_DEFAULT,
  PAGE_ROWS_MAX,
} from "#kernel/settings";
import { type LotusFunction, ROOT } from "../project/functions.ts";

type Schema = v.GenericSchema;

/** What a client may send: the side of a schema before its transformations. */
function toJson(schema: Schema): JsonSchema {
  const { $schema: _, ...rest } = toJsonSchema(schema as never, {
    typeMode: "input",
    errorMode: "ignore",
    target: "draft-2020-12",
  });
  return rest;
}

/** Schemas that have a title, by it: said once, among the components. */
type Components = Record<string, JsonSchema>;

/** The schema with a reference in the place of each that has a title. */
function referring(schema: JsonSchema, components: Components): JsonSchema {
  const text = JSON.stringify(schema, (_, value: JsonSchema | null) => {
    if (typeof value?.title !== "string") return value;
    const { title, ...rest } = value;
    const component = referring(rest, components);
    if (title in components && JSON.stringify(components[title]) !== JSON.stringify(component))
      throw new Error(`Two different schemas have the title ${title}.`);
    components[title] = component;
    return { $ref: `#/components/schemas/${title}` };
  });
  return JSON.parse(text) as JsonSchema;
}

/** Refusals that the kernel gives for an endpoint of this kind, besides the endpoint's own. */
function commonRefusals({ method, caller, body, idempotent }: Endpoint): ProblemCode[] {
  // A repeated query parameter is invalid wherever it is sent.
  const codes: ProblemCode[] = ["invalid-request", "method-not-allowed", "internal", "unavailable"];
  if (caller === "user") codes.push("unauthenticated");
  if (body) codes.push("malformed-body", "unsupported-media-type");
  if (method === "POST") codes.push("body-too-large", "outcome-unknown");
  if (idempotent) codes.push("idempotency-key-reused");
  return codes;
}

/** Headers of a refusal: a client may rely on those that are required. */
const REFUSAL_HEADERS: Readonly<Record<number, object>> = {
  401: { "WWW-Authenticate": { required: true, description: "RFC 6750", schema: { type: "string" } } },
  405: { Allow: { required: true, description: "The methods that are taken.", schema: { type: "string" } } },
  429: { "Retry-After": { required: true, description: "Seconds to wait.", schema: { type: "integer" } } },
  503: { "Retry-After": { description: "Seconds to wait; with `unavailable`.", schema: { type: "integer" } } },
};

function responses(description: Endpoint, components: Components): Record<string, object> {
  const byStatus = new Map<number, ProblemCode[]>();
  const own = Object.values(description.answers).filter((answer): answer is readonly ProblemCode[] =>
    Array.isArray(answer),
  );
  for (const code of [...own.flat(), ...commonRefusals(description)]) {
    byStatus.set(statusOf(code), [...(byStatus.get(statusOf(code)) ?? []), code]);
  }
  const refusals = [...byStatus].map(([status, codes]) => [
    String(status),
    {
      description: codes.map((code) => `\`${code}\`: ${titleOf(code)}`).join(" · "),
      ...(REFUSAL_HEADERS[status] && { headers: REFUSAL_HEADERS[status] }),
      content: { "application/problem+json": { schema: { $ref: "#/components/schemas/Problem" } } },
    },
  ]);
  const successes = Object.entries(description.answers)
    .filter(([, answer]) => !Array.isArray(answer))
    .map(([status, schema]) => [
      status,
      {
        description: description.page ? "One page. The link header names the next one." : STATUS_CODES[status],
        ...(description.page && {
          headers: { Link: { description: 'rel="next" (RFC 8288)', schema: { type: "string" } } },
        }),
        content: { "application/json": { schema: referring(toJson(schema as Schema), components) } },
      },
    ]);
  return Object.fromEntries([...successes, ...refusals].sort(([a], [b]) => String(a).localeCompare(String(b))));
}

function parameters({ query, page, idempotent }: Endpoint): object[] {
  const list: object[] = [];
  const fields = query === undefined ? undefined : toJson(query);
  for (const [name, schema] of Object.entries(fields?.properties ?? {})) {
    list.push({ name, in: "query", required: fields?.required?.includes(name) ?? false, schema });
  }
  if (page) {
    const limit = { type: "integer", minimum: 1, maximum: PAGE_ROWS_MAX, default: PAGE_ROWS_DEFAULT };
    list.push({ name: "limit", in: "query", schema: limit });
    const cursor = { type: "string", maxLength: CURSOR_LENGTH_MAX };
    list.push({ name: "cursor", in: "query", description: "From the next link; opaque.", schema: cursor });
  }
  if (idempotent) {
    const description = `The same key and request gives the first answer again; the same key with another request is 422. A key is kept for ${IDEMPOTENCY_KEY_DAYS} days.`;
    const schema = { type: "string", minLength: 1, maxLength: IDEMPOTENCY_KEY_LENGTH_MAX };
    list.push({ name: "Idempotency-Key", in: "header", description, schema });
  }
  return list;
}

/**
 * What an endpoint does: the sentence that its file begins with.
 * @throws when the file begins with another method or path than its own
 */
async function summaryOf(file: string, method: string, path: string): Promise<string> {
  const [header = ""] = (await readFile(join(ROOT, file), "utf8")).split("\n", 1);
  const [, said, summary] = /^\/\*\* ([A-Z]+ [a-z/-]+)\S*(?: \{.*\}\.)? (.+) \*\/$/.exec(header) ?? [];
  const call = `${method} ${path}`;
  if (said !== call || summary === undefined)
    throw new Error(`${file} must begin with a line such as: /** ${call}. What it does. */`);
  return summary;
}

type FoundEndpoint = Extract<LotusFunction, { kind: "endpoint" }>;

async function operation(
  { file, name, path, service, description }: FoundEndpoint,
  components: Components,
): Promise<object> {
  const listed = parameters(description);
  return {
    operationId: name,
    summary: await summaryOf(file, description.method, path),
    tags: [service],
    ...(description.caller === "user" && { security: [{ token: [] }] }),
    ...(listed.length > 0 && { parameters: listed }),
    ...(description.body && {
      requestBody: { required: true, content: { "application/json": { schema: toJson(description.body) } } },
    }),
    responses: responses(description, components),
  };
}

const PROBLEM: object = {
  type: "object",
  description: "RFC 9457. `code` is stable; `errors` names the fields that are wrong.",
  required: ["type", "title", "status", "code", "detail"],
  properties: {
    type: { type: "string" },
    title: { type: "string" },
    status: { type: "integer" },
    code: { enum: PROBLEM_CODES },
    detail: { type: "string" },
    balance: { type: "number", description: "Of the caller's account, where money was asked for." },
    order: { $ref: "#/components/schemas/Order", description: "The order that was refused." },
    traceId: { type: "string", description: "Of an `internal` error: what its log lines are found by." },
    errors: {
      type: "array",
      items: { type: "object", properties: { field: { type: "string" }, detail: { type: "string" } } },
    },
  },
};

/** The whole API. The first server is the one of a cluster, the second that of `npm start`. */
export async function openApi(functions: readonly LotusFunction[], servers: readonly string[]): Promise<object> {
  const components: Components = {};
  const paths: Record<string, object> = {};
  for (const fn of functions) {
    if (fn.kind !== "endpoint") continue;
    paths[fn.path] = { [fn.description.method.toLowerCase()]: await operation(fn, components) };
  }
  return {
    openapi: "3.1.0",
    info: { title: "Lotus", version: "1", description: "Profiles, a billing ledger, orders and notifications." },
    servers: servers.map((url) => ({ url })),
    paths,
    components: {
      schemas: { ...components, Problem: PROBLEM },
      securitySchemes: { token: { type: "http", scheme: "bearer", bearerFormat: "JWT" } },
    },
  };
}

/** The data of each topic's events, by `topic.v1`. */
export function eventSchemas(functions: readonly LotusFunction[]): [name: string, schema: object][] {
  const topics = new Map<string, Schema>();
  for (const { description } of functions) {
    if ("topic" in description) topics.set(description.topic, description.data);
  }
  return [...topics].map(([topic, schema]) => [
    `${topic}.v1`,
    { $schema: "https://json-schema.org/draft/2020-12/schema", title: `lotus.${topic}.v1`, ...toJson(schema) },
  ]);
}
