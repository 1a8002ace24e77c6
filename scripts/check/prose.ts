/** Checks the prose of the project against the rules of CONTRIBUTING.md: `npm run prose [-- FILE …]`. */
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { extname } from "node:path";
import { parseArgs } from "node:util";

/** The check fails above this number of findings per 1 000 lines of prose. */
export const FINDINGS_PER_1000_LINES_MAX = 2;
/** A sentence should have about 25 words. The check reports a sentence only when it is clearly longer. */
export const SENTENCE_WORDS_MAX = 40;
/** Files without prose of the project. The tests of this check contain wrong sentences on purpose. */
const EXCLUDED = /^(?:LICENSE|package-lock\.json|\.gitignore|scripts\/check\/prose\.(?:test\.)?ts)$/;
/** The files without an extension that contain comments. Others may be data, such as that of a run in another folder. */
const WITHOUT_EXTENSION = /^\.ci\/|(?:^|\/)(?:Dockerfile|\.editorconfig)$/;
/** A table cell of so few words is a label such as "what happens", not a sentence. */
const CELL_WORDS_MAX = 4;
/** A text in quotes with fewer words is a name or a value. */
const STRING_WORDS_MIN = 3;

export interface Finding {
  readonly file: string;
  /** The line, counted from 1. */
  readonly line: number;
  readonly rule: string;
  readonly sentence: string;
}

interface Rule {
  readonly name: string;
  readonly pattern: RegExp;
}

