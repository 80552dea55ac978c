"""Parts of a large file, so that several processes read it at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from cygnet.corpus.read.decode import SAMPLE_BYTES, guess_encoding
from cygnet.corpus.read.find import InputFile
from cygnet.corpus.read.kinds import HEAD_BYTES, compression_of, kind_by_head
from cygnet.corpus.read.mixed import UTF8
from cygnet.corpus.read.open import fault_types
from cygnet.errors import UserError
from cygnet.files import read_json, write_json

SEARCH_BYTES = 1 << 20
"""So far behind the wanted place a separator, then a blank line, is looked for."""

# One behind another belongs to the document between them, as the reader of whole files has it.
_SEPARATOR = re.compile(
    rb"(?<!<\|endoftext\|>)(?<!<\|endoftext\|>\r)(?:\r\n|\n)<\|endoftext\|>\r?\n"
)
_BLANK_LINE = re.compile(rb"\n\r?\n")
_LINE_END = re.compile(rb"\n")
_WAY_OF_CUTTING = 1
"""Another number where other places are cut at: what was known no longer holds."""
_OVERLAP_BYTES = 64
"""Enough for what the longest mark is judged by."""


class KnownCuts:
    """Where files were cut at earlier runs, by their content: their lines are counted once.

    Args:
        path: where `save` wrote it; what is not there or not readable is found anew.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._known = path, read_json(path)
        self._used: dict[str, list[tuple[int, int]]] = {}

    def cuts(self, key: str) -> list[tuple[int, int]] | None:
        """Return what is known under a key; None for nothing, or nothing that can be so."""
        known = _as_cuts(self._known.get(key))
        if known is not None:
            self._used[key] = known
        return known

    def add(self, key: str, found: list[tuple[int, int]]) -> None:
        """Have what was found under a key be known."""
        self._used[key] = found

    def save(self) -> None:
        """Write what this run has used."""
        write_json(self._path, self._used)


def _as_cuts(known: Any) -> list[tuple[int, int]] | None:
    """Return what a file holds as cuts, (byte, number of its line) each; None if they are none."""
    if not isinstance(known, list):
        return None
    cuts: list[tuple[int, int]] = []
    start, line = 0, 1
    for pair in known:
        if not (isinstance(pair, list) and [type(number) for number in pair] == [int, int]):
            return None
        if pair[0] <= start or pair[1] <= line:
            return None
        start, line = pair
        cuts.append((start, line))
    return cuts


def slices(
    file: InputFile, slice_bytes: int, known: KnownCuts | None = None, digest: str = ""
) -> list[InputFile]:
    """Cut a file into slices of about `slice_bytes`, at the same places each time.

    JSON lines and text, both uncompressed and in UTF-8, are cut at ends of lines; parquet at those
    of row groups; anything else is one slice. What the slices yield, one behind the other, is what
    the whole file yields, sources included, with one exception: a text is cut at the first
    `<|endoftext|>` line within `SEARCH_BYTES` of the wanted place, else at the first blank line
    there, else at the next end of a line, and the latter two begin a document that the whole
    file need not begin there. No character is lost or doubled.

    A file that cannot be read is one slice; the reader counts what is wrong.

    Args:
        file: it, whole.
        slice_bytes: about so many bytes are in a slice.
        known: where files were cut before.
        digest: of the file's content, which `known` knows it by; empty where there is none.

    Raises:
        UserError: `slice_bytes` is below 1.
    """
    if slice_bytes < 1:
        raise UserError(f"slice_bytes is {slice_bytes}; give a number of at least 1")
    if file.url or file.is_slice or file.kind not in ("text", "jsonl", "parquet"):
        return [file]
    key = f"{_WAY_OF_CUTTING} {file.kind} {slice_bytes} {digest}"
    remembers = known if digest and file.kind != "parquet" else None
    cuts = remembers.cuts(key) if remembers else None
    try:
        if file.path.stat().st_size <= slice_bytes:
            return [file]
        if file.kind == "parquet":
            return list(_parquet_slices(file, slice_bytes))
        if cuts is None:
            cuts = _cuts_of(file, slice_bytes)
    except fault_types():
        return [file]
    if remembers:
        remembers.add(key, cuts)
    if not cuts:
        return [file]
    starts = [(0, 1), *cuts]
    stops = [start for start, _ in cuts]
    return [
        replace(file, start=start, stop=stop, first_line=line)
        for (start, line), stop in zip(starts, [*stops, None], strict=True)
    ]


