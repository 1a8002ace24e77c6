/** The API as OpenAPI 3.1 and the events as JSON Schema, from the functions' own valibot schemas. */
import { STATUS_CODES } from "node:http";
import { type JsonSchema, toJsonSchema } from "@valibot/to-json-schema";
import type * as v from "valibot";
import type { Endpoint } from "#kernel/endpoint";
import {
  CURSOR_LENGTH_MAX,
  IDEMPOTENCY_KEY_DAYS,
  IDEMPOTENCY_KEY_LENGTH_MAX,
  IDEMPOTENCY_KEY_PATTERN,
  PAGE_ROWS_DEFAULT,
  PAGE_ROWS_MAX,
} from "#kernel/limits";
import { PROBLEM_CODES, type ProblemCode, statusOf, titleOf } from "#kernel/problem";
import type { LotusFunction } from "../project/functions.ts";

type Schema = v.GenericSchema;

const NIL = "00000000-0000-0000-0000-000000000000";

/** Returns the JSON Schema of a request: the side of the schema before its transformations. */
function toJson(schema: Schema): JsonSchema {
  const { $schema: _, ...rest } = toJsonSchema(schema as never, {
    typeMode: "input",
    errorMode: "ignore",
    target: "draft-2020-12",
  });
  return rest;
}

/** Schemas with a title, by title. The document contains each once, among the components. */
type Components = Record<string, JsonSchema>;

/** Returns the schema with a reference in place of each schema that has a title. */
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

/** Returns the refusals that the kernel adds to the endpoint's own. */
function commonRefusals({ method, caller, body, idempotent }: Endpoint): ProblemCode[] {
  // Every endpoint refuses a repeated query parameter.
  const codes: ProblemCode[] = [
    "invalid-request",
    "method-not-allowed",
    "too-many-requests",
    "internal",
    "unavailable",
  ];
  if (caller === "user") codes.push("unauthenticated");
  if (body) codes.push("malformed-body", "unsupported-media-type");
  if (method === "POST") codes.push("body-too-large", "outcome-unknown");
  if (idempotent) codes.push("idempotency-key-reused", "idempotency-key-expired");
  return codes;
}

/** Headers of a refusal. A refusal always has the required ones. */
const REFUSAL_HEADERS: Readonly<Record<number, object>> = {
  401: { "WWW-Authenticate": { required: true, description: "RFC 6750", schema: { type: "string" } } },
  405: { Allow: { required: true, description: "The accepted methods.", schema: { type: "string" } } },
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
        description: description.page ? "One page. The `Link` header names the next one." : STATUS_CODES[status],
        ...(description.page && {
          headers: { Link: { description: 'rel="next" (RFC 8288)', schema: { type: "string" } } },
        }),
        content: { "application/json": { schema: referring(toJson(schema as Schema), components) } },
      },
    ]);
  return Object.fromEntries([...successes, ...refusals].sort(([a], [b]) => String(a).localeCompare(String(b))));
}

/**
 * Returns a value that the server accepts: the schema's first example, or an object of its properties' examples.
 * @throws when a required field has no example: an imported Postman collection would fail
 */
function exampleOf(schema: JsonSchema, where: string): unknown {
  const [example] = schema.examples ?? [];
  if (example !== undefined) return example;
  if (schema.anyOf !== undefined) return exampleOf(schema.anyOf[0] as JsonSchema, where);
  if (schema.type !== "object") throw new Error(`${where} needs an example: v.metadata({ examples: [...] }).`);
  const fields = Object.entries(schema.properties ?? {});
  return Object.fromEntries(fields.map(([name, field]) => [name, exampleOf(field as JsonSchema, `${where}.${name}`)]));
}

/** A cursor that the server accepts: a position behind the last row, which is followed by an empty page. */
function exampleCursor(page: Schema): string {
  const { prefixItems = [] } = toJson(page);
  const position = prefixItems.map((item) => ((item as JsonSchema).type === "string" ? NIL : 1));
  return Buffer.from(JSON.stringify(position)).toString("base64url");
}

