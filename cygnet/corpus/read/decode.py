"""Bytes of any file as text: encodings, lines, and pieces of bounded length."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Callable, Iterator
from typing import IO

from cygnet.corpus.read.encodings import single_byte_encoding
from cygnet.corpus.read.mixed import BY_LINES, MixedDecoder
from cygnet.corpus.read.problems import Problems
from cygnet.errors import require

SAMPLE_BYTES = 1 << 16
CHUNK_BYTES = 1 << 20
MAX_LINE_CHARS = 1 << 24
MAX_BROKEN = 0.5
MAX_CONTROL = 0.02
SEPARATOR = "\n<|endoftext|>\n"
"""A line of its own that ends a document in a plain text file."""

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Encodings that switch between sets of characters, all in bytes of ASCII.
_SWITCHING = {
    b"\x1b$B": "iso2022_jp_ext",
    b"\x1b$@": "iso2022_jp_ext",
    b"\x1b(J": "iso2022_jp_ext",
    b"\x1b$)C": "iso2022_kr",
}
_NON_ASCII = re.compile("[^\x00-\x7f]")
# Not those of lines, nor backspace (overstruck manual pages) and escape (colours of a terminal).
_CONTROL = bytes([*range(1, 8), *range(14, 27), *range(28, 32)])
GBK = ("gb2312", "gbk", "gb18030")
DISTINCT = (
    "big5",
    "cp950",
    "cp932",
    "shift_jis",
    "euc_",
    "cp949",
    "johab",
    "cp1251",
    "koi8",
    "cp1253",
)
"""How the names of encodings begin whose texts look like no others."""


def guess_encoding(sample: bytes) -> str | None:
    """Return the encoding that a file's first bytes are in, or None if they are not text.

    A byte-order mark decides; then UTF-16 by its zero bytes; ISO-2022 by its escapes; then UTF-8
    where most of it decodes. Where most that is not ASCII is broken UTF-8, it is an encoding of a
    byte a character or of East Asia if it reads well as such, else Windows-1252. Bytes with many
    control characters are of no text.
    """
    for bom, encoding in _BOMS:
        if sample.startswith(bom):
            return encoding
    zeros = sample.count(0)
    if zeros > len(sample) * 0.2:
        even, odd = sample[::2].count(0), sample[1::2].count(0)
        if max(even, odd) < 4 * min(even, odd) + 1:
            return None
        return "utf-16-be" if even > odd else "utf-16-le"
    if zeros > len(sample) * 0.05:
        return None
    if sample.isascii() and (switching := _switching_encoding(sample)):
        return switching
    num_control = len(sample) - len(sample.translate(None, _CONTROL))
    if num_control > max(len(sample) * MAX_CONTROL, 4):
        return None
    decoded = _decode_sample(sample, "utf-8")
    if "\ufffd" not in decoded:
        return "utf-8"
    others = _NON_ASCII.findall(decoded)
    if others.count("\ufffd") < MAX_BROKEN * len(others):
        return "utf-8"
    return _older_encoding(sample)


def _switching_encoding(sample: bytes) -> str | None:
    for escape, encoding in _SWITCHING.items():
        if escape in sample:
            try:
                codecs.getincrementaldecoder(encoding)().decode(sample)
            except UnicodeDecodeError:
                continue
            return encoding
    return None


def _older_encoding(sample: bytes) -> str:
    """Return the encoding of bytes that are no UTF-8.

    Of East Asian text, and of Cyrillic and Greek too short for its language to be told,
    charset-normalizer is sure. Among Western letters, which differ in few characters, it is not,
    and Windows-1252 is by far the commonest.
    """
    whole = sample[: sample.rfind(b"\n") + 1] or sample  # the sample may end inside a character
    if found := single_byte_encoding(whole):
        return found
    best = require("charset_normalizer", "data").from_bytes(whole).best()
    found = str(best.encoding) if best is not None else ""
    if found in GBK:
        return "gb18030"
    return found if found.startswith(DISTINCT) else "cp1252"


def is_cut(stream: IO[bytes]) -> bool:
    """Say whether a stream that was read to its end has ended too early, which is told elsewhere.

    Then half a character or half a row at its end is no problem of its own.
    """
    return bool(getattr(stream, "is_cut", False))


def _decode_sample(sample: bytes, encoding: str) -> str:
    # Not final: the sample may end inside a character.
    return codecs.getincrementaldecoder(encoding)("replace").decode(sample)


class TextStream:
    """The text of a byte stream, in chunks, with its flaws counted.

    Line ends are "\\n" in what comes out.

    Args:
        stream: the bytes; it gives less than asked for at its end alone.
        name: the file's, for problems.
        problems: where flaws are counted.
        encoding: what the bytes are in; None to see by the first of them.
        first_line: the number of the first line.
    """

    def __init__(
        self,
        stream: IO[bytes],
        name: str,
        problems: Problems,
        encoding: str | None = None,
        first_line: int = 1,
    ) -> None:
        self._stream, self._name, self._problems = stream, name, problems
        self._encoding, self._first_line = encoding, first_line

    @property
    def is_cut(self) -> bool:
        """Whether what was read to its end has ended too early (see `is_cut`)."""
        return is_cut(self._stream)

    def chunks(self) -> Iterator[str]:
        """Yield the text in chunks of about a million characters."""
        raw = self._stream.read(SAMPLE_BYTES)
        if not raw:
            self._problems.add("empty file", self._name)
            return
        encoding = self._encoding or guess_encoding(raw)
        if encoding is None:
            self._problems.add("not text", self._name, "its bytes are of no text encoding")
            return
        if not encoding.startswith("utf-8"):
            self._problems.add("other encoding", self._name, f"read as {encoding}")
        decode, finish = self._decoder(encoding)
        newlines = io.IncrementalNewlineDecoder(None, translate=True)
        line = self._first_line
        while raw:
            text = newlines.decode(decode(raw))
            yield self._checked(text, line)
            line += text.count("\n")
            raw = self._stream.read(CHUNK_BYTES)
        yield self._checked(newlines.decode(finish(), final=True), line)

    def _decoder(self, encoding: str) -> tuple[Callable[[bytes], str], Callable[[], str]]:
        """Return what decodes a block, and what gives the rest at the end."""
        if encoding in BY_LINES:
            mixed = MixedDecoder(encoding, self._other_line, self._first_line)
            return mixed.decode, lambda: mixed.finish(is_cut(self._stream))
        decoder = codecs.getincrementaldecoder(encoding)("replace")
        return decoder.decode, lambda: "" if is_cut(self._stream) else decoder.decode(b"", True)

    def _other_line(self, number: int, encoding: str) -> None:
        why = f"this line read as {encoding}"
        self._problems.add("other encoding", f"{self._name}:{number}", why)

    def _checked(self, text: str, line: int) -> str:
        for char, kind in (("\ufffd", "unreadable bytes"), ("\0", "NUL characters")):
            if char in text:
                where = line + text.count("\n", 0, text.index(char))
                self._problems.add(kind, f"{self._name}:{where}", count=text.count(char))
        return text.replace("\0", "")

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yield (number, line without its end); a line over `MAX_LINE_CHARS` is left out."""
        parts: list[str] = []
        length, number, too_long = 0, self._first_line, False
        for chunk in self.chunks():
            *ended, rest = chunk.split("\n")
            for line in ended:
                if too_long or length + len(line) > MAX_LINE_CHARS:
                    self._too_long(number)
                else:
                    yield number, "".join([*parts, line])
                parts, length, too_long = [], 0, False
                number += 1
            length += len(rest)
            too_long = too_long or length > MAX_LINE_CHARS
            parts = [] if too_long else [*parts, rest]
        if too_long:
            self._too_long(number)
        elif length:
            yield number, "".join(parts)

    def _too_long(self, number: int) -> None:
        where = f"{self._name}:{number}"
        self._problems.add("line too long", where, f"over {MAX_LINE_CHARS:,} characters")

    def pieces(self, max_chars: int) -> Iterator[tuple[int, str]]:
        """Yield (line, text) of documents: what `SEPARATOR` parts, cut to at most `max_chars`."""
        buffer, line = "", self._first_line
        for chunk in self.chunks():
            buffer += chunk
            start = 0
            # A piece more than needed stays, so that the best border is always in sight.
            while len(buffer) - start > 2 * max_chars + len(SEPARATOR):
                end, after = _border(buffer, start, max_chars)
                yield line, buffer[start:end]
                line += buffer.count("\n", start, after)
                start = after
            buffer = buffer[start:]
        start = 0
        while start < len(buffer):
            end, after = _border(buffer, start, max_chars)
            yield line, buffer[start:end]
            line += buffer.count("\n", start, after)
            start = after


def cut(text: str, max_chars: int) -> Iterator[str]:
    """Yield a text in pieces of at most `max_chars` characters, cut at the best borders.

    Those are, in the latter half of a piece: a blank line, a line's end, a sentence's end, a
    space. The pieces put together are the text, but for space at the borders.
    """
    start = 0
    while len(text) - start > max_chars:
        end = _border(text, start, max_chars, separator=None)[1]
        yield text[start:end]
        start = end
    yield text[start:]


def _border(
    text: str, start: int, max_chars: int, separator: str | None = SEPARATOR
) -> tuple[int, int]:
    """Return where the piece from `start` ends and where the next one begins."""
    limit = start + max_chars
    if separator is not None:
        found = text.find(separator, start, limit + len(separator))
        if found >= 0:
            return found, found + len(separator)
    if len(text) <= limit:
        return len(text), len(text)
    for mark in ("\n\n", "\n", "。", ". ", "! ", "? ", "！", "？", " "):
        found = text.rfind(mark, start + max_chars // 2, limit)
        if found >= 0:
            return found + len(mark), found + len(mark)
    return limit, limit