def _cuts_of(file: InputFile, slice_bytes: int) -> list[tuple[int, int]]:
    """Return (byte, number of its line) where slices begin, but for the first."""
    with open(file.path, "rb") as raw:
        sample = raw.read(SAMPLE_BYTES)
        if not _is_of_kind(sample, file) or guess_encoding(sample) not in UTF8:
            return []
        return list(_line_cuts(raw, slice_bytes, file.kind == "text"))


def _is_of_kind(start: bytes, file: InputFile) -> bool:
    head = start[:HEAD_BYTES]
    return not compression_of(head) and kind_by_head(head, file.kind) == (file.kind, "")


def _parquet_slices(file: InputFile, slice_bytes: int) -> Iterator[InputFile]:
    import pyarrow.parquet

    with open(file.path, "rb") as raw:
        if not _is_of_kind(raw.read(HEAD_BYTES), file):
            yield file
            return
    with pyarrow.parquet.ParquetFile(file.path) as table:
        num_groups, start, row, first_row, num_bytes = table.num_row_groups, 0, 1, 1, 0
        for number in range(num_groups):
            group = table.metadata.row_group(number)
            row += group.num_rows
            num_bytes += sum(
                group.column(i).total_compressed_size for i in range(group.num_columns)
            )
            is_last = number + 1 == num_groups
            if num_bytes < slice_bytes and not is_last:
                continue
            if is_last and start == 0:
                yield file
                return
            stop = None if is_last else number + 1
            yield replace(file, start=start, stop=stop, first_line=first_row, size=num_bytes)
            start, first_row, num_bytes = number + 1, row, 0


def _line_cuts(raw: IO[bytes], slice_bytes: int, is_text: bool) -> Iterator[tuple[int, int]]:
    """Yield (byte, number of its line) where slices begin, but for the first."""
    at, line = 0, 1
    lines = _LineCounter(raw)
    while True:
        cut = _cut_behind(raw, at + slice_bytes, is_text)
        if cut is None:
            return
        line += lines.count(at, cut)
        yield cut, line
        at = cut


def _cut_behind(raw: IO[bytes], wanted: int, is_text: bool) -> int | None:
    """Return the byte where a slice may begin, at `wanted` or behind it; None for nowhere."""
    raw.seek(0, 2)
    size = raw.tell()
    if wanted >= size:
        return None
    start = max(wanted - _OVERLAP_BYTES, 0)
    raw.seek(start)
    near = raw.read(SEARCH_BYTES)
    for mark in (_SEPARATOR, _BLANK_LINE) if is_text else ():
        for found in mark.finditer(near):
            if start + found.end() >= wanted:
                return start + found.end() if start + found.end() < size else None
    raw.seek(start)
    at = start
    while block := raw.read(SEARCH_BYTES):
        for found in _LINE_END.finditer(block, max(wanted - 1 - at, 0)):
            return at + found.end() if at + found.end() < size else None
        at += len(block)
    return None


class _LineCounter:
    """Counts ends of lines as text streams do: \\n, \\r and \\r\\n are one each."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw

    def count(self, start: int, stop: int) -> int:
        """Return how many lines end from one byte to another, which follows a \\n."""
        self._raw.seek(start)
        total, after_return = 0, False
        while start < stop:
            block = self._raw.read(min(SEARCH_BYTES, stop - start))
            if not block:
                break
            total += block.count(b"\n")
            returns = block.count(b"\r")
            if returns:
                total += returns - block.count(b"\r\n")
            if after_return and block.startswith(b"\n"):
                total -= 1
            after_return = block.endswith(b"\r")
            start += len(block)
        return total
