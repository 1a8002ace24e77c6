/** lotus dead-letters: lists, shows, replays and drops events that their subscriber could not handle. */
import { command } from "../cli/command.ts";
import { UsageError } from "../cli/errors.ts";
import { database, folder, json } from "../cli/options.ts";
import { print, printJson } from "../cli/output.ts";
import { printable, table } from "../cli/text.ts";
import { adminUrl, placeOf, targetOf, withAdmin } from "../database/connect.ts";
import {
  type DeadLetter,
  dropDeadLetter,
  getDeadLetter,
  type ListedDeadLetter,
  listDeadLetters,
  replay,
} from "../database/dead-letters.ts";

const ACTIONS = "list, show ID, replay ID, replay all or drop ID";

function printList(letters: readonly ListedDeadLetter[], more: number): void {
  if (letters.length === 0) {
    print("The list of dead letters is empty.");
    return;
  }
  const cells = letters.map(({ id, moved_at: since, subscriber, type, reason }) => [
    id,
    since.toISOString().slice(0, 19),
    subscriber,
    type,
    reason,
  ]);
  print(table([["id", "since (UTC)", "subscriber", "type", "reason"], ...cells]));
  if (more > 0) print(`… and ${more} older ones.`);
}

function printOne({ subscriber, reason, attributes, body }: DeadLetter): void {
  print(`${subscriber} could not handle this event. ${printable(reason)}\n`);
  print(table([["attribute", "value"], ...Object.entries(attributes)]));
  const lines = body?.toString("utf8").split("\n") ?? ["(no data)"];
  print(`\n${lines.map(printable).join("\n")}`);
}

const asJson = (letter: DeadLetter) => ({ ...letter, body: letter.body?.toString("base64") ?? null });

function isAction(action: string, id: string | undefined): boolean {
  if (action === "list") return id === undefined;
  if (id === undefined) return false;
  return (["show", "drop"].includes(action) && /^\d+$/.test(id)) || (action === "replay" && /^(\d+|all)$/.test(id));
}

export default command({
  about: "Lists, shows, replays and deletes dead letters. A replayed event goes back into the outbox.",
  usage: "[list | show ID | replay ID | replay all | drop ID]",
  options: { database, folder, json },
  async run(values, [action = "list", id, ...rest]) {
    if (rest.length > 0 || !isAction(action, id)) {
      const words = [action, id, ...rest].filter((word) => word !== undefined).join(" ");
      throw new UsageError(`"${words}" is not an action of lotus dead-letters. Use ${ACTIONS}.`);
    }
    const target = targetOf(values);
    if (!values.json) print(`Database ${placeOf(await adminUrl(target))}`);
    await withAdmin(target, async (client) => {
      if (action === "list") {
        const { letters, more } = await listDeadLetters(client);
        return values.json ? printJson(letters) : printList(letters, more);
      }
      if (action === "show") {
        const letter = await getDeadLetter(client, id ?? "");
        return values.json ? printJson(asJson(letter)) : printOne(letter);
      }
      if (action === "drop") {
        await dropDeadLetter(client, id ?? "");
        return values.json ? printJson({ dropped: id }) : print(`Dead letter ${id} is deleted.`);
      }
      const { count, failures } = await replay(client, id ?? "");
      for (const failure of failures) console.error(failure);
      if (failures.length > 0) process.exitCode = 1;
      if (values.json) return printJson({ replayed: count, failures });
      print(`${count} put back into the outbox; the relay publishes them in about a minute.`);
    });
  },
});
