/** The ledger: sums, verification, accounts, and the entries of an account with their hashes. */

import { useEffect, useState } from "preact/hooks";
import type { AccountDetail, AccountRow, EntryRow, Job, LedgerSummary } from "../protocol.ts";
import { demoUser, get, post } from "./api.ts";
import { clock, count, money, short } from "./format.ts";
import { Action, Copy, FilterBox, Problem, Status, sentenceOf, useData } from "./parts.tsx";
import { href, route } from "./route.ts";
import { figures, jobs, recentRequests } from "./store.ts";

const HASH_DIGITS_SHOWN = 12;

/** A number that changes at most once a second, while functions of the ledger answer requests. */
function useMovement(): number {
  const [number, setNumber] = useState(0);
  const rate = [...figures.value.keys()].reduce((sum, name) => sum + recentRequests(name), 0);
  const at = Math.floor(Date.now() / 1000);
  useEffect(() => {
    if (rate > 0) setNumber(at);
  }, [rate, at]);
  return number;
}

/** Shows the last job of a name with its progress. */
export function JobLine({ job }: { job: Job | undefined }) {
  if (job === undefined) return null;
  return (
    <p class="job">
      <Status word={job.state} /> {job.name}: {job.text}
      {job.state === "running" && job.of !== undefined && (
        <>
          {" "}
          <progress max={job.of} value={job.done ?? 0} aria-label={job.name} />
        </>
      )}
    </p>
  );
}

function Summary({ movement }: { movement: number }) {
  const { data, problem } = useData(() => get<LedgerSummary>("ledger"), movement);
  const verification = jobs.value.find(({ name }) => name === "Verify the ledger");
  const sum = (data?.kinds ?? []).reduce((total, { balance }) => total + BigInt(balance), 0n);
  return (
    <section class="card">
      <h2>Trial balance</h2>
      <Problem text={problem} />
      {data !== undefined && (
        <div class="wide plain" tabIndex={0} role="group" aria-label="Trial balance, scrollable">
          <table>
            <thead>
              <tr>
                <th scope="col">Accounts</th>
                <th scope="col" class="number">
                  Number
                </th>
                <th scope="col" class="number">
                  Balance
                </th>
              </tr>
            </thead>
            <tbody>
              {data.kinds.map(({ kind, accounts, balance }) => (
                <tr key={kind}>
                  <th scope="row">{kind}</th>
                  <td class="number">{count(Number(accounts))}</td>
                  <td class="number">{money(balance)}</td>
                </tr>
              ))}
              <tr>
                <th scope="row">Sum</th>
                <td />
                <td class="number">
                  <Status word={sum === 0n ? "balanced" : "not balanced"} /> <strong>{money(sum.toString())}</strong>
                </td>
              </tr>
            </tbody>
          </table>
        </div>
      )}
      {data !== undefined && (
        <p>
          {count(Number(data.transfers))} transfers, {count(Number(data.entries))} entries.{" "}
          {data.seal === null ? (
            "The ledger has no seal yet: a trigger makes one each hour."
          ) : (
            <>
              Last seal {data.seal.moment.slice(0, 19).replace("T", " ")} UTC, {count(Number(data.seal.accounts))}{" "}
              accounts, <span class="mono">{data.seal.hash.slice(0, HASH_DIGITS_SHOWN)}…</span>{" "}
              <Copy text={`${data.seal.moment}=${data.seal.hash}`} label="Copy seal" />
            </>
          )}
        </p>
      )}
      <Action work={() => post("ledger/verify")} disabled={verification?.state === "running" ? "is running" : ""}>
        Verify the ledger
      </Action>
      <JobLine job={verification} />
    </section>
  );
}