/** Each pattern is tested against one sentence without code. */
const RULES: readonly Rule[] = [
  {
    name: "a clause is the subject: begin with the thing that acts",
    pattern:
      /^(?:(?:What|Who)\s(?!(?:is|are|was|were|does|do|did|can|to)\b[^.]*\?)(?!happens\?)[a-z]|(?:Whatever|Whoever)\s|That which\s)/,
  },
  {
    name: "inverted order: begin with the subject",
    pattern: /^(?:Nor|So neither|Neither|Of (?:the|an?|those|all|its)\b|Those\b|Not (?:the|only|this|that)\b)/,
  },
  {
    name: "a negative pronoun: use a plain negation",
    pattern:
      /^(?:None|Nothing)\b(?![:;])|\b(?:[Nn]obody|[Nn]othing (?:that|but|is)|[Nn]one (?:is|are|of (?:it|them))|no one)\b/,
  },
  {
    name: "is no …: use a verb with a plain negation",
    pattern: /\b(?:is|are|was|were) no\b/i,
  },
  {
    name: "a riddle: name the thing",
    pattern:
      /\b(?:(?:is|are|was|were|be|been) told|is none|one's own|of (?:its|their) own|of ours|whoever|whatever (?:is|does|has)|what is not|what are not|what has no|what they say|what it says|as it is)\b/i,
  },
  { name: "reference text has no we", pattern: /\b(?:[Ww]e|[Oo]urs?|[Uu]s)\b(?!-)/ },
  { name: "a private word: bury → move to the dead letters", pattern: /\bbur(?:y|ied|ies|ying)\b/i },
  { name: "a private word: house → project", pattern: /\bhouse\b/i },
  {
    name: "a private word: letter → dead letter",
    pattern: /(?<!dead[ -])\bletters?\b(?! of (?:happiness|grief))(?=.*\b(?:event|replay|reason|outbox)\b)/i,
  },
];

/** A piece of prose: consecutive lines of a comment or of a paragraph. */
interface Passage {
  readonly line: number;
  readonly text: string;
}

function passagesOfMarkdown(text: string): Passage[] {
  const passages: Passage[] = [];
  let fenced = false;
  let begin = 0;
  let lines: string[] = [];
  const end = () => {
    if (lines.length > 0) passages.push({ line: begin + 1, text: lines.join(" ") });
    lines = [];
  };
  for (const [index, line] of text.split("\n").entries()) {
    if (/^\s*(?:```|~~~)/.test(line)) {
      end();
      fenced = !fenced;
    } else if (fenced) continue;
    else if (/^\s*\|/.test(line)) {
      end();
      for (const cell of line.split("|"))
        if (cell.trim().split(/\s+/).length > CELL_WORDS_MAX) passages.push({ line: index + 1, text: cell.trim() });
    } else if (/^\s*(?:#|[-*+] |\d+\. |>|$)/.test(line)) {
      end();
      begin = index;
      const content = line.replace(/^\s*(?:#+|[-*+]|\d+\.|>)\s*/, "").trim();
      if (content !== "") lines = [content];
      if (/^\s*#/.test(line)) end();
    } else {
      if (lines.length === 0) begin = index;
      lines.push(line.trim());
    }
  }
  end();
  return passages;
}

/** Collects lines to passages: an empty line and a tag such as `@param` begin the next one. */
function paragraphs(lines: readonly string[], first: number): Passage[] {
  const passages: Passage[] = [];
  let next = true;
  for (const [index, line] of lines.entries()) {
    const text = line.trim();
    const tagged = /^@\w+/.test(text);
    if (text !== "" && !/^(?:biome-ignore|@ts-expect-error)/.test(text)) {
      const content = text.replace(/(?:^|(?<=\s))@\w+(?: \{[^}]*\})?(?: [\w.]+(?= ))?\s*/g, "");
      const last = passages.at(-1);
      if (last === undefined || next || tagged) passages.push({ line: first + index, text: content });
      else passages[passages.length - 1] = { line: last.line, text: `${last.text} ${content}` };
    }
    next = text === "";
  }
  return passages;
}

/** Returns the prose of a text in quotes: a message, a description or the name of a test. */
function passagesOfString(string: string, first: number): Passage[] {
  const words = string.replace(/\\"/g, '"');
  if (/^\s*(?:select|insert|update|delete|create|alter|with|grant)\b/.test(words)) return [];
  return paragraphs(words.replace(/\\n/g, "\n\n").split("\n"), first)
    .map(({ line, text }) => ({ line: Math.min(line, first + string.split("\n").length - 1), text }))
    .filter(({ text }) => {
      const all = text.split(/\s+/);
      const plain = all.filter((word) => /^["'(]*[A-Za-z][a-z'’-]*["'.,;:!?)]*$/.test(word));
      return all.length >= STRING_WORDS_MIN && plain.length > all.length / 2;
    });
}

/** A comment or a quoted text of a file. */
interface Token {
  readonly kind: "comment" | "string";
  readonly index: number;
  readonly text: string;
}

const SCRIPT =
  /(?<comment>\/\/[^\n]*(?:\n[ \t]*\/\/[^\n]*)*|\/\*[\s\S]*?\*\/)|"(?<string>(?:[^"\\\n]|\\.)*)"|'(?:[^'\\\n]|\\.)*'|(?<=[=(,:[!&|?{};]\s*)\/(?![*/])(?:[^/\\\n[]|\\.|\[(?:[^\]\\\n]|\\.)*\])+\/[a-z]*|(?<brace>[{}`])/g;
const TEMPLATE = /\\[\s\S]|`|\$\{/g;

/** Finds the comments and the strings of TypeScript. An expression in a template string becomes the word "x". */
function* scriptTokens(text: string): Generator<Token> {
  /** The templates around the position. Undefined stands for a brace of the code. */
  const open: ({ index: number; words: string } | undefined)[] = [];
  let position = 0;
  const readTemplate = function* (template: { index: number; words: string }): Generator<Token> {
    for (;;) {
      TEMPLATE.lastIndex = position;
      const match = TEMPLATE.exec(text);
      template.words += text.slice(position, match?.index);
      position = match === null ? text.length : TEMPLATE.lastIndex;
      if (match?.[0].startsWith("\\")) template.words += match[0];
      else if (match?.[0] === "${") {
        template.words += "x";
        open.push(template);
        return;
      } else {
        yield { kind: "string", index: template.index, text: template.words };
        return;
      }
    }
  };
  for (;;) {
    SCRIPT.lastIndex = position;
    const match = SCRIPT.exec(text);
    if (match === null) return;
    position = SCRIPT.lastIndex;
    const { comment, string, brace } = match.groups ?? {};
    if (comment !== undefined) yield { kind: "comment", index: match.index, text: comment };
    else if (string !== undefined) yield { kind: "string", index: match.index, text: string };
    else if (brace === "{") open.push(undefined);
    else if (brace === "`") yield* readTemplate({ index: position, words: "" });
    else if (brace === "}") {
      const template = open.pop();
      if (template !== undefined) yield* readTemplate(template);
    }
  }
}

const tokensBy = (pattern: RegExp) =>
  function* (text: string): Generator<Token> {
    for (const { index, groups: { comment, string = "" } = {} } of text.matchAll(pattern))
      yield comment === undefined ? { kind: "string", index, text: string } : { kind: "comment", index, text: comment };
  };

const sqlTokens = tokensBy(/(?<comment>--[^\n]*(?:\n[ \t]*--[^\n]*)*)|'(?<string>(?:[^']|'')*)'/g);
const jsonTokens = tokensBy(/"(?<string>(?:[^"\\\n]|\\.)*)"/g);
const configurationTokens = tokensBy(
  /(?<comment>(?<=^|\s)#(?!!)[^\n]*(?:\n[ \t]*#[^\n]*)*)|(?<=^[ \t-]*[\w-]+:[ \t]+["']?)(?<string>[^\s"'#|>][^"'\n]*)/gm,
);
/** The words between two tags of JSX. */
const jsxTokens = tokensBy(/(?<!=)[>}](?<string>[^<>{}=*]*[a-z] [^<>{}=*]*)(?=[<{])/g);

/** The functions that find comments and texts in a file with this extension. */
const TOKENS: Readonly<Record<string, readonly ((text: string) => Generator<Token>)[]>> = {
  ".ts": [scriptTokens],
  ".tsx": [scriptTokens, jsxTokens],
  ".mjs": [scriptTokens],
  ".cjs": [scriptTokens],
  ".css": [scriptTokens],
  ".go": [scriptTokens],
  ".sql": [sqlTokens],
  ".json": [jsonTokens],
  ".yaml": [configurationTokens],
  ".yml": [configurationTokens],
  "": [configurationTokens],
};

function passagesOfCode(text: string, extension: string): Passage[] {
  const passages: Passage[] = [];
  for (const tokensOf of TOKENS[extension] ?? []) {
    for (const token of tokensOf(text)) {
      const line = text.slice(0, token.index).split("\n").length;
      if (token.kind === "string") passages.push(...passagesOfString(token.text, line));
      else {
        const lines = token.text.replace(/\*\/$/, "").split("\n");
        const content = lines.map((one) => one.replace(/^\s*(?:\/\*\*?|\*|\/\/|--|#)?/, ""));
        passages.push(...paragraphs(content, line));
      }
    }
  }
  return passages;
}

/** Removes code, links and quotations: their words are not the author's. */
function withoutCode(text: string): string {
  return text
    .replace(/`[^`]*`/g, "CODE")
    .replace(/\[([^\]]*)\]\([^)]*\)/g, "$1")
    .replace(/https?:\/\/\S+/g, "URL")
    .replace(/"[^"]*"/g, "QUOTE");
}

/**
 * Returns the findings in one file, and the number of its lines of prose.
 * @param file the path, whose extension tells where prose stands
 * @param text the content
 */
export function checkProse(file: string, text: string): { findings: Finding[]; lines: number } {
  const extension = extname(file);
  const passages = extension === ".md" ? passagesOfMarkdown(text) : passagesOfCode(text, extension);
  const findings: Finding[] = [];
  let lines = 0;
  for (const { line, text: passage } of passages) {
    lines += Math.ceil(passage.length / 100);
    for (const sentence of withoutCode(passage).split(/(?<=[.!?:;])\s+/)) {
      const begun = sentence.replace(/^[\s*_("'-]+/, "");
      const capital = begun.charAt(0).toUpperCase() + begun.slice(1);
      const tooLong = begun.split(/\s+/).length > SENTENCE_WORDS_MAX;
      const rule =
        RULES.find(({ pattern }) => pattern.test(capital))?.name ??
        (tooLong ? `a sentence has more than ${SENTENCE_WORDS_MAX} words` : undefined);
      if (rule !== undefined) findings.push({ file, line, rule, sentence: begun });
    }
  }
  return { findings, lines };
}

function main(): void {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { help: { type: "boolean" }, all: { type: "boolean" } },
  });
  if (values.help) {
    console.log(
      "Usage: npm run prose [-- FILE …] [--all]\nChecks comments, messages and documents. --all prints each finding, not only the first 40.",
    );
    return;
  }
  const files =
    positionals.length > 0
      ? positionals
      : execFileSync("git", ["ls-files", "--cached", "--others", "--exclude-standard"], { encoding: "utf8" })
          .split("\n")
          .filter((file) => file !== "" && !EXCLUDED.test(file))
          .filter((file) => extname(file) !== "" || WITHOUT_EXTENSION.test(file))
          .filter((file) => extname(file) in TOKENS || extname(file) === ".md");
  const findings: Finding[] = [];
  let lines = 0;
  for (const file of files) {
    const checked = checkProse(file, readFileSync(file, "utf8"));
    findings.push(...checked.findings);
    lines += checked.lines;
  }
  const shown = values.all || positionals.length > 0 ? findings : findings.slice(0, 40);
  for (const { file, line, rule, sentence } of shown)
    console.log(`${file}:${line}: ${rule}\n    ${sentence.slice(0, 140)}`);
  const rate = (findings.length / Math.max(1, lines)) * 1000;
  console.log(
    `${findings.length} findings in ${lines} lines of prose: ${rate.toFixed(1)} per 1 000 lines; at most ${FINDINGS_PER_1000_LINES_MAX} are allowed.`,
  );
  if (rate > FINDINGS_PER_1000_LINES_MAX) process.exitCode = 1;
}

if (import.meta.filename === process.argv[1]) main();
