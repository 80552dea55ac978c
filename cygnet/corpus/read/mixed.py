"""Bytes as text where some lines are in UTF-8 and others in an older encoding."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from itertools import pairwise

from cygnet.corpus.read.encodings import LATIN_WORDS, SINGLE_BYTE, is_sound

UTF8 = ("utf-8", "utf-8-sig")
BY_LINES = (*UTF8, *SINGLE_BYTE)
"""The encodings of which single lines may be in another."""
WESTERN = "cp1252"
"""What lines that are no UTF-8 are tried as in a file of UTF-8."""
MAX_WAITING_BYTES = 1 << 22
"""A line that is longer is decoded in parts."""

_UTF8_CHARACTER = re.compile(rb"[\xc2-\xf4][\x80-\xbf]")
_BROKEN = re.compile("[\udc80-\udcff]+")
_MARKS = frozenset("‘’“”–—…„«»€\xa0")
_MAX_RUN = 2
_MAX_BY_CHANCE = 50
"""More characters of UTF-8 in a line are that without a look at how else they read."""


class MixedDecoder:
    """Decodes bytes whose lines are in one encoding, but for some.

    In UTF-8 that is Windows-1252, where the bytes that are no UTF-8 read well as such: single
    letters in words, quotation marks and dashes. In an encoding of a byte a character it is UTF-8,
    where the line makes no sense in the file's own encoding.
    What a line becomes depends on that line alone, wherever the blocks end.

    Args:
        encoding: one of `BY_LINES`.
        other: is told the number of each line in another encoding, and which.
        first_line: the number of the first line.
    """

    def __init__(
        self, encoding: str, other: Callable[[int, str], None], first_line: int = 1
    ) -> None:
        self._encoding, self._other, self._line = encoding, other, first_line
        self._waiting = b""
        self._is_start = True

    def decode(self, block: bytes) -> str:
        """Return the text of the lines that a block ends."""
        block = self._waiting + block
        end = block.rfind(b"\n") + 1
        if not end and len(block) > MAX_WAITING_BYTES:
            end = self._whole_end(block)
        self._waiting = block[end:]
        return self._text(block[:end])

    def finish(self, is_cut: bool = False) -> str:
        """Return the text of the last line; half a character at a cut is left out."""
        rest, self._waiting = self._waiting, b""
        return self._text(rest[: self._whole_end(rest)] if is_cut else rest)

    def _whole_end(self, block: bytes) -> int:
        """Return where a block ends without half a character or half a line's end."""
        end = len(block) - block.endswith(b"\r")
        if self._encoding in UTF8:
            for length in (1, 2, 3):
                lead = block[end - length] if length <= end else 0
                if lead >= 0xC0:
                    needed = 2 + (lead >= 0xE0) + (lead >= 0xF0)
                    return end - length if needed > length else end
        return end

    def _text(self, block: bytes) -> str:
        if self._is_start and block:
            self._is_start = False
            if self._encoding == "utf-8-sig":
                block = block.removeprefix(codecs.BOM_UTF8)
        text = self._at_once(block)
        if text is None:
            lines = enumerate(block.splitlines(keepends=True), start=self._line)
            text = "".join(self._line_text(line, number) for number, line in lines)
        self._line += block.count(b"\n")
        if num_returns := block.count(b"\r"):
            self._line += num_returns - block.count(b"\r\n")
        return text

    def _at_once(self, block: bytes) -> str | None:
        """Return the text of a block where all of it is in one encoding."""
        if self._encoding not in UTF8:
            if _UTF8_CHARACTER.search(block):
                return None
            return block.decode(self._encoding, "replace")
        try:
            return block.decode()
        except UnicodeDecodeError:
            return None

    def _line_text(self, line: bytes, number: int) -> str:
        try:
            text = line.decode()
        except UnicodeDecodeError:
            if self._encoding not in UTF8:
                return line.decode(self._encoding, "replace")
            western = western_text(line)
            if western is None:
                return line.decode(errors="replace")
            self._other(number, WESTERN)
            return western
        if self._encoding not in UTF8 and not line.isascii():
            if not _is_utf8(line, text, self._encoding):
                return line.decode(self._encoding, "replace")
            self._other(number, "utf-8")
        return text


def _is_utf8(line: bytes, text: str, encoding: str) -> bool:
    """Say whether a line that is sound UTF-8 is that, in a file in another encoding.

    Some words are both: Ukrainian "Ні" in Windows-1251 is "ͳ" as UTF-8, Russian "так" in cp866 is
    "⠪". Such a line is what the file is, unless UTF-8 makes it of the file's own letters.
    """
    if len(_UTF8_CHARACTER.findall(line)) > _MAX_BY_CHANCE:
        return True
    if not is_sound(line.decode(encoding, "replace")):
        return True
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return any(char.isalpha() for char in text if not char.isascii())


def decode_mixed(data: bytes, encoding: str, is_cut: bool = False) -> tuple[str, int]:
    """Return a whole file's text, and how many of its lines are in another encoding.

    Args:
        data: the file.
        encoding: one of `BY_LINES`.
        is_cut: it ends too early, maybe inside a character.
    """
    others: list[int] = []
    decoder = MixedDecoder(encoding, lambda number, _: others.append(number))
    text = decoder.decode(data) + decoder.finish(is_cut)
    return text, len(others)


def western_text(line: bytes) -> str | None:
    """Return a line of UTF-8 with its broken bytes read as Windows-1252; None if they are not that.

    Damaged UTF-8 is told from it by the bytes' places: these are alone or in twos, letters stand
    in words of ASCII letters, and nothing else beyond ASCII is beside them.
    """
    text = line.decode(errors="surrogateescape")
    parts: list[str] = []
    end = 0
    for run in _BROKEN.finditer(text):
        try:
            read = run[0].encode(errors="surrogateescape").decode(WESTERN)
        except UnicodeDecodeError:
            return None
        before, after = text[run.start() - 1 : run.start()], text[run.end() : run.end() + 1]
        if not _is_in_place(read, before, after):
            return None
        parts += [text[end : run.start()], read]
        end = run.end()
    return "".join([*parts, text[end:]])


def _is_in_place(read: str, before: str, after: str) -> bool:
    if len(read) > _MAX_RUN or not (before + after).isascii():
        return False
    if not after:  # the file ends here, inside a character
        return False
    around = [before, *read, after]
    for (left, char), (_, right) in zip(pairwise(around[:-1]), pairwise(around[1:]), strict=True):
        if char in _MARKS:
            continue
        if not char.isalpha():
            return False
        if char.isupper() and left.islower():
            return False
        if not (left.isalpha() or right.isalpha() or char in LATIN_WORDS):
            return False
    return before.isalpha() or after.isalpha() or len(read) == 1
