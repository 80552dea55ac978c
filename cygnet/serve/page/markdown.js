// Markdown to nodes of the page. A model writes this text, so it is hostile until shown otherwise:
// elements are made by name here, everything else becomes text, links lead to http(s) alone, and
// no image is fetched. The work grows with the text's length alone, whatever the text.

import { copyButton, element } from "./dom.js";

const MAX_DEPTH = 8; // of quotes and lists in one another
const MAX_OPEN = 16; // emphasis in emphasis
const MAX_COLUMNS = 100;
const MAX_LABEL = 300; // characters of a link's text
const MAX_URL = 2000;

const sources = new WeakMap(); // node -> the lines that it was made of

/** Show `text` in `target`. Blocks that are there already stay, so that a stream only adds. */
export function renderMarkdown(target, text) {
  const lines = text.split("\n");
  let shown = target.firstChild;
  for (const block of blocks(lines, 0)) {
    const source = lines.slice(block.from, block.to).join("\n");
    if (shown && sources.get(shown) === source) {
      shown = shown.nextSibling;
      continue;
    }
    const made = block.build();
    sources.set(made, source);
    if (shown) {
      const next = shown.nextSibling;
      shown.replaceWith(made);
      shown = next;
    } else target.append(made);
  }
  while (shown) {
    const next = shown.nextSibling;
    shown.remove();
    shown = next;
  }
}

// --- blocks -----------------------------------------------------------------------------------

/** Return the blocks of the lines: {from, to, build}, in order; blank lines are in none. */
function blocks(lines, depth) {
  const found = [];
  for (let i = 0; i < lines.length; ) {
    if (!lines[i].trim()) {
      i += 1;
      continue;
    }
    const block = blockAt(lines, i, depth);
    found.push({ from: i, ...block });
    i = block.to;
  }
  return found;
}

/** Return the block that begins at a line. A reader may look at all lines, so none runs in vain
 *  once another has found one. */
function blockAt(lines, from, depth) {
  for (const read of readers) {
    const block = read(lines, from, depth);
    if (block) return block;
  }
  return paragraph(lines, from);
}

function children(lines, depth) {
  return blocks(lines, depth).map((block) => block.build());
}

const indentOf = (line) => line.length - line.trimStart().length;

function runLength(text, from) {
  let end = from;
  while (end < text.length && text[end] === text[from]) end += 1;
  return end - from;
}

/** Return how the line opens a fenced block of code: {mark, length, language}. */
function fenceOf(line) {
  const text = line.trimStart();
  if (text[0] !== "`" && text[0] !== "~") return null;
  const length = runLength(text, 0);
  const language = text.slice(length).trim();
  if (length < 3 || (text[0] === "`" && language.includes("`"))) return null;
  return { mark: text[0], length, language };
}

function fencedCode(lines, from) {
  const fence = fenceOf(lines[from]);
  if (!fence) return null;
  let end = from + 1;
  const closes = (line) => {
    const other = fenceOf(line);
    return other && other.mark === fence.mark && other.length >= fence.length && !other.language;
  };
  while (end < lines.length && !closes(lines[end])) end += 1;
  const indent = indentOf(lines[from]);
  const code = lines.slice(from + 1, end).map((line) => line.slice(Math.min(indent, indentOf(line))));
  return { to: Math.min(end + 1, lines.length), build: () => codeBlock(code.join("\n"), fence.language) };
}

function codeBlock(code, language) {
  return element(
    "div",
    { class: "code" },
    element("div", { class: "code-head" }, element("span", { text: language.slice(0, 40) }), copyButton(() => code)),
    element("pre", { tabindex: "0" }, element("code", { text: code })),
  );
}

function heading(lines, from) {
  const level = lines[from][0] === "#" ? runLength(lines[from], 0) : 0;
  if (level < 1 || level > 6 || !/\s/.test(lines[from][level] ?? " ")) return null;
  // The page's own headings are h1 and h2.
  const tag = `h${Math.min(level + 2, 6)}`;
  const text = lines[from].slice(level).trim();
  return { to: from + 1, build: () => element(tag, {}, inline(text)) };
}

function rule(lines, from) {
  const marks = lines[from].replace(/\s/g, "");
  if (marks.length < 3 || !"-*_".includes(marks[0]) || runLength(marks, 0) !== marks.length) return null;
  return { to: from + 1, build: () => element("hr") };
}

const isQuote = (line) => line.trimStart()[0] === ">";

function quote(lines, from, depth) {
  if (!isQuote(lines[from]) || depth >= MAX_DEPTH) return null;
  let to = from;
  while (to < lines.length && isQuote(lines[to])) to += 1;
  const inner = lines.slice(from, to).map((line) => {
    const text = line.trimStart().slice(1);
    return text[0] === " " ? text.slice(1) : text;
  });
  return { to, build: () => element("blockquote", {}, children(inner, depth + 1)) };
}

