/** Writes the first files of a new endpoint, event or service, each with a test. */
import { existsSync } from "node:fs";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { Refusal, UsageError } from "../cli/errors.ts";
import { ROOT } from "../project/paths.ts";

/** The kinds of `lotus new`. */
export const KINDS = ["endpoint", "event", "service"] as const;
export type Kind = (typeof KINDS)[number];

const WORD = /^[a-z]+$/;
const NAME = /^[a-z]+(?:-[a-z]+)*$/;

/** order-shipped -> OrderShipped */
const pascal = (name: string) => name.replace(/(?:^|-)([a-z])/g, (_, letter: string) => letter.toUpperCase());
/** order-shipped -> order shipped */
const words = (name: string) => name.replaceAll("-", " ");

const endpointOf = (service: string, name: string) => `/** GET /${service}/${name}. */
import * as v from "valibot";
import { endpoint, ok } from "#kernel/endpoint";

const ${pascal(name)} = v.pipe(v.object({ name: v.string() }), v.title("${pascal(service)}${pascal(name)}"));

export default endpoint({
  method: "GET",
  caller: "anyone",
  summary: "Names the ${words(name)}.",
  answers: { 200: ${pascal(name)} },
  async handle() {
    return ok({ name: "${name}" });
  },
});
`;

const endpointTestOf = (
  service: string,
  name: string,
) => `import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { call, startTestLotus, type TestLotus } from "../../scripts/testing/lotus.ts";

let lotus: TestLotus;
beforeAll(async () => {
  lotus = await startTestLotus();
});
afterAll(() => lotus.stop());

describe("GET /${service}/${name}", () => {
  it("answers", async () => {
    const { status, body } = await call(lotus, "GET /${service}/${name}");
    expect([status, body]).toEqual([200, { name: "${name}" }]);
  });
});
`;

const eventSchemaOf = (name: string) => `
/** ${name}, version 1. */
export const ${pascal(name)} = v.object({
  userId: v.pipe(v.string(), v.uuid()),
});
`;

const subscriberOf = (service: string, name: string) => `/** ${name}. Handles the event. */
import { subscriber } from "#kernel/subscriber";
import { ${pascal(name)} } from "../../functions/${service}/events.ts";

export default subscriber({
  topic: "${name}",
  data: ${pascal(name)},
  async handle() {
    // The work belongs into one statement that also settles the event: see triggers/notification/store.ts.
  },
});
`;

const eventTestOf = (service: string, name: string) => `import * as v from "valibot";
import { describe, expect, it } from "vitest";
import { ${pascal(name)} } from "../../functions/${service}/events.ts";
import subscriber from "./${name}.ts";

describe("${name}", () => {
  it("has a topic and a schema", () => {
    expect(subscriber).toMatchObject({ topic: "${name}" });
    expect(v.is(${pascal(name)}, { userId: crypto.randomUUID() })).toBe(true);
    expect(v.is(${pascal(name)}, {})).toBe(false);
  });
});
`;

const migrationOf = (service: string) => `create schema ${service};

create table ${service}.items (
  id uuid primary key,
  name text not null
);
`;

const functionsOf = (service: string) => `grant usage on schema ${service} to "lotus:${service}";
grant select on ${service}.items to "lotus:${service}";
`;

const listOf = (service: string) => `/** GET /${service}/list. */
import * as v from "valibot";
import { query } from "#kernel/database";
import { endpoint, ok } from "#kernel/endpoint";

const Item = v.pipe(v.object({ name: v.string() }), v.title("${pascal(service)}Item"));

export default endpoint({
  method: "GET",
  caller: "anyone",
  summary: "Lists the items.",
  answers: { 200: v.array(Item) },
  async handle() {
    return ok(await query<{ name: string }>("${service}-list", "select name from ${service}.items order by id", []));
  },
});
`;

const listTestOf = (service: string) => endpointTestOf(service, "list").replace(`{ name: "list" }]`, "[]]");

/** The row of an endpoint in the README's table of calls. */
const rowOf = (service: string, name: string, answer: string) => `| \`GET /${service}/${name}\` | 200 ${answer} | |\n`;

