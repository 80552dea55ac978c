"""Books as text: EPUB chapter by chapter, and the text layer of PDF without its running heads."""

from __future__ import annotations

import io
import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, Any
from urllib.parse import unquote
from xml.etree import ElementTree

from cygnet.corpus.read.html import MAX_PAGE_BYTES, page_piece, tidy
from cygnet.corpus.read.piece import Piece
from cygnet.corpus.read.problems import Problems
from cygnet.errors import require

MAX_BOOK_BYTES = 1 << 28
"""More is not unpacked from one EPUB, nor read of one PDF."""
PIECE_CHARS = 20_000
"""Pages of a PDF are put together up to about so many characters: sentences run over their ends."""
NEAR_PAGES = 2
"""A running head stands again at most so many pages further: left and right pages alternate."""

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
_FONT = re.compile(r"\.(otf|ttf|woff2?)$", re.IGNORECASE)
_CHAPTER = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml")
_FIELDS = {"title": "title", "creator": "author", "language": "language", "rights": "licence"}
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, KeyError, IndexError),
    *(NotImplementedError, RuntimeError, UnicodeError, ElementTree.ParseError, MemoryError),
)

_LICENCES = (
    re.compile(r"https?://[\w.]*(?:creativecommons|gnu|opensource)\.org/[^\s<>\"']+", re.I),
    re.compile(
        r"\bCC0(?:[ -]1\.0)?\b|\bCC[ -]BY(?:-(?:NC|SA|ND))*(?:[ -]\d(?:\.\d)?)?(?:[ -][A-Z]{2}\b)?|"
        r"\bCreative Commons (?:(?!Licen[cs]e)[\w./-]+ ){1,6}(?:\d\.\d|Licen[cs]e)"
        r"(?: \d\.\d)?(?: \w+ Licen[cs]e)?",
        re.I,
    ),
    re.compile(
        r"\b(?:GNU [\w ]{0,30}(?:General Public|Documentation) License|[AL]?GPL|GFDL)\b", re.I
    ),
)
_KNOWN_RIGHTS = {
    "public domain": ("public domain", "no known copyright", "gemeinfrei", "domaine public"),
    "all rights reserved": (
        *("all rights reserved", "alle rechte vorbehalten", "tous droits réservés"),
        *("todos los derechos reservados", "tutti i diritti riservati", "все права защищены"),
        *("版权所有", "保留所有权利", "無断転載"),
    ),
}
MAX_LICENCE_CHARS = 100

_PAGE_NUMBER = re.compile(
    r"[\W_]*(?:(?:page|seite|第)\s*)?(?:\d{1,5}|[ivxlc]{1,7})[\W_页頁]*", re.I
)
_NUMBERS = re.compile(r"\d+|\b[ivxlc]+\b", re.I)
_HYPHEN = re.compile("\x02\\s?|\ufffe\\s?|(?<=[^\\W\\d_])[-\u00ad\u2010]\n(?=[^\\W\\d_A-Z])")
_LEADER = re.compile(r"(?:[ \t]*\.){4,}[ \t]*(?:\d+|[ivxlc]+)?[ \t]*$", re.I | re.M)
_CONTROL = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")


