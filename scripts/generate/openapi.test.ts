import { randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { Ajv2020 } from "ajv/dist/2020.js";
import addFormats from "ajv-formats";
import * as fc from "fast-check";
import { importJWK, SignJWT } from "jose";
import * as v from "valibot";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { REQUEST_BODY_BYTES_MAX } from "#kernel/limits";
import { Amount } from "#kernel/money";
import { type ProblemCode, statusOf, titleOf } from "#kernel/problem";
import { findFunctions } from "../project/functions.ts";
import { ROOT } from "../project/paths.ts";
import { type Answer, type CallOptions, call, newUser, startTestLotus, type TestLotus } from "../testing/lotus.ts";

interface Response {
  description: string;
  headers?: Record<string, { required?: boolean }>;
  content: Record<string, { schema: object }>;
}
interface Parameter {
  name: string;
  in: string;
  required?: boolean;
  example?: unknown;
  description?: string;
  schema: object;
}
interface Operation {
  summary: string;
  description: string;
  tags: string[];
  security: object[];
  parameters?: Parameter[];
  requestBody?: { content: { "application/json": { schema: object; example?: unknown } } };
  responses: Record<string, Response>;
}
interface Document {
  info: { license?: object };
  tags: { name: string }[];
  paths: Record<string, Record<string, Operation>>;
}

const endpoints = (await findFunctions()).flatMap((fn) => (fn.kind === "endpoint" ? [fn] : []));
const document = JSON.parse(await readFile(join(ROOT, "docs/openapi.json"), "utf8")) as Document & object;
const ajv = addFormats.default(new Ajv2020({ strict: false, allErrors: true }));
ajv.addSchema(document, "open");
// The schemas of successes refuse undocumented fields.
ajv.addSchema(
  JSON.parse(JSON.stringify(document).replaceAll('"type":"object"', '"type":"object","additionalProperties":false')),
  "closed",
);

let lotus: TestLotus;
beforeAll(async () => {
  lotus = await startTestLotus();
});
afterAll(() => lotus.stop());

/** Statuses of faults. The tests of faults cause them. */
const NOT_HERE = ["500", "503"];

/** Fails unless the document describes this answer of the operation. */
function expectDocumented(path: string, method: string, { status, headers, body }: Answer): void {
  const label = `${method} ${path} ${status} ${JSON.stringify(body).slice(0, 300)}`;
  const response = document.paths[path]?.[method.toLowerCase()]?.responses[status];
  if (response === undefined) throw new Error(`not documented: ${label}`);
  const mediaType = headers.get("content-type") ?? "";
  expect(Object.keys(response.content), label).toEqual([mediaType]);
  const missing = Object.entries(response.headers ?? {}).filter(
    ([name, { required }]) => required && !headers.has(name),
  );
  expect(missing, label).toEqual([]);
  const pointer = ["paths", path, method.toLowerCase(), "responses", String(status), "content", mediaType, "schema"];
  const fragment = pointer.map((step) => encodeURIComponent(step.replaceAll("/", "~1"))).join("/");
  const validate = ajv.compile({ $ref: `${status < 400 ? "closed" : "open"}#/${fragment}` });
  expect(validate(body) ? [] : validate.errors, label).toEqual([]);
  if (status < 400) return;
  const code = body.code as ProblemCode;
  expect(response.description, label).toContain(`\`${code}\``);
  expect(body, label).toMatchObject({
    type: `urn:lotus:problem:${code}`,
    status: statusOf(code),
    title: titleOf(code),
  });
}

type Call = [request: string, options: CallOptions];

/** Requests that cause every answer of an endpoint, except the answers that all endpoints share. */
async function requests(): Promise<Call[]> {
  const { email, password, token } = await newUser(lotus, 1000);
  const key = JSON.parse(
    await readFile(lotus.manifests.functions.get("profile-login")?.SIGNING_KEY_FILE ?? "", "utf8"),
  );
  const ghost = await new SignJWT({ email })
    .setProtectedHeader({ alg: "EdDSA", kid: key.kid })
    .setIssuer("lotus")
    .setAudience("lotus")
    .setIssuedAt()
    .setSubject(randomUUID())
    .setExpirationTime("1h")
    .sign(await importJWK(key, "EdDSA"));
  const keyed = { token, headers: { "idempotency-key": "a" } };
  const other = await newUser(lotus);
  const paid = await call(lotus, "POST /order/pay?idSubscription=1", { token });
  const refused = await call(lotus, "POST /order/create", { token, body: { price: 1_000_000 } });
  const moves = [
    "POST /billing/add-money?money=",
    "POST /billing/withdraw-money?money=",
    "POST /order/pay?idSubscription=",
  ];
  const bodies = ["register", "login"].map((name) => `POST /profile/${name}`).concat("POST /order/create");
  return [
    ["POST /profile/register", { body: { email: `${randomUUID()}@example.com`, password, username: "Ada" } }],
    ["POST /profile/register", { body: { email, password } }],
    ["POST /profile/login", { body: { email, password } }],
    ...Array.from({ length: 11 }, (): Call => ["POST /profile/login", { body: { email, password: "wrong" } }]),
    ["GET /profile/me", { token }],
    ["GET /profile/jwks", {}],
    ["GET /order/subscriptions", {}],
    ["GET /billing/balance", { token }],
    ["GET /billing/balance", { token: ghost }],
    ...moves.flatMap((move): Call[] => [
      [`${move}1`, { token }],
      [`${move}x`, { token }],
      [`${move}1`, { token: ghost }],
    ]),
    ["POST /billing/withdraw-money?money=1000000", { token }],
    [`POST /billing/transfer?money=1&to=${other.email}`, { token }],
    ["POST /billing/transfer?money=1&to=nobody@example.com", { token }],
    [`POST /billing/transfer?money=1&to=${email}`, { token }],
    [`POST /billing/transfer?money=1000000&to=${other.email}`, { token }],
    [`POST /billing/transfer?money=1&to=${other.email}`, { token: ghost }],
    [`POST /order/refund?id=${paid.body.order.id}`, { token }],
    [`POST /order/refund?id=${refused.body.order.id}`, { token }],
    [`POST /order/refund?id=${randomUUID()}`, { token }],
    ["POST /order/refund?id=1", { token }],
    [`GET /order/get?id=${paid.body.order.id}`, { token }],
    [`GET /order/get?id=${randomUUID()}`, { token }],
    ["POST /order/pay?idSubscription=3", { token }],
    ["POST /order/pay?idSubscription=4", { token }],
    ["POST /order/create", { token, body: { price: 1 } }],
    ["POST /order/create", { token, body: { price: 100000 } }],
    ["POST /order/create", { token: ghost, body: { price: 1 } }],
    ["POST /billing/add-money?money=1", keyed],
    ["POST /billing/add-money?money=2", keyed],
    ["POST /billing/withdraw-money?money=1", keyed],
    [`POST /billing/transfer?money=1&to=${other.email}`, keyed],
    [`POST /order/refund?id=${paid.body.order.id}`, { ...keyed, headers: { "idempotency-key": "b" } }],
    [`POST /order/refund?id=${refused.body.order.id}`, { ...keyed, headers: { "idempotency-key": "b" } }],
    ["POST /order/pay?idSubscription=1", keyed],
    ["POST /order/pay?idSubscription=2", keyed],
    ["POST /order/create", { ...keyed, body: { price: 1 } }],
    ...bodies.flatMap((request): Call[] => [
      [request, { token, body: "{" }],
      [request, { token, body: {} }],
      [request, { token, body: "{}", headers: { "content-type": "text/plain" } }],
    ]),
    // Every GET: a new endpoint without required parameters needs no line here.
    ...endpoints.flatMap(({ path, description }): Call[] =>
      description.method === "GET" ? [[`GET ${path}`, { token }]] : [],
    ),
    ...["/billing/history", "/order/list", "/notification"].flatMap((path): Call[] => [
      [`GET ${path}`, { token }],
      [`GET ${path}?limit=0`, { token }],
    ]),
  ];
}

/** Every operation of the document, with its method and path. */
const operations = Object.entries(document.paths).flatMap(([path, methods]) =>
  Object.entries(methods).map(([method, operation]) => ({ ...operation, path, method: method.toUpperCase() })),
);

/** Creates the recipient and the order of the examples. */
async function prepareExamples(token: string): Promise<void> {
  const example = (path: string, method: string, name: string) =>
    String(
      operations.find((one) => one.path === path && one.method === method)?.parameters?.find((one) => one.name === name)
        ?.example,
    );
  const email = example("/billing/transfer", "POST", "to");
  expect(
    (await call(lotus, "POST /profile/register", { body: { email, password: "correct horse battery" } })).status,
  ).toBe(201);
  await call(lotus, "POST /billing/add-money?money=1000", { token });
  const { order } = (await call(lotus, "POST /order/pay?idSubscription=1", { token })).body;
  const id = example("/order/refund", "POST", "id");
  await lotus.database.query('update "order".orders set id = $1 where id = $2', [id, order.id]);
  await lotus.database.query("update billing.transfers set reference = $1 where reference = $2", [id, order.id]);
}

describe("the document", () => {
  it("has patterns with the same meaning in every dialect of regular expressions", () => {
    const patterns: string[] = [];
    JSON.stringify(document, (key, value) => {
      if (key === "pattern" && typeof value === "string") patterns.push(value);
      return value;
    });
    expect(patterns.length).toBeGreaterThan(5);
    for (const pattern of patterns) {
      expect(pattern).toMatch(/^\^.*\$$/s);
      expect(() => new RegExp(pattern)).not.toThrow();
      // RE2 and Rust know no lookaround and no backreference; Python knows no \\p; only ECMAScript knows \\u0000.
      expect(pattern).not.toMatch(/\\[pPu1-9]|\(\?[=!<]/);
    }
  });

  it.each(operations)("describes $method $path for people and for linters", (operation) => {
    const { caller } = endpoints.find(({ path }) => path === operation.path)?.description ?? {};
    expect(operation.security).toEqual(caller === "user" ? [{ token: [] }] : []);
    const tags = document.tags.map(({ name }) => name);
    for (const tag of operation.tags) expect(tags).toContain(tag);
    expect(operation.summary).toMatch(/^[A-Z][a-z]+s /);
    expect(operation.description).toMatch(/\.$/);
    for (const { description } of operation.parameters ?? []) expect(description).toMatch(/\.$/);
  });

  it("names its licence", () => expect(document.info.license).toEqual({ name: "MIT", identifier: "MIT" }));

  it("has numbers where the server reads numbers", () => {
    const types = new Map(
      operations.flatMap(({ parameters = [] }) =>
        parameters.map(({ name, schema }) => [name, (schema as { type: string }).type] as const),
      ),
    );
    expect([types.get("money"), types.get("idSubscription"), types.get("limit")]).toEqual([
      "number",
      "integer",
      "integer",
    ]);
  });

  it("has amounts that the server accepts, and no others", () => {
    const { schema } = document.paths["/order/create"]?.post?.requestBody?.content["application/json"] ?? {};
    const { price } = (schema as { properties: { price: { pattern: string } } }).properties;
    const text = fc.oneof(
      fc.stringMatching(new RegExp(price.pattern)),
      fc.stringMatching(/^[-+ 0-9.,eE]{0,12}$/),
      fc.constantFrom("0", "0.00", "0.01", "1000000000", "1000000000.00", "1000000000.01", "01", "1.", ".5"),
    );
    const validate = ajv.compile(price);
    fc.assert(fc.property(text, (amount) => v.safeParse(Amount, amount).success === validate(amount)));
    const cents = fc.integer({ min: 1, max: 1e11 });
    fc.assert(fc.property(cents, (n) => v.safeParse(Amount, JSON.stringify(n / 100)).success));
    for (const number of [0, -1, 1e9 + 1]) expect([number, validate(number)]).toEqual([number, false]);
  });

  it.each(operations)("limits each text and number that a client sends to $method $path", (operation) => {
    const unlimited: string[] = [];
    const look = (where: string, schema: Record<string, unknown>): void => {
      for (const [name, property] of Object.entries(schema.properties ?? {})) look(`${where}.${name}`, property);
      for (const one of (schema.anyOf ?? []) as Record<string, unknown>[]) look(where, one);
      const types = [schema.type].flat();
      // A pattern whose quantifiers all have an end limits the length as well.
      const isLimited = schema.format === "uuid" || /^[^*+]*$/.test(String(schema.pattern ?? "*"));
      if (types.includes("string") && schema.maxLength === undefined && !isLimited) unlimited.push(where);
      const isNumber = types.includes("number") || types.includes("integer");
      const least = schema.minimum ?? schema.exclusiveMinimum;
      if (isNumber && (least === undefined || schema.maximum === undefined)) unlimited.push(where);
    };
    for (const { name, schema } of operation.parameters ?? []) look(name, schema as Record<string, unknown>);
    const body = operation.requestBody?.content["application/json"].schema;
    if (body !== undefined) look("body", body as Record<string, unknown>);
    expect(unlimited).toEqual([]);
  });

  it("has the limits of parameters that the server enforces", async () => {
    const { token } = await newUser(lotus);
    const values: [operation: string, parameter: string, values: (string | number)[]][] = [
      ["GET /billing/history", "limit", [-1, 0, 1, 100, 101, 1.5]],
      ["GET /billing/history", "cursor", ["", "a b", "=", "é", "x".repeat(201)]],
      ["POST /billing/add-money", "money", [0, 0.001, 0.01, 1e9, 1_000_000_000.01]],
      ["POST /billing/add-money", "Idempotency-Key", ["!", "~", "a b", "é", "k".repeat(255), "k".repeat(256)]],
      [
        "POST /billing/transfer",
        "to",
        ["a", "a@b", `${"x".repeat(242)}@example.com`, `${"x".repeat(243)}@example.com`],
      ],
      ["POST /order/pay", "idSubscription", [-1, 0, 999_999_999, 1_000_000_000, 0.5]],
      ["GET /order/get", "id", ["1", randomUUID(), `${randomUUID()}0`]],
    ];
    for (const [request, name, candidates] of values) {
      const { parameters = [] } = operations.find(({ method, path }) => request === `${method} ${path}`) ?? {};
      const parameter = parameters.find((one) => one.name === name);
      expect([request, name, parameter?.in]).toEqual([request, name, name === "Idempotency-Key" ? "header" : "query"]);
      for (const value of candidates) {
        const search = new URLSearchParams();
        const headers: Record<string, string> = {};
        for (const { name: other, in: place, required, example } of parameters) {
          if (other !== name && !required) continue;
          const text = String(other === name ? value : example);
          if (place === "query") search.set(other, text);
          else headers[other] = text;
        }
        const { body } = await call(lotus, `${request}?${search}`, { token, headers });
        const isValid = ajv.validate(parameter?.schema ?? {}, value);
        expect([request, name, value, body.code !== "invalid-request"]).toEqual([request, name, value, isValid]);
      }
    }
  });

  it("has an example of each parameter and body; it matches its schema, and the server accepts it", async () => {
    // The user whom the examples log in.
    const login = document.paths["/profile/login"]?.post?.requestBody?.content["application/json"].example;
    expect((await call(lotus, "POST /profile/register", { body: login })).status).toBe(201);
    const { token } = (await call(lotus, "POST /profile/login", { body: login })).body;
    await prepareExamples(token);
    for (const { path, method, parameters = [], requestBody } of operations) {
      const search = new URLSearchParams();
      const headers: Record<string, string> = {};
      for (const { name, in: place, example, schema } of parameters) {
        expect([path, name, ajv.validate(schema, example)]).toEqual([path, name, true]);
        if (place === "query") search.set(name, String(example));
        else headers[name] = String(example);
      }
      const body = requestBody?.content["application/json"];
      if (body !== undefined) expect([path, ajv.validate(body.schema, body.example)]).toEqual([path, true]);
      const answer = await call(lotus, `${method} ${path}?${search}`, { token, headers, body: body?.example });
      expect([path, answer.status < 300, answer.body]).toEqual([path, true, answer.body]);
    }
  });
});

describe("the API", () => {
  it("answers only as docs/openapi.json describes, and with each answer that it describes", async () => {
    const seen = new Map<string, Set<string>>();
    const ask = async (path: string, operation: string, request: string, options: CallOptions) => {
      const answer = await call(lotus, request, options);
      expectDocumented(path, operation, answer);
      seen.set(path, (seen.get(path) ?? new Set()).add(String(answer.status)));
    };
    for (const [request, options] of await requests()) {
      const [method = "", target = ""] = request.split(" ");
      await ask(target.split("?")[0] ?? "", method, request, options);
    }
    const { id, token } = await newUser(lotus);
    for (const { path, description } of endpoints) {
      const { method, caller } = description;
      await ask(path, method, `DELETE ${path}`, {});
      await ask(path, method, `${method} ${path}?twice=1&twice=1`, { ...(caller === "user" && { token }) });
      if (caller === "user") await ask(path, method, `${method} ${path}`, {});
      if (method === "POST") await ask(path, method, `POST ${path}`, { body: " ".repeat(REQUEST_BODY_BYTES_MAX + 1) });
    }
    await lotus.database.query("update profile.attempts set failures = 1000000 where bucket like 'registration:%'");
    const body = { email: "late@example.com", password: "correct horse" };
    await ask("/profile/register", "POST", "POST /profile/register", { body });
    await lotus.database.query(
      "insert into profile.attempts values ('recipients:' || $1::uuid, 100, '{}', '-infinity', now() + interval '1 hour')",
      [id],
    );
    await ask("/billing/transfer", "POST", "POST /billing/transfer?money=1&to=nobody@example.com", { token });
    for (const { path, description } of endpoints) {
      const { responses = {} } = document.paths[path]?.[description.method.toLowerCase()] ?? {};
      const documented = Object.keys(responses).filter(
        // Every endpoint limits the requests of one client; requests-in-progress.test.ts causes that.
        (status) => !NOT_HERE.includes(status) && (status !== "429" || 429 in description.answers),
      );
      expect([path, ...(seen.get(path) ?? [])].sort()).toEqual([path, ...documented].sort());
    }
  });
});
