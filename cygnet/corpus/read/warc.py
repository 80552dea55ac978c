"""Web archives (WARC 1.0 and 1.1) as text: what servers answered, page by page."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

from cygnet.corpus.read.html import MAX_PAGE_BYTES, decoded, page_piece, tidy
from cygnet.corpus.read.piece import Piece
from cygnet.corpus.read.problems import Problems
from cygnet.errors import require

HTML_TYPES = ("text/html", "application/xhtml+xml")
TEXT_TYPES = ("text/plain", "text/markdown")
SHOWN_TYPES = 12
"""So many types of what is passed over are named."""
_TAIL_BYTES = 1 << 17
"""More than a record's header and what is read ahead of its content."""

_ABOUT_OTHERS = ("warcinfo", "request", "metadata")
"""Types of records that say something of others."""
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_GZIP = zlib.MAX_WBITS + 16
Passed = Counter[str]
"""How many records of each type were passed over."""


def warc_pieces(stream: IO[bytes], name: str, problems: Problems) -> Iterator[Piece]:
    """Yield the text of each answered page (HTML or plain text), with its address and date.

    Answers other than 200 and files of other types are passed over, and counted all in one: an
    archive holds many by nature. Records of Common Crawl's text archives (WET: `conversion`) are
    read too.

    Args:
        stream: the archive, plain or packed record by record with gzip; it need not be seekable.
        name: its name in `problems`.
        problems: where damage and pages without text are counted, by byte offset.
    """
    fastwarc = require("fastwarc.warc", "data")
    counted = _Positioned(stream)
    if not counted.head:
        problems.add("empty file", name)
        return
    if not counted.head.startswith((b"WARC/", b"\x1f\x8b")):
        problems.add("not text", name, "no web archive: it begins with neither WARC/ nor gzip")
        return
    passed = Passed()
    is_told = False
    try:
        for record in fastwarc.ArchiveIterator(counted, parse_http=False):
            counted.begin_record(record.stream_pos, record.content_length)
            where = f"byte {record.stream_pos}"
            num_damaged = problems.count("damaged file")
            piece = _piece_of(record, f"{name}: {where}", problems, passed)
            is_told = problems.count("damaged file") > num_damaged
            if piece is not None:
                yield Piece(where, piece.text, piece.fields)
        if counted.is_cut() and not is_told:
            problems.add("damaged file", name, "cut off inside a record's header")
    except (OSError, ValueError, EOFError) as error:
        problems.add("damaged file", name, " ".join(str(error).split())[:200])
    if passed:
        problems.add("passed over", name, _listed(passed), passed.total())


def _listed(passed: Passed) -> str:
    by_number = sorted(passed.items(), key=lambda entry: (-entry[1], entry[0]))
    told = [f"{number:,} {what}" for what, number in by_number[:SHOWN_TYPES]]
    left = sum(number for _, number in by_number[SHOWN_TYPES:])
    return ", ".join([*told, *([f"{left:,} of other types"] if left else [])])


class _Positioned:
    """A stream that need not be seekable, with its first bytes known and its place told."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._place = stream, 0
        self.head = self._rest = stream.read(5)
        self._tail = b""
        self._record_end = 0
        self._inflate = zlib.decompressobj(_GZIP) if self.head.startswith(b"\x1f\x8b") else None
        self._is_inside = False

    def read(self, size: int = -1) -> bytes:
        block, self._rest = self._rest or self._stream.read(size), b""
        self._place += len(block)
        if self._inflate is not None:
            self._follow(block)
        else:
            self._tail = (self._tail + block)[-_TAIL_BYTES:]
        return block

    def tell(self) -> int:
        return self._place

    def begin_record(self, place: int, content_length: int) -> None:
        """Say where the record begins whose header has been read just now."""
        if self._inflate is None:
            tail_place = self._place - len(self._tail)
            header_end = _BLANK_LINE.search(self._tail, max(place - tail_place, 0))
            content = tail_place + header_end.end() if header_end else self._place
            self._record_end = content + content_length

    def _follow(self, block: bytes) -> None:
        """Unpack what is read along with the archive's reader, which is silent about a cut."""
        assert self._inflate is not None
        try:
            while block:
                self._is_inside = True
                self._inflate.decompress(block, 1 << 16)
                block = self._inflate.unconsumed_tail
                if self._inflate.eof:
                    block = self._inflate.unused_data
                    self._inflate, self._is_inside = zlib.decompressobj(_GZIP), False
        except zlib.error:  # the archive's reader says so
            self._inflate, self._is_inside = None, False

    def is_cut(self) -> bool:
        """Say whether what was read to its end stops inside a packed record, or in a header."""
        behind = max(self._record_end - (self._place - len(self._tail)), 0)
        header = self._tail[behind:].lstrip(b"\r\n")
        return self._is_inside or (bool(header) and not _BLANK_LINE.search(header))


