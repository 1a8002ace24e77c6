/** The calls of the OpenAPI document as forms, with a demo user, the answer and the same call for curl. */
import { useState } from "preact/hooks";
import { type Answer, bearer, callFunction, demoUser, ensureUser, getOpenApi, traceOf } from "./api.ts";
import { pretty } from "./format.ts";
import { Action, Copy, Problem, useData } from "./parts.tsx";
import { href, route } from "./route.ts";
import { spanTarget } from "./store.ts";

interface Parameter {
  readonly name: string;
  readonly in: "query" | "header";
  readonly required?: boolean;
  readonly description?: string;
  readonly example?: unknown;
}

interface Operation {
  readonly operationId: string;
  readonly summary: string;
  readonly description?: string;
  readonly security?: readonly unknown[];
  readonly parameters?: readonly Parameter[];
  readonly requestBody?: { readonly content: Readonly<Record<string, { readonly example?: unknown }>> };
  readonly responses: Readonly<Record<string, { readonly description: string }>>;
}

interface OpenApi {
  readonly servers: readonly { readonly url: string }[];
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>;
}

interface CallForm {
  readonly method: string;
  readonly path: string;
  readonly operation: Operation;
}

/** Parameters whose example is a name made for one request. */
const EMPTY_AT_FIRST = ["cursor", "id", "to"];

function useCalls(): { calls: readonly CallForm[]; problem: string } {
  const { data, problem } = useData(() => getOpenApi<OpenApi>(), "");
  const calls = Object.entries(data?.paths ?? {}).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ method: method.toUpperCase(), path, operation })),
  );
  return { calls, problem };
}

/** Returns text in single quotes of a POSIX shell. */
const quote = (text: string) => `'${text.replaceAll("'", "'\\''")}'`;

/** Returns text with the parts in backticks as code. */
const withCode = (text: string) =>
  text.split("`").map((part, index) => (index % 2 === 1 ? <code key={index}>{part}</code> : part));

function exampleOf({ name, example }: Parameter): string {
  if (name === "Idempotency-Key") return crypto.randomUUID();
  return example === undefined || EMPTY_AT_FIRST.includes(name) ? "" : String(example);
}

/** Returns what the OpenAPI document says of a code of a problem. */
function explain(operation: Operation, answer: Answer): string {
  try {
    const { code } = JSON.parse(answer.text) as { code?: string };
    const text = operation.responses[answer.status]?.description
      .split(" · ")
      .find((part) => part.includes(`\`${code}\``));
    return text === undefined ? "" : `${text.replaceAll("`", "")}.`;
  } catch {
    // Another body than JSON has no code.
    return "";
  }
}