function Accounts({ movement }: { movement: number }) {
  const search = route.value.query.get("filter") ?? "";
  const { data, problem } = useData(
    () => get<AccountRow[]>(`ledger/accounts?search=${encodeURIComponent(search)}`),
    `${search} ${movement}`,
  );
  return (
    <section>
      <h2>Accounts</h2>
      <div class="toolbar">
        <FilterBox text={search} placeholder="email or start of the id" />
        {demoUser.value && <a href={href("ledger", demoUser.value.id)}>Account of the demo user</a>}
      </div>
      <Problem text={problem} />
      {data?.length === 0 && (
        <p class="empty">{search === "" ? "Lotus has no users yet." : "No account matches the filter."}</p>
      )}
      {data !== undefined && data.length > 0 && (
        <div class="wide" tabIndex={0} role="group" aria-label="Accounts, scrollable">
          <table>
            <caption>The newest accounts</caption>
            <thead>
              <tr>
                <th scope="col">Account</th>
                <th scope="col">Email</th>
                <th scope="col" class="number">
                  Entries
                </th>
                <th scope="col" class="number">
                  Balance
                </th>
                <th scope="col">Last hash</th>
              </tr>
            </thead>
            <tbody>
              {data.map(({ id, email, entries, balance, lastHash }) => (
                <tr key={id}>
                  <th scope="row">
                    <a class="mono" href={href("ledger", id)}>
                      {id}
                    </a>
                  </th>
                  <td>{email}</td>
                  <td class="number">{count(Number(entries))}</td>
                  <td class="number">{money(balance)}</td>
                  <td class="mono">{lastHash.slice(0, HASH_DIGITS_SHOWN)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </section>
  );
}

function Entries({ entries }: { entries: readonly EntryRow[] }) {
  return (
    <div class="wide" tabIndex={0} role="group" aria-label="Entries, scrollable">
      <table>
        <caption>Entries, the newest first. Each hash covers the entry, its transfer and the hash before it.</caption>
        <thead>
          <tr>
            <th scope="col" class="number">
              Number
            </th>
            <th scope="col">Time</th>
            <th scope="col">Kind</th>
            <th scope="col" class="number">
              Amount
            </th>
            <th scope="col" class="number">
              Balance after
            </th>
            <th scope="col">Transfer</th>
            <th scope="col">Counterpart</th>
            <th scope="col">Hash</th>
          </tr>
        </thead>
        <tbody>
          {entries.map((entry) => (
            <tr key={entry.number}>
              <th scope="row" class="number">
                {entry.number}
              </th>
              <td>{clock(Date.parse(entry.at) * 1000)}</td>
              <td>{entry.kind}</td>
              <td class="number">{money(entry.amount)}</td>
              <td class="number">{money(entry.balanceAfter)}</td>
              <td class="mono" title={`${entry.transfer}, reference ${entry.reference}`}>
                …{entry.transfer.slice(-8)}
              </td>
              <td class="mono" title={entry.counterpart}>
                {entry.kind === "transfer" ? (
                  <a href={href("ledger", entry.counterpart)}>…{entry.counterpart.slice(-8)}</a>
                ) : (
                  `…${entry.counterpart.slice(-8)}`
                )}
              </td>
              <td class="mono" title={entry.hash}>
                {entry.hash.slice(0, HASH_DIGITS_SHOWN)}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function Account({ id, movement }: { id: string; movement: number }) {
  const { data, problem } = useData(
    () => get<AccountDetail>(`ledger/accounts/${encodeURIComponent(id)}`),
    `${id} ${movement}`,
  );
  const [older, setOlder] = useState<{ id: string; entries: readonly EntryRow[] }>({ id, entries: [] });
  const [failure, setFailure] = useState("");
  const first = data?.entries ?? [];
  const lowest = first.at(-1)?.number;
  const below = older.id === id ? older.entries.filter(({ number }) => Number(number) < Number(lowest ?? 0)) : [];
  const entries = [...first, ...below];
  const last = entries.at(-1)?.number;
  const more = async () => {
    try {
      const next = await get<AccountDetail>(`ledger/accounts/${encodeURIComponent(id)}?before=${last}`);
      setOlder({ id, entries: [...below, ...next.entries] });
    } catch (error) {
      setFailure(sentenceOf(error));
    }
  };
  return (
    <section>
      <p class="actions">
        <a href={href("ledger")}>All accounts</a>
        <Copy text={id} label="Copy id" />
        <Copy text={location.href} label="Copy link" />
        <a href={href("events", "", { filter: id })}>Events of the user</a>
      </p>
      <Problem text={problem} />
      <Problem text={failure} />
      {data !== undefined && (
        <>
          <h2>
            {data.account.email ?? short(id)}: {money(data.account.balance)}
          </h2>
          {entries.length === 0 ? <p class="empty">The account has no entry yet.</p> : <Entries entries={entries} />}
          {last !== undefined && last !== "1" && (
            <p>
              <button type="button" onClick={() => void more()}>
                Older entries
              </button>
            </p>
          )}
        </>
      )}
    </section>
  );
}

/** Shows the ledger. */
export function Ledger() {
  const movement = useMovement();
  const { id } = route.value;
  return (
    <>
      <h1>Ledger</h1>
      {id === "" ? (
        <>
          <Summary movement={movement} />
          <Accounts movement={movement} />
        </>
      ) : (
        <Account key={id} id={id} movement={movement} />
      )}
    </>
  );
}