/** Return the mark that begins an item of a list: {indent, offset of the text, number or null}. */
function itemMark(line) {
  const found = /^(\s*)([-*+]|(\d{1,9})[.)])(?=\s|$)/.exec(line);
  if (!found) return null;
  const number = found[3] === undefined ? null : Number(found[3]);
  return { indent: found[1].length, offset: found[0].length + 1, number };
}

function list(lines, from, depth) {
  const first = itemMark(lines[from]);
  if (!first || depth >= MAX_DEPTH) return null;
  const items = [];
  let i = from;
  for (; i < lines.length; i++) {
    const mark = itemMark(lines[i]);
    if (mark && mark.indent <= first.indent + 1) {
      if ((mark.number === null) !== (first.number === null)) break;
      items.push([lines[i].slice(mark.offset)]);
    } else if (!lines[i].trim()) {
      const next = lines[i + 1] ?? "";
      if (!itemMark(next) && indentOf(next) <= first.indent) break;
      items.at(-1).push("");
    } else if (indentOf(lines[i]) > first.indent) {
      items.at(-1).push(lines[i].slice(Math.min(indentOf(lines[i]), first.offset)));
    } else if (startsBlock(lines, i) || !lines[i - 1].trim()) break;
    else items.at(-1).push(lines[i]);
  }
  const start = first.number !== null && first.number !== 1 ? first.number : null;
  const tag = first.number === null ? "ul" : "ol";
  return { to: i, build: () => element(tag, { start }, items.map((item) => listItem(item, depth))) };
}

function listItem(lines, depth) {
  const task = /^\[([ xX])\] /.exec(lines[0]);
  const box = task ? `${task[1] === " " ? "☐" : "☑"} ` : null;
  const inner = task ? [lines[0].slice(task[0].length), ...lines.slice(1)] : lines;
  const made = children(inner, depth + 1);
  // A first paragraph stands in the item's own line.
  const flat = made[0]?.tagName === "P" ? [...made[0].childNodes, ...made.slice(1)] : made;
  return element("li", { class: task && "task" }, box, flat);
}

function cells(line) {
  const found = [""];
  const text = line.trim().replace(/^\|/, "");
  for (let i = 0; i < text.length; i++) {
    if (text[i] === "\\" && text[i + 1] === "|") found[found.length - 1] += text[++i];
    else if (text[i] === "|") found.push("");
    else found[found.length - 1] += text[i];
  }
  if (found.length > 1 && !found.at(-1).trim()) found.pop();
  return found.map((cell) => cell.trim());
}

function table(lines, from) {
  if (!lines[from].includes("|") || !lines[from + 1]?.includes("-")) return null;
  const head = cells(lines[from]);
  const marks = cells(lines[from + 1]);
  if (head.length > MAX_COLUMNS || marks.length !== head.length || !marks.every((mark) => /^:?-+:?$/.test(mark))) return null;
  let to = from + 2;
  while (to < lines.length && lines[to].includes("|")) to += 1;
  const sides = marks.map((mark) => (mark.endsWith(":") ? (mark[0] === ":" ? "middle" : "right") : null));
  const row = (texts, tag) =>
    element("tr", {}, texts.map((text, column) => element(tag, { class: sides[column] }, inline(text))));
  const build = () => {
    const body = lines.slice(from + 2, to).map((line) => row(cells(line).slice(0, head.length), "td"));
    const shown = element("table", {}, element("thead", {}, row(head, "th")), element("tbody", {}, body));
    return element("div", { class: "table", tabindex: "0" }, shown);
  };
  return { to, build };
}

const readers = [fencedCode, heading, rule, quote, list, table];

/** Whether a block begins here that ends a paragraph. */
function startsBlock(lines, i) {
  return Boolean(fenceOf(lines[i]) || heading(lines, i) || rule(lines, i) || isQuote(lines[i]) || itemMark(lines[i]));
}

function paragraph(lines, from) {
  let to = from + 1;
  while (to < lines.length && lines[to].trim() && !startsBlock(lines, to) && !table(lines, to)) to += 1;
  // Lines stay lines: poems and recipes have them.
  const text = lines.slice(from, to).join("\n");
  return { to, build: () => element("p", {}, inline(text.trim())) };
}

// --- within a line ------------------------------------------------------------------------------

