"""HTML as text: the page's own words without its menus; headings, lists, code and tables kept."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import IO, Any

from cygnet.corpus.read.decode import SAMPLE_BYTES, guess_encoding, is_cut
from cygnet.corpus.read.mixed import BY_LINES, decode_mixed
from cygnet.corpus.read.piece import Piece
from cygnet.corpus.read.problems import Problems
from cygnet.errors import require

MAX_PAGE_BYTES = 1 << 24
"""More of a page is not read."""
MAX_NESTING = 1_000
"""Where blocks lie deeper in each other, the main text is not looked for: that takes time as the
square of the depth."""
MAX_ATTRIBUTES = 2_000
"""A tag with more ends the page: the parser takes time as the square of their number."""

NAVIGATION = (
    *("nav", "aside", "footer", "form", "dialog"),
    *("[role=navigation]", "[role=banner]", "[role=contentinfo]", "[role=search]"),
    *(".navheader", ".navfooter", ".docnav"),  # DocBook, Publican
    *(".headerlink", ".related", ".sphinxsidebar"),  # Sphinx
    *("#footer", "#banner"),  # AsciiDoc, Publican
)
"""What is no text in a page whose generator marks it."""

# A page of the web runs scripts of other hosts: advertisements, counters, fonts.
_FOREIGN_SCRIPT = re.compile(r"<script[^>]*\ssrc\s*=\s*[\"']?(?:https?:)?//", re.IGNORECASE)
_META_CHARSET = re.compile(
    rb"<meta[^>]{0,500}charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE
)
_CHARSET = re.compile(
    r"utf-?8|ascii|us-ascii|iso-?8859-?\d+|iso-ir-\d+|latin-?\d|windows-\d+|cp\d+|koi8-[ru]|gb\w*|"
    r"hz-gb-2312|big5\S*|euc-\w+|shift[-_]jis|s-?jis|iso-2022-jp|tis-620|macintosh|ibm866"
)
_WIDER = {
    **dict.fromkeys(
        ("ascii", "us-ascii", "iso-8859-1", "iso8859-1", "latin1", "latin-1"), "cp1252"
    ),
    **dict.fromkeys(("gb2312", "gbk", "gb_2312-80"), "gb18030"),
    "iso-8859-9": "cp1254",
    "tis-620": "cp874",
    "shift_jis": "cp932",
    "macintosh": "mac-roman",
}
"""What browsers read in place of a named encoding, as the WHATWG's encoding standard has it."""
_EMPTY_ELEMENT = re.compile(
    r"<(title|script|style|textarea|iframe|a|p|div|span|i|b|em|strong)\b([^<>]*)/>", re.IGNORECASE
)
_BLOCK = re.compile(r"<(/?)(?:div|article)\b", re.IGNORECASE)
_TAG_BODY = re.compile(r"/?[a-zA-Z](?:[^>\"']|\"[^\"]*\"?|'[^']*'?)*")
_QUOTED = re.compile(r"\"[^\"]*\"?|'[^']*'?")
_SPACE_BEFORE_END = re.compile(r"[ \t\r\f\v\xa0]+\n")
_BLANK_LINES = re.compile(r"\n{3,}")


def html_pieces(stream: IO[bytes], name: str, problems: Problems) -> Iterator[Piece]:
    """Yield the text of an HTML page, with its title, language, licence and canonical address.

    Args:
        stream: a file of HTML in any encoding; `MAX_PAGE_BYTES` of it are read.
        name: its name in `problems`.
        problems: where an empty page, other encodings and damage are counted.
    """
    data = _read_up_to(stream, MAX_PAGE_BYTES + 1)
    if not data:
        problems.add("empty file", name)
        return
    if len(data) > MAX_PAGE_BYTES:
        problems.add("damaged file", name, f"over {MAX_PAGE_BYTES:,} bytes in one page")
    has_end = len(data) <= MAX_PAGE_BYTES and not is_cut(stream)
    piece = page_piece(data[:MAX_PAGE_BYTES], name, problems, has_end=has_end)
    if piece is not None:
        yield piece


def _read_up_to(stream: IO[bytes], num_bytes: int) -> bytes:
    blocks = []
    while num_bytes > 0 and (block := stream.read(num_bytes)):
        blocks.append(block)
        num_bytes -= len(block)
    return b"".join(blocks)


def page_piece(
    data: bytes,
    name: str,
    problems: Problems,
    *,
    charset: str = "",
    whole: bool = False,
    has_end: bool = True,
) -> Piece | None:
    """Return an HTML page as text, or None where it holds none (which is counted).

    Args:
        data: the page.
        name: its name in `problems`.
        problems: where what is amiss is counted.
        charset: its encoding as a server named it.
        whole: the page is all text, as a book's chapter is; no main part is looked for.
        has_end: it is not cut off, maybe inside a character.
    """
    markup = decoded(data, charset, name, problems, has_end)
    if markup is None:
        return None
    end = _end_of_sound_part(markup)
    if end < len(markup):
        problems.add("damaged file", name, f"a tag with over {MAX_ATTRIBUTES:,} attributes")
        markup = markup[:end]
    if (
        "<?xml" in markup[:100]
    ):  # XHTML, where `<title/>` is whole; the parser would wait for its end
        markup = _EMPTY_ELEMENT.sub(r"<\1\2></\1>", markup)
    parsing = require("resiliparse.parse.html", "data")
    try:
        tree = parsing.HTMLTree.parse(markup)
        text = _text_of(tree, markup, whole)
        fields = _fields_of(tree)
    except (parsing.HTMLParserException, ValueError) as error:
        problems.add("damaged file", name, str(error)[:200])
        return None
    if not text:
        if has_end:  # else it is told that the page is cut off
            problems.add("no text", name, "a page without text")
        return None
    return Piece("", text, fields)


