"""Files of many kinds as documents, streaming; a bad row costs itself and nothing else."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from cygnet.corpus.clean.normalize import SURROGATE
from cygnet.corpus.document import Document, document_id
from cygnet.corpus.read.decode import MAX_LINE_CHARS, TextStream, cut
from cygnet.corpus.read.find import InputFile
from cygnet.corpus.read.problems import Problems
from cygnet.errors import UserError, nearest
from cygnet.files import COMPRESSIONS
from cygnet.messages import parse_messages, parse_tools, validate, why_no_conversation

MAX_CHARS = 20_000
MAX_JSON_CHARS = 1 << 28
ROWS_TO_JUDGE = 1_000
TEXT_FIELDS = ("text", "content", "body", "document", "article", "story", "passage", "raw_text")
CONVERSATION_FIELDS = frozenset(
    (
        *("messages", "conversations", "conversation", "system", "history"),
        *("instruction", "input", "output", "prompt", "question", "query"),
        *("response", "answer", "completion"),
    )
)
Advance = Callable[..., None]


def read_file(
    file: InputFile,
    problems: Problems,
    *,
    max_chars: int = MAX_CHARS,
    text_field: str = "",
    advance: Advance | None = None,
) -> Iterator[Document]:
    """Yield the documents of one file, in order.

    Args:
        file: as `find_files` gives it.
        problems: where bad rows and files are counted and named.
        max_chars: longer texts are cut into pieces (a conversation never is).
        text_field: the field that holds the text; empty for the usual names.
        advance: is told the number of bytes read from disk.

    Raises:
        UserError: in a file given by its own name, no row has a text.
    """
    import pyarrow

    rows = _Rows(file, problems, max_chars, text_field)
    try:
        with _open(file.path, advance) as stream:
            if file.kind == "text":
                yield from rows.from_text(stream)
            elif file.kind == "parquet":
                yield from rows.from_rows(_parquet_rows(file, stream))
            else:
                text = TextStream(stream, str(file.path), problems)
                read = {"jsonl": _jsonl_rows, "json": _json_rows, "csv": _csv_rows}[file.kind]
                yield from rows.from_rows(read(text, file, problems))
    except (OSError, EOFError, pyarrow.ArrowException) as error:
        why = " ".join(str(error).split())[:200]
        problems.add("damaged file", str(file.path), why)
    rows.judge()


@contextmanager
def _open(path: Path, advance: Advance | None) -> Iterator[IO[bytes]]:
    import pyarrow

    with open(path, "rb") as raw:
        stream: Any = raw
        if path.suffix in COMPRESSIONS:
            if not raw.peek(1):
                yield io.BytesIO()
                return
            packed = pyarrow.PythonFile(raw)
            stream = pyarrow.CompressedInputStream(packed, COMPRESSIONS[path.suffix])
        yield _Counted(stream, raw, advance)  # type: ignore[misc]


class _Counted:
    """A byte stream that tells how far the file on disk has been read."""

    def __init__(self, stream: Any, raw: IO[bytes], advance: Advance | None) -> None:
        self._stream, self._raw, self._advance, self._told = stream, raw, advance, 0

    def read(self, size: int = -1) -> bytes:
        block = self._stream.read(size) if size >= 0 else self._stream.read()
        if self._advance is not None:
            at = self._raw.tell()
            self._advance(at - self._told)
            self._told = at
        return bytes(block)


class _Rows:
    """Makes documents of one file's text or rows."""

    def __init__(
        self, file: InputFile, problems: Problems, max_chars: int, text_field: str
    ) -> None:
        # A name that is no UTF-8 cannot be written down as it is.
        source, domain = (SURROGATE.sub("\ufffd", name) for name in (file.source, file.domain))
        self._file, self._problems = replace(file, source=source, domain=domain), problems
        self._max_chars, self._text_field = max_chars, text_field
        self._num_without_text = self._num_good = 0
        self._seen_fields: dict[str, None] = {}

    def from_text(self, stream: IO[bytes]) -> Iterator[Document]:
        text_stream = TextStream(stream, str(self._file.path), self._problems)
        for line, text in text_stream.pieces(self._max_chars):
            text = text.removesuffix("\n<|endoftext|>").removeprefix("<|endoftext|>\n")
            if text.strip():
                source = self._file.source if line == 1 else f"{self._file.source}:{line}"
                yield Document(document_id(text), text, self._file.domain, source)

    def from_rows(self, rows: Iterable[tuple[int, Any]]) -> Iterator[Document]:
        for number, row in rows:
            yield from self._from_row(number, row)
            if not self._num_good and self._num_without_text >= ROWS_TO_JUDGE:
                self.judge()

    def _from_row(self, number: int, row: Any) -> Iterator[Document]:
        where = f"{self._file.path}:{number}"
        source = f"{self._file.source}:{number}"
        if isinstance(row, str):
            row = {"text": row}
        if not isinstance(row, Mapping):
            self._problems.add("broken row", where, f"an object is needed, not {_short(row)}")
            return
        try:
            messages, tools = conversation(row), parse_tools(row)
        except UserError as error:
            self._num_good += 1  # the kind of row is known, so the file's fields are right
            self._problems.add("bad conversation", where, str(error))
            return
        if messages is not None:
            self._num_good += 1
            fields = _json_fields(row, CONVERSATION_FIELDS)
            if tools:
                fields["tools"] = _as_json(tools)
            text = transcript(messages)
            domain = self._file.domain
            yield Document(document_id(text), text, domain, source, fields, messages)
            return
        field, body = self._text_of(row, where)
        if body is not None:
            fields = _json_fields(row, {field})
            for piece in cut(body, self._max_chars):
                yield Document(document_id(piece), piece, self._file.domain, source, fields)

    def _text_of(self, row: Mapping[str, Any], where: str) -> tuple[str, str | None]:
        names = (self._text_field,) if self._text_field else TEXT_FIELDS
        by_lower = {str(name).strip().lower(): str(name) for name in row}
        field = next((by_lower[name.lower()] for name in names if name.lower() in by_lower), None)
        if field is None and (why := why_no_conversation(row)):
            self._num_good += 1
            self._problems.add("bad conversation", where, why)
            return "", None
        if field is None:
            self._num_without_text += 1
            self._seen_fields.update(dict.fromkeys(map(str, row)))
            self._problems.add("no text", where, self._missing(row))
            return "", None
        self._num_good += 1
        text = row[field]
        if not isinstance(text, str) or not text.strip():
            self._problems.add("no text", where, f"the field {field!r} is {_short(text)}")
            return field, None
        return field, text

    def judge(self) -> None:
        """Raise `UserError` if a file that was named has rows and not one with a text."""
        if self._file.named and self._num_without_text and not self._num_good:
            raise UserError(f"{self._file.path}: in every row {self._missing(self._seen_fields)}")

    def _missing(self, fields: Iterable[Any]) -> str:
        wanted = self._text_field or "text"
        names = [str(name) for name in fields]
        shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        return (
            f"no field {wanted!r}{nearest(wanted, names)}; the fields are {shown or 'none'}; "
            "name the one that holds the text with --corpus.text-field"
        )


