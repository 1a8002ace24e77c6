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
/** A table cell of so few words is a label such as "what happens", not a sentence. */
const CELL_WORDS_MAX = 4;

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
      /^(?:What(?:ever)?|Who(?:ever)?)\s(?!(?:is|are|was|does|do|did|can|happens|to)\b[^.]*\?)(?!happens (?:when|if)\b)/,
  },
  {
    name: "inverted order: begin with the subject",
    pattern:
      /^(?:Nor|So neither|Neither (?!the\b)|Of (?:the|an?|those|all|its)\b|Those\b|That which\b|Not (?!all\b|every\b|found\b|run\b|available\b|yet\b|enough\b))/,
  },
  {
    name: "a negative pronoun: use a plain negation",
    pattern: /\b(?:[Nn]obody|[Nn]othing (?:that|but|is)|[Nn]one (?:is|are|of (?:it|them))|no one)\b/,
  },
  {
    name: "a riddle: name the thing",
    pattern:
      /\b(?:(?:is|are|was|were) told|is none|one's own|(?:of its own|of their own)(?=[.,;:)]|$)|of ours|whoever|what is not|what are not|what has no|what they say|what it says|as it is)\b/i,
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

const LINE_COMMENT: Readonly<Record<string, RegExp>> = {
  ".ts": /^\s*(?:\/\/|\/?\*\*?\/?)\s?(.*?)(?:\s*\*\/)?$|\s\/\/ (.*)$/,
  ".mjs": /^\s*(?:\/\/|\/?\*\*?\/?)\s?(.*?)(?:\s*\*\/)?$|\s\/\/ (.*)$/,
  ".cjs": /^\s*(?:\/\/|\/?\*\*?\/?)\s?(.*?)(?:\s*\*\/)?$|\s\/\/ (.*)$/,
  ".sql": /^\s*--\s?(.*)$/,
  ".yaml": /^\s*#\s?(.*)$/,
  ".yml": /^\s*#\s?(.*)$/,
  "": /^\s*#(?!!)\s?(.*)$/,
};

/** Texts in quotes with at least four words: messages, descriptions and names of tests. */
const STRING = /(["`])((?:(?!\1)[^\\]|\\.)*)\1/g;

function passagesOfCode(text: string, extension: string): Passage[] {
  const comment = LINE_COMMENT[extension];
  if (comment === undefined) return [];
  const passages: Passage[] = [];
  let lines: string[] = [];
  let begin = 0;
  const end = () => {
    if (lines.length > 0) passages.push({ line: begin + 1, text: lines.join(" ") });
    lines = [];
  };
  for (const [index, line] of text.split("\n").entries()) {
    const match = comment.exec(line);
    const content = match?.[1] ?? match?.[2];
    if (content !== undefined && !/^(?:biome-ignore|@ts-expect-error)/.test(content)) {
      if (lines.length === 0) begin = index;
      if (/^@\w+/.test(content)) {
        end();
        begin = index;
      }
      if (content.trim() === "") end();
      else lines.push(content.replace(/^@\w+(?: \{[^}]*\})?(?: [\w.]+)?\s*/, "").trim());
      continue;
    }
    end();
    if (extension !== ".ts" && extension !== ".mjs") continue;
    for (const [, , string = ""] of line.matchAll(STRING)) {
      const words = string.replace(/\$\{[^}]*\}/g, "x");
      if (
        /^[A-Z]?[a-z'-]+(?:,? [\w'’,.;:()-]+){3,}/.test(words) &&
        !/^(?:select|insert|update|delete|create|alter|with|grant)\b/i.test(words)
      )
        passages.push({ line: index + 1, text: words });
    }
  }
  end();
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
          .filter((file) => extname(file) in LINE_COMMENT || extname(file) === ".md");
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
