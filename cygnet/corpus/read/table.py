"""The records of a CSV file, where a quote that is never closed costs its line and no more."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from typing import NamedTuple

from cygnet.corpus.read.decode import MAX_LINE_CHARS, TextStream

NEVER_CLOSED = "a quote that is opened here is not closed as it should be"
MAX_CUT_LINES = 100
"""At a cut, a record that has been open for more lines has had a quote that was never closed."""
DELIMITERS = ",;\t|"
_MAX_RETRIES = 8


class Record(NamedTuple):
    """A row of a table."""

    line: int
    """The number of its first line."""
    fields: list[str]
    fault: str = ""
    """Why the fields are not to be used."""
    is_last: bool = False


def records(stream: TextStream, delimiter: str = "") -> Iterator[Record]:
    """Yield the records of a table, its header first, or blank records before it.

    Where a quote is never closed, or text follows upon a closing one in another line, the record
    is not what was meant: its first line has a fault, and the next ones are records of their own.

    Args:
        stream: the table.
        delimiter: what parts fields; empty to see by the first line that is not blank, with which
            the records begin then.
    """
    lines = _Lines(stream)
    if not delimiter:
        delimiter = max(DELIMITERS, key=lines.first().count)
    previous: Record | None = None
    for record in _each(lines, delimiter):
        if previous is not None:
            yield previous
        previous = record
    if previous is not None:
        yield previous._replace(is_last=True)


class _Lines:
    """The lines of a table, those of the record at hand kept, so that they can be read again."""

    def __init__(self, stream: TextStream) -> None:
        self._stream, self._numbered = stream, stream.lines()
        self._given_back: list[tuple[int, str]] = []
        self._num_chars = 0
        self.is_at_end = False
        self.taken: list[tuple[int, str]] = []
        """(number, line) of the record at hand."""

    def first(self) -> str:
        """Return the first line with more than space and delimiters, and pass over those before."""
        for entry in self._numbered:
            if entry[1].strip(f"{DELIMITERS} \xa0"):
                self.give_back([entry])
                return entry[1]
        return ""

    def begin(self) -> None:
        """Begin a record."""
        self.taken = []
        self._num_chars = 0

    @property
    def is_cut(self) -> bool:
        """Whether there are no more, and should be."""
        return self.is_at_end and self._stream.is_cut

    def give_back(self, entries: list[tuple[int, str]]) -> None:
        """Have lines read again."""
        self._given_back += reversed(entries)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        entry = self._given_back.pop() if self._given_back else next(self._numbered, None)
        if entry is None:
            self.is_at_end = True
            raise StopIteration
        self.taken.append(entry)
        self._num_chars += len(entry[1])
        if self._num_chars > MAX_LINE_CHARS:
            raise csv.Error("a record without an end")
        return entry[1] + "\n"


def _each(lines: _Lines, delimiter: str) -> Iterator[Record]:
    # Strict, so that an end inside quotes and text behind a closing one are told.
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    space_behind_quote = re.compile(rf'"[ \t]+(?={re.escape(delimiter)}|$)')
    num_retries = 0
    while True:
        lines.begin()
        is_whole = True
        try:
            fields = next(reader, None)
        except csv.Error:
            is_whole = False
        if is_whole:
            if fields is None:
                return
            yield Record(lines.taken[0][0], fields)
            num_retries = 0
            continue
        *before, (number, last) = lines.taken
        mended = space_behind_quote.sub('"', last)
        if before and mended != last and num_retries < _MAX_RETRIES:
            num_retries += 1
            lines.give_back([*before, (number, mended)])
            continue
        num_retries = 0
        yield from _one_by_one(lines, delimiter)


def _one_by_one(lines: _Lines, delimiter: str) -> Iterator[Record]:
    """Yield each line of a record that is none, but for the last, which is to be read again."""
    first, *rest = lines.taken
    yield _of_line(first, delimiter, is_open=bool(rest))
    if lines.is_cut and len(rest) < MAX_CUT_LINES:
        return
    if rest and not lines.is_at_end:
        lines.give_back([rest.pop()])
    for entry in rest:
        yield _of_line(entry, delimiter)


def _of_line(entry: tuple[int, str], delimiter: str, is_open: bool = False) -> Record:
    number, line = entry
    fields = next(csv.reader([line + "\n"], delimiter=delimiter))
    # The end of the line is part of a field only where that goes on.
    is_open = is_open or (bool(fields) and fields[-1].endswith("\n"))
    return Record(number, fields, NEVER_CLOSED if is_open else "")