def epub_pieces(stream: IO[bytes], name: str, problems: Problems) -> Iterator[Piece]:
    """Yield the chapters of an EPUB in reading order, with title, author, language and rights.

    Args:
        stream: the file; it must be seekable.
        name: its name in `problems`.
        problems: where damage, encryption and chapters without text are counted.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            yield from _Epub(archive, name, problems).chapters()
    except _ZIP_ERRORS as error:
        problems.add("damaged file", name, _said(error))


class _Epub:
    """The chapters of an unpacked book."""

    def __init__(self, archive: zipfile.ZipFile, name: str, problems: Problems) -> None:
        self._archive, self._name, self._problems = archive, name, problems
        self._left_bytes = MAX_BOOK_BYTES

    def chapters(self) -> Iterator[Piece]:
        container = _xml(self._read(_CONTAINER))
        package = next(e.attrib["full-path"] for e in container.iter() if "full-path" in e.attrib)
        book = _xml(self._read(package))
        fields = _book_fields(book)
        encrypted = self._encrypted()
        number = found = 0
        for path in _reading_order(book, posixpath.dirname(package)):
            number += 1
            where = f"{self._name}: chapter {number}"
            if path in encrypted:
                self._problems.add("damaged file", where, "encrypted (digital rights management)")
                continue
            try:
                page = self._read(path)
            except _ZIP_ERRORS as error:
                self._problems.add("damaged file", where, _said(error))
                continue
            piece = page_piece(page, where, self._problems, whole=True) if page else None
            if piece is not None:
                found += 1
                own = {k: v for k, v in piece.fields.items() if k in ("language", "licence")}
                if (title := piece.fields.get("title")) and title != fields.get("title"):
                    own["chapter"] = title
                yield Piece(f"chapter {number}", piece.text, own | fields)
        if not found:
            self._problems.add("no text", self._name, "a book without a chapter that can be read")

    def _read(self, path: str) -> bytes:
        """Read one file of the book.

        Raises:
            ValueError: it, or the book with it, unpacks to more than is allowed.
        """
        limit = min(MAX_PAGE_BYTES, self._left_bytes)
        with self._archive.open(path) as file:
            content = file.read(limit + 1)
        self._left_bytes -= len(content)
        if len(content) > limit:
            raise ValueError(f"{path} unpacks to over {limit:,} bytes")
        return content

    def _encrypted(self) -> set[str]:
        if _ENCRYPTION not in self._archive.namelist():
            return set()
        paths = (e.attrib.get("URI", "") for e in _xml(self._read(_ENCRYPTION)).iter())
        return {unquote(path) for path in paths if path and not _FONT.search(path)}


def _xml(data: bytes) -> ElementTree.Element:
    """Parse a file of the book; one that declares entities, as bombs do, is refused.

    Raises:
        ValueError, ElementTree.ParseError: it is not what books hold.
    """
    if b"<!ENTITY" in data or b"<\0!\0E\0N" in data or b"\0<\0!\0E\0N" in data:
        raise ValueError("XML that declares entities")
    return ElementTree.fromstring(data)


def _book_fields(book: ElementTree.Element) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for element in book.iter():
        field = _FIELDS.get(element.tag.rpartition("}")[2])
        text = " ".join((element.text or "").split())[:1000]
        if field == "licence":
            text = licence_of(text)
        if field and text and "dc/elements" in element.tag:
            fields[field] = f"{fields[field]}, {text}" if field == "author" in fields else text
    return fields


def licence_of(rights: str) -> str:
    """Return the licence that a book's note on its rights names, in a few words; empty for none.

    A licence by its address or its name; else "public domain" or "all rights reserved"; else the
    note itself where it is short, for a long one is no name of a licence.
    """
    for pattern in _LICENCES:
        if found := pattern.search(rights):
            return found[0].strip(" .,;:()")
    lower = rights.lower()
    for known, words in _KNOWN_RIGHTS.items():
        if any(word in lower for word in words):
            return known
    return rights if len(rights) <= MAX_LICENCE_CHARS else ""


def _reading_order(book: ElementTree.Element, folder: str) -> Iterator[str]:
    tagged = [(e.tag.rpartition("}")[2], e.attrib) for e in book.iter()]
    items = {said.get("id", ""): said for tag, said in tagged if tag == "item" and "href" in said}
    for tag, said in tagged:
        item = items.get(said.get("idref", "")) if tag == "itemref" else None
        if item is None or item.get("media-type", _CHAPTER[0]).lower() not in _CHAPTER:
            continue
        if "nav" in item.get("properties", "").split():  # the table of contents
            continue
        href = unquote(item["href"].partition("#")[0])
        yield posixpath.normpath(posixpath.join(folder, href))


def pdf_pieces(stream: IO[bytes], name: str, problems: Problems) -> Iterator[Piece]:
    """Yield the text layer of a PDF: pages put together to about `PIECE_CHARS` characters.

    Words parted at line ends are whole, running heads and page numbers are left out.

    Args:
        stream: the file; read into memory.
        name: its name in `problems`.
        problems: where damage, encryption and scans without a text layer are counted.
    """
    data = stream.read(MAX_BOOK_BYTES + 1)
    if not data:
        problems.add("empty file", name)
        return
    if len(data) > MAX_BOOK_BYTES:
        problems.add("damaged file", name, f"over {MAX_BOOK_BYTES:,} bytes")
        return
    pdfium = require("pypdfium2", "data")
    try:
        document = pdfium.PdfDocument(io.BytesIO(data))
    except (pdfium.PdfiumError, ValueError, OSError) as error:
        encrypted = "password" in str(error).lower()
        why = "encrypted: it opens with a password alone" if encrypted else _said(error)
        problems.add("damaged file", name, why)
        return
    try:
        fields = _pdf_fields(document)
        pages = _page_texts(document, name, problems)
    finally:
        document.close()
    found = False
    for first, last, text in _joined(without_running_heads(pages)):
        found = True
        where = f"page {first}" if first == last else f"pages {first}-{last}"
        yield Piece(where, text, fields)
    if not found:
        problems.add("no text", name, "no text layer")


def _pdf_fields(document: Any) -> dict[str, Any]:
    said = document.get_metadata_dict(skip_empty=True)
    fields = {"title": said.get("Title", ""), "author": said.get("Author", "")}
    return {k: " ".join(_CONTROL.sub("", v).split())[:1000] for k, v in fields.items() if v.strip()}


def _page_texts(document: Any, name: str, problems: Problems) -> list[str]:
    pdfium = require("pypdfium2", "data")
    texts = []
    for number in range(len(document)):
        text = ""
        try:
            page = document[number]
            layer = page.get_textpage()
            text = layer.get_text_bounded().replace("\r\n", "\n").replace("\r", "\n")
            layer.close()
            page.close()
        except (pdfium.PdfiumError, ValueError, OSError) as error:
            problems.add("damaged file", f"{name}: page {number + 1}", _said(error))
        texts.append(text)
    return texts


def without_running_heads(pages: Sequence[str]) -> list[str]:
    """Return pages without page numbers, nor first and last lines that pages nearby have too.

    Lines that differ in numbers alone, arabic or roman, count as the same.
    """
    lines = [[line for line in page.split("\n") if line.strip()] for page in pages]
    for last in (False, True):
        for _ in range(2):  # a head and a page number may stand one above the other
            edges = [_form(page[-1 if last else 0]) if page else "" for page in lines]
            for number, page in enumerate(lines):
                near = edges[max(0, number - NEAR_PAGES) : number]
                near += edges[number + 1 : number + 1 + NEAR_PAGES]
                if edges[number] and (edges[number] == "#" or edges[number] in near):
                    page.pop(-1 if last else 0)
    return ["\n".join(page) for page in lines]


def _form(line: str) -> str:
    line = line.strip()
    if _PAGE_NUMBER.fullmatch(line):
        return "#"
    return _NUMBERS.sub("#", line) if len(line) < 200 else ""


def _joined(pages: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Yield (first page, last page, text), counted from 1."""
    parts: list[str] = []
    first = 1
    for number, page in enumerate(pages, start=1):
        parts.append(page)
        if sum(map(len, parts)) >= PIECE_CHARS or number == len(pages):
            text = _HYPHEN.sub("", "\n".join(part for part in parts if part))
            text = tidy(_LEADER.sub("", _CONTROL.sub("", text)))
            if text:
                yield first, number, text
            parts, first = [], number + 1


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