function parameters({ name: operationId, description: { query, page, idempotent } }: FoundEndpoint): object[] {
  const list: object[] = [];
  const fields = query === undefined ? undefined : toJson(query);
  const examples = fields === undefined ? {} : (exampleOf(fields, operationId) as Record<string, unknown>);
  for (const [name, schema] of Object.entries(fields?.properties ?? {})) {
    const { description, examples: _, ...rest } = schema as JsonSchema;
    const required = fields?.required?.includes(name) ?? false;
    list.push({ name, in: "query", required, description, example: examples[name], schema: rest });
  }
  if (page) {
    const limit = { type: "integer", minimum: 1, maximum: PAGE_ROWS_MAX, default: PAGE_ROWS_DEFAULT };
    list.push({
      name: "limit",
      in: "query",
      description: "Rows of a page.",
      example: PAGE_ROWS_DEFAULT,
      schema: limit,
    });
    list.push({
      name: "cursor",
      in: "query",
      description: "The cursor of a next link, unchanged. Omit it for the first page.",
      example: exampleCursor(page),
      schema: { type: "string", minLength: 1, maxLength: CURSOR_LENGTH_MAX, pattern: "^[A-Za-z0-9_-]+$" },
    });
  }
  if (idempotent) {
    list.push({
      name: "Idempotency-Key",
      in: "header",
      description: `A name for this request, new for each intent. The same key with the same request returns the first answer. With another request the answer is 422. Lotus keeps a key for ${IDEMPOTENCY_KEY_DAYS} days.`,
      example: `${operationId}-1`,
      schema: {
        type: "string",
        minLength: 1,
        maxLength: IDEMPOTENCY_KEY_LENGTH_MAX,
        pattern: IDEMPOTENCY_KEY_PATTERN,
      },
    });
  }
  return list;
}

type FoundEndpoint = Extract<LotusFunction, { kind: "endpoint" }>;

function requestBody(name: string, body: Schema): object {
  const schema = toJson(body);
  const example = exampleOf(schema, name);
  return { required: true, content: { "application/json": { schema, example } } };
}

function operation(fn: FoundEndpoint, components: Components): object {
  const { name, service, description } = fn;
  const listed = parameters(fn);
  const notes = [
    description.description,
    description.caller === "user" && "The caller needs a token of `POST /profile/login`.",
    description.page && "The `Link` header of the answer names the next page.",
    description.idempotent && "Send an `Idempotency-Key` to repeat the request safely.",
  ];
  return {
    operationId: name,
    summary: description.summary.replace(/\.$/, ""),
    description: [description.summary, ...notes].filter(Boolean).join(" "),
    tags: [service],
    security: description.caller === "user" ? [{ token: [] }] : [],
    ...(listed.length > 0 && { parameters: listed }),
    ...(description.body && { requestBody: requestBody(name, description.body) }),
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
    balance: { type: "number", description: "The balance of the caller's account, in refusals about money." },
    order: { $ref: "#/components/schemas/Order", description: "The order that was refused." },
    traceId: { type: "string", description: "The trace of an `internal` error. Its log lines contain the same id." },
    errors: {
      type: "array",
      items: { type: "object", properties: { field: { type: "string" }, detail: { type: "string" } } },
    },
  },
};

/** Describes a service in the document: its endpoints have the tag of its name. */
/** Descriptions of services; a service without one gets a plain sentence. */
const TAGS: Readonly<Record<string, string>> = {
  billing: "The ledger: balances, deposits, withdrawals and transfers.",
  notification: "Notifications of a user.",
  order: "Subscriptions and orders.",
  profile: "Users, logins and the keys that verify tokens.",
};

function tagOf(service: string): object {
  return { name: service, description: TAGS[service] ?? `The service ${service}.` };
}

/** Returns the whole API. The first server is the one of a cluster, the second that of `npm start`. */
export function openApi(functions: readonly LotusFunction[], servers: readonly string[]): object {
  const components: Components = {};
  const paths: Record<string, object> = {};
  const services = new Set<string>();
  for (const fn of functions) {
    if (fn.kind !== "endpoint") continue;
    services.add(fn.service);
    paths[fn.path] = { [fn.description.method.toLowerCase()]: operation(fn, components) };
  }
  return {
    openapi: "3.1.0",
    info: {
      title: "Lotus",
      version: "1",
      description: "Profiles, a billing ledger, orders and notifications.",
      license: { name: "MIT", identifier: "MIT" },
    },
    servers: servers.map((url) => ({ url })),
    tags: [...services].map(tagOf),
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
    else if ("publishes" in description && description.publishes)
      topics.set(description.publishes.topic, description.publishes.data);
  }
  return [...topics].map(([topic, schema]) => [
    `${topic}.v1`,
    { $schema: "https://json-schema.org/draft/2020-12/schema", title: `lotus.${topic}.v1`, ...toJson(schema) },
  ]);
}