function Form({ call }: { call: CallForm }) {
  const { method, path, operation } = call;
  const parameters = operation.parameters ?? [];
  const example = operation.requestBody?.content["application/json"]?.example;
  const [values, setValues] = useState<Readonly<Record<string, string>>>(() =>
    Object.fromEntries(parameters.map((parameter) => [parameter.name, exampleOf(parameter)])),
  );
  const [body, setBody] = useState(example === undefined ? undefined : JSON.stringify(example, null, 2));
  const [asUser, setAsUser] = useState(operation.security !== undefined && operation.security.length > 0);
  const [answer, setAnswer] = useState<(Answer & { readonly trace: string }) | undefined>(undefined);
  const user = demoUser.value;
  const query = new URLSearchParams(
    parameters.flatMap(({ name, in: place }) => (place === "query" && values[name] ? [[name, values[name]]] : [])),
  ).toString();
  const target = query === "" ? path : `${path}?${query}`;
  const headers = {
    ...Object.fromEntries(
      parameters.flatMap(({ name, in: place }) =>
        place === "header" && values[name] ? [[name.toLowerCase(), values[name]] as const] : [],
      ),
    ),
    ...(asUser && user && bearer(user)),
  };
  const curl = [
    `curl -i -X ${method} ${quote(location.origin + target)}`,
    ...Object.entries({ ...headers, ...(body !== undefined && { "content-type": "application/json" }) }).map(
      ([name, value]) => `-H ${quote(`${name}: ${value}`)}`,
    ),
    ...(body === undefined ? [] : [`--data ${quote(body)}`]),
  ].join(" \\\n  ");
  const send = async () => {
    const authorization = asUser ? bearer(await ensureUser()) : {};
    const result = await callFunction({
      method,
      path: target,
      body,
      headers: { ...headers, ...authorization },
    });
    setAnswer({ ...result, trace: traceOf(result) });
  };
  return (
    <article class="detail" aria-label={`${method} ${path}`}>
      <h2>
        <span class="method">{method}</span>
        {path}
      </h2>
      <p>{withCode(operation.description ?? operation.summary)}</p>
      <div class="fields">
        {parameters.map(({ name, in: place, required, description }) => (
          <label key={name}>
            <span>
              {name} <small>{required ? `${place}, required` : place}</small>
            </span>
            <input
              value={values[name] ?? ""}
              onInput={(event) => setValues({ ...values, [name]: event.currentTarget.value })}
            />
            <small>{withCode(description ?? "")}</small>
          </label>
        ))}
        {body !== undefined && (
          <label>
            <span>
              Body <small>JSON</small>
            </span>
            <textarea rows={5} value={body} onInput={(event) => setBody(event.currentTarget.value)} />
          </label>
        )}
      </div>
      <p class="actions">
        <Action kind="primary" work={send}>
          Send
        </Action>
        <label>
          <input type="checkbox" checked={asUser} onChange={(event) => setAsUser(event.currentTarget.checked)} /> as{" "}
          {user?.email ?? "a new demo user"}
        </label>
        <Copy text={curl} label="Copy as curl" />
        <a href={href("try")}>All calls</a>
      </p>
      {answer !== undefined && (
        <>
          <h3>
            Answer {answer.status} in {answer.milliseconds.toFixed(1)} ms
          </h3>
          <Problem text={answer.status < 400 ? "" : explain(operation, answer)} />
          <pre tabIndex={0}>{pretty(answer.text) || "(no body)"}</pre>
          <p class="links">
            {spanTarget.value === "console" && <a href={href("traces", answer.trace)}>Trace of this call</a>}
            <a href={href("logs", "", { trace: answer.trace })}>Log lines of this call</a>
            <a href={href("events", "", { filter: answer.trace })}>Events of this call</a>
          </p>
          <details>
            <summary>Headers</summary>
            <pre tabIndex={0}>{answer.headers.map(([name, value]) => `${name}: ${value}`).join("\n")}</pre>
          </details>
        </>
      )}
      <details>
        <summary>The same call with curl</summary>
        <pre tabIndex={0}>{curl}</pre>
      </details>
    </article>
  );
}

/** Shows the calls. */
export function Try() {
  const { calls, problem } = useCalls();
  const { id } = route.value;
  const call = calls.find(({ operation }) => operation.operationId === id);
  const user = demoUser.value;
  return (
    <>
      <h1>Try it</h1>
      <p class="actions">
        {user === undefined ? "The demo user is not registered yet." : `Demo user ${user.email}`}
        <Action work={ensureUser}>{user === undefined ? "Register a demo user" : "Log in again"}</Action>
        {user && <Copy text={user.token} label="Copy token" />}
        {user && <a href={href("ledger", user.id)}>Account</a>}
        <a href="/docs">API reference</a>
      </p>
      <Problem text={problem} />
      <div class={call === undefined ? "split" : "split opened"}>
        <ul class="calls">
          {calls.map(({ method, path, operation }) => (
            <li key={operation.operationId}>
              <a
                href={href("try", operation.operationId)}
                aria-current={operation.operationId === id ? "page" : undefined}
                title={operation.summary}
              >
                <span class="method">{method}</span>
                {path}
              </a>
            </li>
          ))}
        </ul>
        {call === undefined ? (
          <p class="empty">Choose a call. Its fields are filled with examples.</p>
        ) : (
          <Form key={id} call={call} />
        )}
      </div>
    </>
  );
}
