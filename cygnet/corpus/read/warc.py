"""Web archives (WARC 1.0 and 1.1) as text: what servers answered, page by page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

from cygnet.corpus.read.html import MAX_PAGE_BYTES, decoded, page_piece, tidy
from cygnet.corpus.read.piece import Piece
from cygnet.corpus.read.problems import Problems
from cygnet.errors import require

HTML_TYPES = ("text/html", "application/xhtml+xml")
TEXT_TYPES = ("text/plain", "text/markdown")


def warc_pieces(stream: IO[bytes], name: str, problems: Problems) -> Iterator[Piece]:
    """Yield the text of each answered page (HTML or plain text), with its address and date.

    Answers other than 200 and files of other types are passed over: an archive holds many by
    nature. Records of Common Crawl's text archives (WET: `conversion`) are read too.

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
    types = fastwarc.WarcRecordType
    wanted = types.response | types.conversion
    try:
        for record in fastwarc.ArchiveIterator(counted, record_types=wanted, parse_http=False):
            offset = record.stream_pos
            piece = _piece_of(record, f"{name}: byte {offset}", problems)
            if piece is not None:
                yield Piece(f"byte {offset}", piece.text, piece.fields)
    except (OSError, ValueError, EOFError) as error:
        problems.add("damaged file", name, " ".join(str(error).split())[:200])


class _Positioned:
    """A stream that need not be seekable, with its first bytes known and its place told."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._place = stream, 0
        self.head = self._rest = stream.read(5)

    def read(self, size: int = -1) -> bytes:
        block, self._rest = self._rest or self._stream.read(size), b""
        self._place += len(block)
        return block

    def tell(self) -> int:
        return self._place


def _piece_of(record: Any, where: str, problems: Problems) -> Piece | None:
    raw = record.reader.read(MAX_PAGE_BYTES + 1)
    if len(raw) > MAX_PAGE_BYTES:
        problems.add("damaged file", where, f"over {MAX_PAGE_BYTES:,} bytes in one page")
    elif len(raw) < record.content_length:
        why = f"cut off: {len(raw):,} bytes of {record.content_length:,}"
        problems.add("damaged file", where, why)
    raw = raw[:MAX_PAGE_BYTES]
    fields: dict[str, Any] = {}
    if address := record.headers.get("WARC-Target-URI"):
        fields["url"] = address.strip("<> ")
    if date := record.headers.get("WARC-Date"):
        fields["date"] = date
    if record.headers.get("WARC-Type") == "conversion":
        piece = _text_piece(raw, "utf-8", where, problems)
    else:
        piece = _answer(raw, where, problems)
    return piece and Piece("", piece.text, piece.fields | fields)


def _answer(raw: bytes, where: str, problems: Problems) -> Piece | None:
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
        if headers is None or headers.status_code != 200:
            return None
        kind, charset = record.http_content_type or "", record.http_charset or ""
        if kind not in (*HTML_TYPES, *TEXT_TYPES):
            return None
        body = record.reader.read(MAX_PAGE_BYTES)
    except (OSError, ValueError, EOFError) as error:
        problems.add("damaged file", where, " ".join(str(error).split())[:200])
        return None
    if not body.strip():
        problems.add("no text", where, "an empty answer")
        return None
    if kind in HTML_TYPES:
        return page_piece(body, where, problems, charset=charset)
    return _text_piece(body, charset, where, problems)


def _text_piece(data: bytes, charset: str, where: str, problems: Problems) -> Piece | None:
    text = decoded(data, charset, where, problems)
    text = tidy(text) if text else ""
    return Piece("", text, {}) if text else None
