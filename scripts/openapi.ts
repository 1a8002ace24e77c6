/** The API as OpenAPI 3.1 and the events as JSON Schema, from the functions' own valibot schemas. */
import { type JsonSchema, toJsonSchema } from "@valibot/to-json-schema";
import type * as v from "valibot";
import type { Endpoint } from "#kernel/endpoint";
import { PROBLEM_CODES, type ProblemCode, statusOf, titleOf } from "#kernel/problem";
import { IDEMPOTENCY_KEY_LENGTH_MAX, PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX } from "#kernel/settings";
import type { LotusFunction } from "./functions.ts";

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

/** Refusals that the kernel gives for an endpoint of this kind, besides the endpoint's own. */
function commonRefusals({ method, caller, body, query, page, idempotent }: Endpoint): ProblemCode[] {
  const codes: ProblemCode[] = ["method-not-allowed", "internal", "unavailable"];
  if (caller === "user") codes.push("unauthenticated");
  if (query || body || page) codes.push("invalid-request");
  if (body) codes.push("malformed-body", "unsupported-media-type");
  if (method === "POST") codes.push("body-too-large", "outcome-unknown");
  if (idempotent) codes.push("idempotency-key-reused");
  return codes;
}

function responses(description: Endpoint): Record<string, object> {
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
      content: { "application/problem+json": { schema: { $ref: "#/components/schemas/Problem" } } },
    },
  ]);
  const successes = Object.entries(description.answers)
    .filter(([, answer]) => !Array.isArray(answer))
    .map(([status, schema]) => [
      status,
      {
        description: description.page ? "One page. The link header names the next one." : "Done.",
        ...(description.page && {
          headers: { link: { description: 'rel="next" (RFC 8288)', schema: { type: "string" } } },
        }),
        content: { "application/json": { schema: toJson(schema as Schema) } },
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
    list.push({ name: "cursor", in: "query", description: "From the next link; opaque.", schema: { type: "string" } });
  }
  if (idempotent) {
    const description =
      "The same key and request gives the first answer again; the same key with another request is 422.";
    const schema = { type: "string", minLength: 1, maxLength: IDEMPOTENCY_KEY_LENGTH_MAX };
    list.push({ name: "Idempotency-Key", in: "header", description, schema });
  }
  return list;
}

function operation(name: string, service: string, description: Endpoint): object {
  const listed = parameters(description);
  return {
    operationId: name,
    tags: [service],
    ...(description.caller === "user" && { security: [{ token: [] }] }),
    ...(listed.length > 0 && { parameters: listed }),
    ...(description.body && {
      requestBody: { required: true, content: { "application/json": { schema: toJson(description.body) } } },
    }),
    responses: responses(description),
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
    order: { type: "object", description: "The order that was refused." },
    errors: {
      type: "array",
      items: { type: "object", properties: { field: { type: "string" }, detail: { type: "string" } } },
    },
  },
};

/** The whole API. */
export function openApi(functions: readonly LotusFunction[], server: string): object {
  const endpoints = functions.filter((fn) => fn.kind === "endpoint");
  return {
    openapi: "3.1.0",
    info: { title: "Lotus", version: "1", description: "Profiles, a billing ledger, orders and notifications." },
    servers: [{ url: server }],
    paths: Object.fromEntries(
      endpoints.map(({ path, name, service, description }) => [
        path,
        { [description.method.toLowerCase()]: operation(name, service, description) },
      ]),
    ),
    components: {
      schemas: { Problem: PROBLEM },
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
