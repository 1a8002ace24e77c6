import { describe, expect, it } from "vitest";
import { readSqlFiles, SERVICES, splitStatements } from "./sql.ts";

describe("splitStatements", () => {
  it("ends a statement only at a semicolon outside comments, strings, names and bodies", () => {
    const text = `-- a; comment
select ';' as "a;b", e'it\\'s;';

/* one; two */ create function f() returns text language sql as $body$
  select $$;$$;
$body$;
select 3`;
    expect(splitStatements(text)).toEqual([
      { line: 2, text: `select ';' as "a;b", e'it\\'s;'` },
      { line: 4, text: "create function f() returns text language sql as $body$\n  select $$;$$;\n$body$" },
      { line: 7, text: "select 3" },
    ]);
  });

  it("finds the statements of every SQL file of the checkout", async () => {
    const { migrations, functions } = await readSqlFiles(new Map(SERVICES.map((service) => [service, service])));
    for (const { path, text } of [...migrations, ...functions]) {
      const found = splitStatements(text);
      expect(found.length, path).toBeGreaterThan(0);
      for (const statement of found)
        expect(statement.text, path).toMatch(/^(create|do|grant|insert|delete|alter|drop)\b/);
    }
  });
});

describe("readSqlFiles", () => {
  it("discovers the services from the folders, events first", () => {
    expect(SERVICES[0]).toBe("events");
    expect(SERVICES).toEqual(expect.arrayContaining(["billing", "notification", "order", "profile"]));
  });

  it("finds each database schema in the folder that has its name", async () => {
    const { migrations } = await readSqlFiles(new Map(SERVICES.map((service) => [service, service])));
    const created = migrations.flatMap(({ path, text }) =>
      [...text.matchAll(/^create schema "?(\w+)"?;/gm)].map(([, schema]) => [schema, path.split("/")[1]]),
    );
    expect(new Set(created.map(([schema]) => schema))).toEqual(new Set(SERVICES));
    for (const [schema, folder] of created) expect(folder).toBe(schema);
  });

  it("replaces the placeholder of a role, and refuses one of an unknown service", async () => {
    const roles = new Map(SERVICES.map((service) => [service, `lotus_a"b_${service}`]));
    const { functions } = await readSqlFiles(roles);
    expect(functions.find(({ service }) => service === "notification")?.text).toContain('to "lotus_a""b_notification"');
    roles.delete("order");
    await expect(readSqlFiles(roles)).rejects.toThrow(
      /^functions\/\w+\/schema\/functions\.sql names the role of order\. The services with a schema are events, /,
    );
  });
});