def conversation(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return a row's messages in OpenAI's form, or None if it is no conversation.

    Raises:
        UserError: it is one, but with roles, order or answers that no chat can have.
    """
    messages = parse_messages(row)
    if messages is None:
        return None
    validate(messages)
    return _as_json([dict(message) for message in messages])


def transcript(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return a conversation as plain text, `User: ...`, `Assistant: ...`, a blank line between."""
    return "\n\n".join(
        f"{str(message['role']).capitalize()}: {message.get('content') or ''}".rstrip()
        for message in messages
    )


def _json_fields(row: Mapping[str, Any], without: Iterable[str]) -> dict[str, Any]:
    return _as_json({str(name): value for name, value in row.items() if name not in without})


def _as_json(value: Any) -> Any:
    """Return a value as JSON in UTF-8 can hold it; half a character becomes U+FFFD."""
    return json.loads(SURROGATE.sub("\ufffd", json.dumps(value, default=str, ensure_ascii=False)))


def _short(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)[:60]


def _jsonl_rows(
    stream: TextStream, file: InputFile, problems: Problems
) -> Iterator[tuple[int, Any]]:
    return _parsed_lines(stream.lines(), file, problems)


def _parsed_lines(
    lines: Iterable[tuple[int, str]], file: InputFile, problems: Problems
) -> Iterator[tuple[int, Any]]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.add("broken row", f"{file.path}:{number}", str(error))
            continue
        yield number, row


def _json_rows(
    stream: TextStream, file: InputFile, problems: Problems
) -> Iterator[tuple[int, Any]]:
    parts: list[str] = []
    length = 0
    for chunk in stream.chunks():
        parts.append(chunk)
        length += len(chunk)
        if length > MAX_JSON_CHARS:
            why = f"over {MAX_JSON_CHARS:,} characters in one value; make it .jsonl, a row a line"
            problems.add("damaged file", str(file.path), why)
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
            problems.add("broken row", str(file.path), str(error))
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


def _csv_rows(stream: TextStream, file: InputFile, problems: Problems) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(MAX_LINE_CHARS)
    lines = (line + "\n" for _, line in stream.lines())
    first = next(lines, "")
    delimiter = max("\t" if ".tsv" in file.path.name else ",;\t|", key=first.count)
    reader = csv.reader(_chain(first, lines), delimiter=delimiter)
    header: list[str] | None = None
    while True:
        where = f"{file.path}:{reader.line_num + 1}"
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


def _parquet_rows(file: InputFile, stream: IO[bytes]) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    packed = file.path.suffix in COMPRESSIONS
    source: Any = pyarrow.BufferReader(stream.read()) if packed else str(file.path)
    number = 0
    with pyarrow.parquet.ParquetFile(source) as table:
        for batch in table.iter_batches(batch_size=1_000):
            for row in batch.to_pylist():
                number += 1
                yield number, row