def decoded(
    data: bytes, charset: str, name: str, problems: Problems, has_end: bool = True
) -> str | None:
    """Return a page's or a text's characters, or None if it is no text; flaws are counted."""
    encoding = encoding_of(data, charset)
    if encoding is None:
        problems.add("not text", name, "its bytes are of no text encoding")
        return None
    if not encoding.startswith("utf-8"):
        problems.add("other encoding", name, f"read as {encoding}")
    if encoding in BY_LINES:
        markup, num_others = decode_mixed(data, encoding, not has_end)
        if num_others:
            problems.add("other encoding", name, "lines in UTF-8 and in another", num_others)
    else:
        decoder = codecs.getincrementaldecoder(encoding)("replace")
        markup = decoder.decode(data, final=has_end)
    if "\ufffd" in markup:
        problems.add("unreadable bytes", name, count=markup.count("\ufffd"))
    if "\0" in markup:
        problems.add("NUL characters", name, count=markup.count("\0"))
        markup = markup.replace("\0", "")
    return markup


def encoding_of(data: bytes, charset: str = "") -> str | None:
    """Return a page's encoding: its mark, the server's word, its own word, else a guess.

    A word that the bytes give the lie to counts for nothing. None: the bytes are no text.
    """
    sample = data[:SAMPLE_BYTES]
    guess = guess_encoding(sample)
    if guess is None or guess in ("utf-8-sig", "utf-32") or guess.startswith("utf-16"):
        return guess
    found = _META_CHARSET.search(data, 0, 4096)
    for word in (charset, found[1].decode("ascii", "replace") if found else ""):
        label = word.strip().lower()
        if not _CHARSET.fullmatch(label):
            continue
        encoding = _WIDER.get(label, label)
        try:
            # Not the last 4 bytes: the sample may end inside a character.
            sample[: -4 if len(data) > len(sample) else None].decode(encoding)
        except (LookupError, UnicodeDecodeError):
            continue
        # Anything is Latin; what holds as UTF-8 beyond ASCII is UTF-8.
        return "utf-8" if guess == "utf-8" and not sample.isascii() else encoding
    return guess


def _end_of_sound_part(markup: str) -> int:
    """Return where the first tag begins that the parser would take too long for."""
    start = 0
    runs = markup.split("<")
    if max(map(len, runs)) <= 8 * MAX_ATTRIBUTES:
        return len(markup)
    for run in runs:
        if len(run) > 8 * MAX_ATTRIBUTES and (body := _TAG_BODY.match(run)):
            words = _QUOTED.sub("''", body[0]).split()
            if len(words) > MAX_ATTRIBUTES:
                return max(start - 1, 0)
        start += len(run) + 1
    return len(markup)


def _text_of(tree: Any, markup: str, whole: bool) -> str:
    extraction = require("resiliparse.extract.html2text", "data")
    text = ""
    if not whole and _FOREIGN_SCRIPT.search(markup) and _nesting(markup) <= MAX_NESTING:
        text = tidy(
            extraction.extract_plain_text(
                tree, main_content=True, alt_texts=False, comments=False, post_meta=False
            )
        )
    if not text:
        skipped = [] if whole else list(NAVIGATION)
        text = tidy(extraction.extract_plain_text(tree, alt_texts=False, skip_elements=skipped))
    return text


def _nesting(markup: str) -> int:
    if markup.count("<div") + markup.count("<DIV") + markup.count("<article") <= MAX_NESTING:
        return 0
    depth = deepest = 0
    for tag in _BLOCK.finditer(markup):
        depth = max(depth - 1, 0) if tag[1] else depth + 1
        deepest = max(deepest, depth)
    return deepest


def tidy(text: str) -> str:
    """Return a text without spaces at line ends, and with one blank line at most in a row."""
    text = _SPACE_BEFORE_END.sub("\n", f"{text}\n".replace("\r\n", "\n"))
    text = _BLANK_LINES.sub("\n\n", text).strip("\n")
    return f"{text}\n" if text.strip() else ""


def _fields_of(tree: Any) -> dict[str, Any]:
    def value(selector: str, attribute: str) -> str:
        element = tree.document.query_selector(selector)
        return " ".join((element.getattr(attribute) or "").split())[:1000] if element else ""

    fields = {
        "title": " ".join((tree.title or "").split())[:1000],
        "language": value("html[lang]", "lang") or value("html", "xml:lang"),
        "url": value("link[rel=canonical]", "href"),
        "licence": value("a[rel=license], link[rel=license]", "href"),
    }
    return {key: content for key, content in fields.items() if content}