const PUNCTUATION = /[!-/:-@[-`{-~]/;
const isSpace = (character) => character === undefined || /\s/.test(character);
const isWord = (character) => character !== undefined && /[\p{L}\p{N}]/u.test(character);

/** Return the nodes of a text with code, links and emphasis. */
function inline(text, withLinks = true) {
  const line = new Line();
  const special = /[\\`*_~[\n]|!\[|https?:\/\//g;
  const noCode = new Set(); // lengths of runs of backticks that nothing closes any more
  let i = 0;
  for (let found; (found = special.exec(text)); special.lastIndex = i) {
    line.add(text.slice(i, found.index));
    i = found.index;
    const character = text[i];
    if (character === "\\" && PUNCTUATION.test(text[i + 1] ?? "")) {
      line.add(text[i + 1]);
      i += 2;
    } else if (character === "\n") {
      line.push(element("br"));
      i += 1;
    } else if (character === "`") i = codeSpan(line, text, i, noCode);
    else if ("[!h".includes(character)) {
      // Of ![text](address), the text becomes a link too: no image is fetched.
      const link = withLinks && (character === "h" ? bareLink(text, i) : bracketLink(text, i));
      if (link) line.push(link.node);
      else line.add(character);
      i = link ? link.to : i + 1;
    } else if ("*_~".includes(character)) i = emphasis(line, text, i);
    else {
      line.add(character);
      i += 1;
    }
  }
  line.add(text.slice(i));
  return line.nodes();
}

/** A line as it grows: nodes, and the emphasis that is still open. */
class Line {
  #nodes = [];
  #plain = "";
  #open = []; // {mark, at}: `at` is where its content begins

  add(text) {
    this.#plain += text;
  }

  push(node) {
    if (this.#plain) this.#nodes.push(document.createTextNode(this.#plain));
    this.#plain = "";
    if (node) this.#nodes.push(node);
  }

  /** Open emphasis; its mark is kept as text in case nothing closes it. */
  open(mark) {
    if (this.#open.length >= MAX_OPEN) return this.add(mark);
    this.push(document.createTextNode(mark));
    this.#open.push({ mark, at: this.#nodes.length });
  }

  /** Close the emphasis that this mark opened last; false where there is none, or nothing in it. */
  close(mark) {
    const index = this.#open.findLastIndex((open) => open.mark === mark);
    if (index < 0) return false;
    this.push(null);
    const { at } = this.#open[index];
    if (at === this.#nodes.length) return false;
    const inside = this.#nodes.splice(at);
    this.#nodes.pop(); // the mark's text
    const tag = { "*": "em", _: "em", "**": "strong", __: "strong", "~~": "del" }[mark];
    this.#nodes.push(element(tag, {}, inside));
    this.#open.length = index;
    return true;
  }

  nodes() {
    this.push(null);
    return this.#nodes;
  }
}

function codeSpan(line, text, from, noCode) {
  const length = runLength(text, from);
  const mark = text.slice(from, from + length);
  let end = noCode.has(length) ? -1 : text.indexOf(mark, from + length);
  while (end >= 0 && runLength(text, end) !== length) end = text.indexOf(mark, end + runLength(text, end));
  if (end < 0) {
    noCode.add(length);
    line.add(mark);
    return from + length;
  }
  line.push(element("code", { text: text.slice(from + length, end).trim() }));
  return end + length;
}

function emphasis(line, text, from) {
  const character = text[from];
  const length = runLength(text, from);
  const to = from + length;
  const run = text.slice(from, to);
  const marks = length === 3 ? [character + character, character] : [run];
  const inWord = character === "_" && isWord(text[from - 1]) && isWord(text[to]);
  const isMark = character === "~" ? length === 2 : length <= 3;
  if (!isMark || inWord) line.add(run);
  else if (!isSpace(text[from - 1]) && marks.toReversed().every((mark) => line.close(mark))) return to;
  else if (!isSpace(text[to])) for (const mark of marks) line.open(mark);
  else line.add(run);
  return to;
}

/** Return the address if it may be followed: a whole http(s) one. */
function safeAddress(text) {
  if (text.length > MAX_URL || !/^https?:\/\//i.test(text)) return null;
  try {
    return new URL(text).href;
  } catch {
    return null;
  }
}

function link(address, content) {
  const rel = "noopener noreferrer nofollow";
  return element("a", { href: address, target: "_blank", rel, title: address }, content);
}

/** Read [text](address "title") or ![text](address "title"). */
function bracketLink(text, at) {
  const from = text[at] === "!" ? at + 1 : at;
  const end = text.slice(from, from + MAX_LABEL).indexOf("](");
  if (end < 0) return null;
  const label = text.slice(from + 1, from + end);
  const start = from + end + 2;
  const close = text.slice(start, start + MAX_URL).search(/[)\n]/);
  if (close < 0 || text[start + close] !== ")") return null;
  const address = safeAddress(text.slice(start, start + close).trim().split(/\s/)[0]);
  if (!address) return null;
  return { node: link(address, label ? inline(label, false) : address), to: start + close + 1 };
}

function bareLink(text, from) {
  if (isWord(text[from - 1])) return null;
  const found = /^[^\s<>"'`|，。；：！？、）》」』】]+/u.exec(text.slice(from, from + MAX_URL))[0];
  let end = found.length;
  while (".,;:!?)]}*_~".includes(found[end - 1])) end -= 1;
  const shown = found.slice(0, end);
  const address = safeAddress(shown);
  return address && { node: link(address, shown), to: from + shown.length };
}
