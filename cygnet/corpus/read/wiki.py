"""MediaWiki's XML dumps as text: the articles, streaming, whatever the size of the dump."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import IO, Any
from xml.etree import ElementTree

from cygnet.corpus.read.html import tidy
from cygnet.corpus.read.piece import Piece
from cygnet.corpus.read.problems import Problems

CHUNK_BYTES = 1 << 16
MAX_PAGE_CHARS = 1 << 24
MAX_DEPTH = 100
"""Templates and links deeper in each other are left out."""

_MARK = re.compile(r"\{\{|\}\}|\{\||\n[ \t:]*\|\}|\[\[|\]\]")
_CLOSING = {"{{": "}}", "{|": "|}", "[[": "]]"}
# What is never closed goes no further than its paragraph, or shows as it is written.
_REMOVED = re.compile(
    r"<!--.*?(?:-->|\Z)|"
    r"<ref\b(?:[^<>]*/>|[^<>]*>.*?(?:</ref\s*>|(?=<ref\b)|(?=\n[ \t]*\n)|\Z))|"
    r"<(references|gallery|timeline|imagemap|score|graph|mapframe|templatestyles|categorytree|"
    r"inputbox|hiero)\b(?:[^<>]*/>|[^<>]*>.*?(?:</\1\s*>|(?=\n[ \t]*\n)|\Z))",
    re.IGNORECASE | re.DOTALL,
)
_KEPT_AS_IT_IS = re.compile(
    r"<(nowiki|pre|syntaxhighlight|source|math|chem|code)\b([^<>]*)(?<!/)>(.*?)(?:</\1\s*>|\Z)",
    re.IGNORECASE | re.DOTALL,
)
_TAG = re.compile(r"</?[a-zA-Z][^<>\n]{0,500}>")
_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_QUOTES = re.compile(r"'{2,5}")
_EXTERNAL = re.compile(
    r"\[(?:https?:|ftp:|mailto:|//)[^\s\[\]]*[ \t]*([^\[\]\n]*)\]", re.IGNORECASE
)
_HEADING = re.compile(r"^(={1,6})[ \t]*(.+?)[ \t]*\1[ \t]*$", re.MULTILINE)
_SWITCH = re.compile(r"__[A-Z]{3,}__")
_LIST = re.compile(r"^([*#:;]+)[ \t]*", re.MULTILINE)
_EMPTY_SECTION = re.compile(r"^(#{1,6}) [^\n]*\n+(?=(#{1,6}) |\Z)", re.MULTILINE)
_EMPTY_ITEM = re.compile(r"^[ \t]*(?:[-:]|1\.)?[ \t]*\n", re.MULTILINE)
_EMPTY_BRACKETS = re.compile(r"[ \t]?[(（][\s,;，；:：]*[)）]")
_PLACE = re.compile("\ue000(\\d+)\ue001")
_NAMESPACE = re.compile(r"^:?[^\W\d_][\w -]{1,30}:(?=\S)")


def wiki_pieces(stream: IO[bytes], name: str, problems: Problems) -> Iterator[Piece]:
    """Yield the articles of a MediaWiki dump: title, page id, timestamp, licence where it is said.

    Pages of other namespaces and redirects are passed over; of several revisions the last counts.

    Args:
        stream: the XML (`pages-articles`); it need not be seekable.
        name: its name in `problems`.
        problems: where damage and pages that cannot be read are counted.
    """
    parser: Any = ElementTree.XMLPullParser(("start", "end"))
    dump = _Dump(name, problems)
    empty = True
    try:
        while block := stream.read(CHUNK_BYTES):
            if empty and _declares_entities(block):
                raise ValueError("XML that declares entities")
            empty = False
            parser.feed(block)
            for event, element in parser.read_events():
                if piece := dump.take(event, element):
                    yield piece
            if dump.waiting_chars(len(block)) > 4 * MAX_PAGE_CHARS:
                raise ValueError(f"over {4 * MAX_PAGE_CHARS:,} bytes in one page")
        if empty:
            problems.add("empty file", name)
            return
        parser.close()
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        problems.add("damaged file", name, " ".join(str(error).split())[:200])


def _declares_entities(block: bytes) -> bool:
    # A dump has no document type; bombs begin with one.
    return b"<!DOCTYPE" in block.replace(b"\0", b"")[:4096]


class _Dump:
    """What of a dump has been read."""

    def __init__(self, name: str, problems: Problems) -> None:
        self._name, self._problems = name, problems
        self._root: ElementTree.Element | None = None
        self._page: ElementTree.Element | None = None
        self._fields: dict[str, Any] = {}
        self._files: frozenset[str] = frozenset(("file", "image", "category"))
        self._waiting = 0

    def waiting_chars(self, num_bytes: int) -> int:
        """Add what was read since the last page ended; return the sum."""
        self._waiting += num_bytes
        return self._waiting

    def take(self, event: str, element: ElementTree.Element) -> Piece | None:
        """Take an event of the parser; return the article that it ends, if any."""
        tag = element.tag.rpartition("}")[2]
        if event == "start":
            if self._root is None:
                self._root = element
            return None
        if tag == "siteinfo":
            self._read_site(element)
        elif tag == "page":
            self._waiting = 0
            piece = self._article(element)
            element.clear()
            assert self._root is not None
            self._root.clear()
            return piece
        return None

    def _read_site(self, site: ElementTree.Element) -> None:
        for element in site.iter():
            tag = element.tag.rpartition("}")[2]
            if tag in ("rights", "license", "licence") and (element.text or "").strip():
                self._fields["licence"] = (element.text or "").strip()[:1000]
            if tag == "namespace" and element.attrib.get("key") in ("6", "14") and element.text:
                self._files |= {element.text.strip().lower()}

    def _article(self, page: ElementTree.Element) -> Piece | None:
        values: dict[str, str] = {}
        redirect = False
        for element in page.iter():
            tag = element.tag.rpartition("}")[2]
            redirect = redirect or tag == "redirect"
            if tag in ("title", "ns", "timestamp", "text") or (tag == "id" and tag not in values):
                values[tag] = element.text or ""
        text = values.get("text", "")
        if redirect or values.get("ns", "0") != "0" or text[:9].lower() == "#redirect":
            return None
        title, number = values.get("title", ""), values.get("id", "")
        where = f"page {number}"
        if len(text) > MAX_PAGE_CHARS:
            why = f"over {MAX_PAGE_CHARS:,} characters in one page"
            self._problems.add("damaged file", f"{self._name}: {where}", why)
            return None
        plain = wikitext_to_text(text, self._files)
        if not plain:
            self._problems.add("no text", f"{self._name}: {where}", "a page without text")
            return None
        fields = {"title": title, "page_id": number, "timestamp": values.get("timestamp", "")}
        return Piece(where, plain, {k: v for k, v in fields.items() if v} | self._fields)


def wikitext_to_text(
    source: str, left_out: frozenset[str] = frozenset(("file", "image", "category"))
) -> str:
    """Return wikitext as readable text.

    Templates, tables, references, files and categories are left out; headings become `## `, lists
    keep their marks, code and mathematics stay as they are.

    Args:
        source: wikitext.
        left_out: namespaces in lower case whose links show nothing.
    """
    kept: list[str] = []

    def keep(match: re.Match[str]) -> str:
        kept.append(_as_shown(match[1].lower(), match[3]))
        return f"\ue000{len(kept) - 1}\ue001"

    source = source.replace("\ue000", "").replace("\ue001", "")
    source = _KEPT_AS_IT_IS.sub(keep, _REMOVED.sub("", source))
    text = _without_nested(f"\n{source}", left_out)
    text = _BREAK.sub("\n", text)
    text = _TAG.sub("", _EXTERNAL.sub(r"\1", _QUOTES.sub("", _SWITCH.sub("", text))))
    text = _EMPTY_ITEM.sub("\n", _LIST.sub(_bullet, f"{text}\n"))
    text = _HEADING.sub(lambda match: f"\n{'#' * len(match[1])} {match[2]}\n", text)
    text = _EMPTY_BRACKETS.sub("", html.unescape(text))
    text = _EMPTY_SECTION.sub(lambda m: "" if len(m[2] or "") <= len(m[1]) else m[0], text)
    return tidy(_PLACE.sub(lambda match: kept[int(match[1])], text))


def _as_shown(tag: str, content: str) -> str:
    if tag == "math":
        return f"${content.strip()}$"
    if tag in ("pre", "syntaxhighlight", "source"):
        content = content.strip("\n")
        return f"\n```\n{content}\n```\n" if "\n" in content or tag == "pre" else f"`{content}`"
    return html.unescape(content)


def _bullet(match: re.Match[str]) -> str:
    marks = match[1]
    if marks[-1] in ":;":
        return ""
    return "  " * (len(marks) - 1) + ("- " if marks[-1] == "*" else "1. ")


def _without_nested(text: str, left_out: frozenset[str]) -> str:
    """Return the text without templates and tables, with links as they are shown; linear in time.

    What is opened and never closed is text: only its mark is left out.
    """
    stack: list[tuple[str, list[str]]] = []
    parts: list[str] = []
    place = 0
    for match in _MARK.finditer(text):
        parts.append(text[place : match.start()])
        place = match.end()
        mark = match[0].strip(" \t\n:")
        if mark in _CLOSING:
            if len(stack) < MAX_DEPTH:
                stack.append((mark, parts))
                parts = []
            continue
        opened = next(
            (i for i in range(len(stack) - 1, -1, -1) if _CLOSING[stack[i][0]] == mark), -1
        )
        if opened < 0:
            continue
        while len(stack) > opened:
            kind, outer = stack.pop()
            inner = parts
            parts = outer
            if len(stack) > opened:
                parts.extend(inner)  # never closed
            elif kind == "[[":
                parts.append(_shown_link("".join(inner), left_out))
    parts.append(text[place:])
    while stack:
        _, outer = stack.pop()
        outer.extend(parts)
        parts = outer
    return "".join(parts)


def _shown_link(link: str, left_out: frozenset[str]) -> str:
    target, _, shown = link.partition("|")
    named = target.strip().lower()
    if named.partition(":")[0] in left_out and not named.startswith(":"):
        return ""
    if not shown and re.match(r"[a-z]{2,3}(-[a-z]+)*:", target) and ":" in target:
        return ""  # the article in another language
    return (
        shown.rpartition("|")[2] or _NAMESPACE.sub("", target).partition("#")[0] or target
    ).strip()