async function write(file: string, text: string): Promise<string> {
  if (existsSync(join(ROOT, file))) throw new Refusal(`${file} exists already. Choose another name.`);
  await mkdir(dirname(join(ROOT, file)), { recursive: true });
  await writeFile(join(ROOT, file), text);
  return file;
}

/** Adds a row below the last call of the README's table. */
async function addRow(row: string): Promise<string> {
  const file = join(ROOT, "README.md");
  const text = await readFile(file, "utf8");
  const last = [...text.matchAll(/^\| `(?:GET|POST) \/.*\n/gm)].at(-1);
  if (last === undefined) throw new Refusal(`README.md has no table of calls. Add this row by hand: ${row}`);
  const end = last.index + last[0].length;
  await writeFile(file, text.slice(0, end) + row + text.slice(end));
  return "README.md";
}

const EVENTS_FUNCTIONS = "functions/events/schema/functions.sql";
/** The end of each list of all services in the grants of the schema `events`. */
const EVERY_SERVICE = /("lotus:notification", "lotus:events"[^;]*);/g;

/** Lets the role of a service run triggers. The grants of a schema are in its functions.sql: another file would lose them. */
async function grantEvents(service: string): Promise<string> {
  const file = join(ROOT, EVENTS_FUNCTIONS);
  const text = await readFile(file, "utf8");
  const granted = text.replace(EVERY_SERVICE, `$1, "lotus:${service}";`);
  if (granted === text)
    throw new Refusal(`${EVENTS_FUNCTIONS} has no grants for every service. Add "lotus:${service}" by hand.`);
  await writeFile(file, granted);
  return EVENTS_FUNCTIONS;
}

async function newEndpoint(service: string, name: string): Promise<string[]> {
  return [
    await write(`functions/${service}/${name}.ts`, endpointOf(service, name)),
    await write(`functions/${service}/${name}.test.ts`, endpointTestOf(service, name)),
    await addRow(rowOf(service, name, `\`{"name": "${name}"}\``)),
  ];
}

async function newEvent(service: string, name: string): Promise<string[]> {
  const subscriber = await write(`triggers/${service}/${name}.ts`, subscriberOf(service, name));
  const test = await write(`triggers/${service}/${name}.test.ts`, eventTestOf(service, name));
  const sample = { userId: "00000000-0000-4000-8000-000000000000" };
  const documented = await write(`docs/events/${name}.v1.sample.json`, `${JSON.stringify([sample])}\n`);
  const events = `functions/${service}/events.ts`;
  const path = join(ROOT, events);
  const before = existsSync(path)
    ? await readFile(path, "utf8")
    : `/** The events of the service ${service}. Other services import only this file. */\nimport * as v from "valibot";\n`;
  await writeFile(path, before + eventSchemaOf(name));
  return [events, subscriber, test, documented];
}

async function newService(service: string): Promise<string[]> {
  return [
    await write(`functions/${service}/schema/001-${service}.sql`, migrationOf(service)),
    await write(`functions/${service}/schema/functions.sql`, functionsOf(service)),
    await grantEvents(service),
    await write(`functions/${service}/list.ts`, listOf(service)),
    await write(`functions/${service}/list.test.ts`, listTestOf(service)),
    await addRow(rowOf(service, "list", "the items")),
  ];
}

/**
 * Writes the first files of something new.
 * @param path SERVICE/NAME of an endpoint or event, or the name of a service
 * @returns the files that were written
 * @throws {UsageError} for a name that cannot be served
 */
export async function createNew(kind: Kind, path: string): Promise<string[]> {
  const [service = "", name = "", ...rest] = path.split("/");
  if (kind === "service") {
    if (!WORD.test(path)) throw new UsageError(`A service has a name of the letters a to z; "${path}" has not.`);
    if (existsSync(join(ROOT, "functions", path))) throw new Refusal(`The service ${path} exists already.`);
    return newService(path);
  }
  if (!WORD.test(service) || !NAME.test(name) || rest.length > 0)
    throw new UsageError(`Name the ${kind} SERVICE/NAME, such as order/cheapest; "${path}" is not such a name.`);
  if (!existsSync(join(ROOT, "functions", service)))
    throw new Refusal(`The service ${service} does not exist. Create it: npx lotus new service ${service}`);
  return kind === "endpoint" ? newEndpoint(service, name) : newEvent(service, name);
}
