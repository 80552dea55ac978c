"""The rows of files that hold rows: JSON lines, JSON, CSV and parquet."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from typing import IO, Any

from cygnet.corpus.read.decode import MAX_LINE_CHARS, TextStream
from cygnet.corpus.read.find import InputFile
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.read.table import records

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
_LIST_START = re.compile(r"\s*\[\s*")
_NEXT_ITEM = re.compile(r"\s*,\s*")


def jsonl_rows(
    stream: TextStream, file: InputFile, problems: Problems
) -> Iterator[tuple[int, Any]]:
    """Yield (line, value) of JSON lines; one that is no JSON is counted."""
    return _parsed_lines(stream.lines(), stream, file, problems)


def _parsed_lines(
    lines: Iterable[tuple[int, str]], stream: TextStream, file: InputFile, problems: Problems
) -> Iterator[tuple[int, Any]]:
    decode = json.JSONDecoder().raw_decode
    # The last line of what is cut off is told when it is known to be the last.
    broken: tuple[int, str] | None = None
    for number, line in lines:
        if broken is not None:
            problems.add("broken row", f"{file.place}:{broken[0]}", broken[1])
            broken = None
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
                broken = number, str(error)
                continue
        yield number, row
    if broken is not None and not stream.is_cut:
        problems.add("broken row", f"{file.place}:{broken[0]}", broken[1])


def json_rows(stream: TextStream, file: InputFile, problems: Problems) -> Iterator[tuple[int, Any]]:
    """Yield (number from 1, row) of a JSON list, an object that holds one, or an object alone.

    JSON lines that are named so are read as such. Of a broken list, what comes before is used.
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
            lines = enumerate(text.split("\n"), start=1)
            yield from _parsed_lines(lines, stream, file, problems)
            return
        yield from enumerate(_items(text), start=1)
        if not stream.is_cut:
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


def _items(text: str) -> Iterator[Any]:
    """Yield the objects and texts of a JSON list up to the first thing that is broken."""
    decode = json.JSONDecoder().raw_decode
    begun = _LIST_START.match(text)
    while begun:
        try:
            value, end = decode(text, begun.end())
        except (ValueError, RecursionError):
            return
        begun = _NEXT_ITEM.match(text, end)
        if isinstance(value, (dict, str)):  # the digits of a number may have been cut off
            yield value


def csv_rows(stream: TextStream, file: InputFile, problems: Problems) -> Iterator[tuple[int, Any]]:
    """Yield (line, row) of a table with a header; its delimiter is seen by that.

    A quote that is never closed, or not as it should be, costs the line that it is opened in.
    """
    csv.field_size_limit(MAX_LINE_CHARS)
    header: list[str] | None = None
    for line, fields, fault, is_last in records(stream, "\t" if ".tsv" in file.path.name else ""):
        if header is not None and fields and not fault and len(fields) != len(header):
            fault = f"{len(fields)} fields, the header has {len(header)}"
        if is_last and stream.is_cut and (fault or not fields or not fields[-1]):
            return
        if fault:
            problems.add("broken row", f"{file.place}:{line}", fault)
        if header is None:
            if not fault and not any(field.strip() for field in fields):
                continue
            header = [name.strip("\n") for name in fields]
        elif fields and not fault:
            yield line, dict(zip(header, fields, strict=True))


def parquet_rows(
    stream: IO[bytes], file: InputFile, problems: Problems
) -> Iterator[tuple[int, Any]]:
    """Yield (number from 1, row) of a parquet file, or of the row groups of a slice of one.

    A time that Python has no date for becomes text, or None. A row with a text that is no UTF-8
    is counted.

    Args:
        stream: can be sought in.
        file: names the slice.
        problems: where rows that cannot be read are counted.
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
                for row in _rows_of(batch):
                    if isinstance(row, Exception):
                        problems.add("broken row", f"{file.place}:{number}", str(row))
                    else:
                        yield number, row
                    number += 1


# KeyError: a time zone that is not known.
_NO_PYTHON_VALUE = (ValueError, OverflowError, KeyError, TypeError, NotImplementedError)


def _rows_of(batch: Any) -> Iterable[dict[str, Any] | Exception]:
    """Return a batch's rows; in place of one that cannot be read, why."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except _NO_PYTHON_VALUE:
        return (_row_of(batch, at) for at in range(batch.num_rows))
    return rows


def _row_of(batch: Any, at: int) -> dict[str, Any] | Exception:
    columns = zip(batch.schema.names, batch.columns, strict=True)
    try:
        return {name: _value_of(column[at]) for name, column in columns}
    except _NO_PYTHON_VALUE as error:
        return error


def _value_of(scalar: Any) -> Any:
    """Return an arrow value as Python's; a time that is none of those as text, or None.

    Raises:
        UnicodeDecodeError: a text is no UTF-8.
    """
    import pyarrow

    kind = scalar.type
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        raise
    except _NO_PYTHON_VALUE:
        if pyarrow.types.is_struct(kind):
            return {field.name: _value_of(scalar[field.name]) for field in kind}
        if isinstance(scalar, pyarrow.ListScalar):  # maps too: a list of keys and values
            return [_value_of(value) for value in scalar.values]
    is_span = pyarrow.types.is_duration(kind) or pyarrow.types.is_date(kind)
    # A zone that is not known, and what has no form as text, go by their number.
    plain = pyarrow.timestamp(kind.unit) if pyarrow.types.is_timestamp(kind) else None
    number = pyarrow.int32() if pyarrow.types.is_date32(kind) else pyarrow.int64()
    try:
        return str(scalar.cast(number if is_span else plain).cast(pyarrow.string()).as_py())
    except (pyarrow.ArrowException, *_NO_PYTHON_VALUE):
        return None
