/** lotus dead-letters: events that no subscriber could handle, and why. */
import { command } from "../cli/command.ts";
import { UsageError } from "../cli/errors.ts";
import { database, folder, json, readFolder } from "../cli/options.ts";
import { print, printJson } from "../cli/output.ts";
import { printable, table } from "../cli/text.ts";
import { adminUrl, placeOf, withAdmin } from "../database/connect.ts";
import { type DeadLetter, getDeadLetter, listDeadLetters, replay } from "../database/dead-letters.ts";

const REASON_LENGTH_MAX = 100;
const ACTIONS = "list, show ID, replay ID or replay all";

function printList(letters: readonly DeadLetter[]): void {
  if (letters.length === 0) {
    print("There are no dead letters.");
    return;
  }
  const cells = letters.map(({ id, moved_at: since, subscriber, attributes, reason }) => [
    id,
    since.toISOString().slice(0, 19),
    subscriber,
    attributes.type ?? "",
    reason.slice(0, REASON_LENGTH_MAX),
  ]);
  print(table([["id", "since (UTC)", "subscriber", "type", "reason"], ...cells]));
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
  return (action === "show" && /^\d+$/.test(id)) || (action === "replay" && /^(\d+|all)$/.test(id));
}

export default command({
  about: "Lists, shows and replays dead letters. A replayed event goes back into the outbox.",
  usage: "[list | show ID | replay ID | replay all]",
  options: { database, folder, json },
  async run(values, [action = "list", id, ...rest]) {
    if (rest.length > 0 || !isAction(action, id)) {
      const words = [action, id, ...rest].filter((word) => word !== undefined).join(" ");
      throw new UsageError(`"${words}" is no action of lotus dead-letters. Use ${ACTIONS}.`);
    }
    const target = {
      url: values.database,
      folder: readFolder(values.folder),
      folderGiven: values.folder !== undefined,
    };
    if (!values.json) print(`Database ${placeOf(await adminUrl(target))}`);
    await withAdmin(target, async (client) => {
      if (action === "list") {
        const letters = await listDeadLetters(client);
        return values.json ? printJson(letters.map(asJson)) : printList(letters);
      }
      if (action === "show") {
        const letter = await getDeadLetter(client, id ?? "");
        return values.json ? printJson(asJson(letter)) : printOne(letter);
      }
      const { count, failures } = await replay(client, id ?? "");
      for (const failure of failures) console.error(failure);
      if (failures.length > 0) process.exitCode = 1;
      if (values.json) return printJson({ replayed: count, failures });
      print(`${count} put back into the outbox; the relay publishes them in about a minute.`);
    });
  },
});