def _piece_of(record: Any, where: str, problems: Problems, passed: Passed) -> Piece | None:
    kind = record.headers.get("WARC-Type") or ""
    if not kind:
        problems.add("damaged file", where, "a record without a WARC-Type")
        return None
    if not (record.headers.get("Content-Length") or "").strip().isdecimal():
        problems.add("damaged file", where, "a record without a Content-Length")
        return None
    if kind not in ("response", "conversion"):
        if kind not in _ABOUT_OTHERS:
            passed[f"{_short(kind)} records"] += 1
        return None
    raw = record.reader.read(MAX_PAGE_BYTES + 1)
    if len(raw) > MAX_PAGE_BYTES:
        problems.add("damaged file", where, f"over {MAX_PAGE_BYTES:,} bytes in one page")
    elif len(raw) < record.content_length:
        why = f"cut off: {len(raw):,} bytes of {record.content_length:,}"
        problems.add("damaged file", where, why)
    has_end = len(raw) == record.content_length
    raw = raw[:MAX_PAGE_BYTES]
    fields: dict[str, Any] = {}
    if address := record.headers.get("WARC-Target-URI"):
        fields["url"] = address.strip("<> ")
    if date := record.headers.get("WARC-Date"):
        fields["date"] = date
    if kind == "conversion":
        piece = _text_piece(raw, "utf-8", where, problems, has_end)
    else:
        piece = _answer(raw, where, problems, passed, has_end)
    return piece and Piece("", piece.text, piece.fields | fields)


def _short(text: str) -> str:
    return " ".join(text.split())[:60] or "unknown"


def _answer(
    raw: bytes, where: str, problems: Problems, passed: Passed, has_end: bool
) -> Piece | None:
    """Return the text of a server's answer; None if it is no page, or one without text."""
    fastwarc = require("fastwarc.warc", "data")
    try:
        record = fastwarc.WarcRecord.from_bytes(
            b"WARC/1.1\r\nWARC-Type: response\r\n"
            b"Content-Type: application/http; msgtype=response\r\n"
            b"Content-Length: %d\r\n\r\n%b\r\n\r\n" % (len(raw), raw)
        )
        record.parse_http(auto_decode="all")
        headers = record.http_headers
        kind = (record.http_content_type or "").strip().lower()  # RFC 9110, 8.3.1: without case
        charset = record.http_charset or ""
        is_page = kind in (*HTML_TYPES, *TEXT_TYPES)
        if headers is None or headers.status_code != 200 or not is_page:
            if has_end:  # else it is told
                _count_other(headers, kind, where, problems, passed)
            return None
        body = record.reader.read(MAX_PAGE_BYTES)
    except (OSError, ValueError, EOFError) as error:
        problems.add("damaged file", where, " ".join(str(error).split())[:200])
        return None
    if not body.strip():
        if has_end:
            problems.add("no text", where, "an empty answer")
        return None
    if kind in HTML_TYPES:
        return page_piece(body, where, problems, charset=charset, has_end=has_end)
    return _text_piece(body, charset, where, problems, has_end)


def _count_other(headers: Any, kind: str, where: str, problems: Problems, passed: Passed) -> None:
    if headers is None or headers.status_code is None:
        problems.add("damaged file", where, "a record without an HTTP answer")
    elif headers.status_code != 200:
        passed[f"answered {headers.status_code}"] += 1
    else:
        passed[_short(kind)] += 1


def _text_piece(
    data: bytes, charset: str, where: str, problems: Problems, has_end: bool
) -> Piece | None:
    text = decoded(data, charset, where, problems, has_end)
    text = tidy(text) if text else ""
    return Piece("", text, {}) if text else None
