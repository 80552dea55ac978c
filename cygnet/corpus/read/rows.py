"""The rows of files that hold rows: JSON lines, JSON, CSV and parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from typing import IO, Any

from cygnet.corpus.read.decode import MAX_LINE_CHARS, TextStream
from cygnet.corpus.read.find import InputFile
from cygnet.corpus.read.problems import Problems

MAX_JSON_CHARS = 1 << 28
BATCH_ROWS, BATCH_BYTES = 1_000, 1 << 23
"""So much of a parquet file is in memory as rows: whichever is less."""
TEXT_FIELDS = ("text", "content", "body", "document", "article", "story", "passage", "raw_text")
CONVERSATION_FIELDS = frozenset(
    (
        *("messages", "conversations", "conversation", "system", "history"),
        *("instruction", "input", "output", "prompt", "question", "query"),
        *("response", "answer", "completion"),
    )
)


def jsonl_rows(
    stream: TextStream, file: InputFile, problems: Problems
) -> Iterator[tuple[int, Any]]:
    """Yield (line, value) of JSON lines; one that is no JSON is counted."""
    return _parsed_lines(stream.lines(), file, problems)


def _parsed_lines(
    lines: Iterable[tuple[int, str]], file: InputFile, problems: Problems
) -> Iterator[tuple[int, Any]]:
    decode = json.JSONDecoder().raw_decode
    for number, line in lines:
        try:
            row, end = decode(line)
            if end != len(line):
                row = json.loads(line)
        except (ValueError, RecursionError):
            # The short way knows no space before a value and makes nothing of blank lines.
            if not line or line.isspace():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                problems.add("broken row", f"{file.place}:{number}", str(error))
                continue
        yield number, row


def json_rows(stream: TextStream, file: InputFile, problems: Problems) -> Iterator[tuple[int, Any]]:
    """Yield (number from 1, row) of a JSON list, an object that holds one, or an object alone.

    JSON lines that are named so are read as such.
    """
    parts: list[str] = []
    length = 0
    for chunk in stream.chunks():
        parts.append(chunk)
        length += len(chunk)
        if length > MAX_JSON_CHARS:
            why = f"over {MAX_JSON_CHARS:,} characters in one value; make it .jsonl, a row a line"
            problems.add("damaged file", file.place, why)
            return
    text = "".join(parts)
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if "\n" in text.strip() and _is_object(text.strip().split("\n", 1)[0]):
            yield from _parsed_lines(enumerate(text.split("\n"), start=1), file, problems)
        else:
            problems.add("broken row", file.place, str(error))
        return
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        has_text = any(name in value for name in (*TEXT_FIELDS, *CONVERSATION_FIELDS))
        value = lists[0] if len(lists) == 1 and not has_text else [value]
    yield from enumerate(value if isinstance(value, list) else [value], start=1)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def csv_rows(stream: TextStream, file: InputFile, problems: Problems) -> Iterator[tuple[int, Any]]:
    """Yield (line, row) of a table with a header; its delimiter is seen by the first line."""
    csv.field_size_limit(MAX_LINE_CHARS)
    lines = (line + "\n" for _, line in stream.lines())
    first = next(lines, "")
    delimiter = max("\t" if ".tsv" in file.path.name else ",;\t|", key=first.count)
    reader = csv.reader(_chain(first, lines), delimiter=delimiter)
    header: list[str] | None = None
    while True:
        where = f"{file.place}:{reader.line_num + 1}"
        number = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            problems.add("broken row", where, str(error))
            continue
        if row is None:
            return
        if header is None:
            header = row
        elif len(row) == len(header):
            yield number, dict(zip(header, row, strict=True))
        elif row:
            why = f"{len(row)} fields, the header has {len(header)}"
            problems.add("broken row", where, why)


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def parquet_rows(stream: IO[bytes], file: InputFile) -> Iterator[tuple[int, Any]]:
    """Yield (number from 1, row) of a parquet file, or of the row groups of a slice of one.

    Args:
        stream: can be sought in.
        file: names the slice.
    """
    import pyarrow.parquet

    number = file.first_line
    with pyarrow.parquet.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False) as table:
        stop = table.num_row_groups if file.stop is None else file.stop
        for group in range(file.start, stop):
            metadata = table.metadata.row_group(group)
            row_bytes = max(metadata.total_byte_size // max(metadata.num_rows, 1), 1)
            size = min(max(BATCH_BYTES // row_bytes, 1), BATCH_ROWS)
            for batch in table.iter_batches(batch_size=size, row_groups=[group]):
                for row in batch.to_pylist():
                    yield number, row
                    number += 1
