"""Files of many kinds as documents, streaming; a bad row costs itself and nothing else."""

from __future__ import annotations

import json
from collections.abc import (
    Callable,
    Container,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from cygnet.corpus.clean.normalize import SURROGATE
from cygnet.corpus.document import Document, document_id
from cygnet.corpus.read.archives import Member, is_hidden, tar_members, zip_members
from cygnet.corpus.read.decode import SEPARATOR, TextStream, cut
from cygnet.corpus.read.find import InputFile
from cygnet.corpus.read.kinds import ARCHIVES, READABLE, kind_of
from cygnet.corpus.read.open import Bounds, Fault, Opened, fault_types, in_a_line, open_raw
from cygnet.corpus.read.piece import Piece
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.read.rows import (
    CONVERSATION_FIELDS,
    TEXT_FIELDS,
    csv_rows,
    json_rows,
    jsonl_rows,
    parquet_rows,
)
from cygnet.errors import UserError, nearest
from cygnet.messages import parse_messages, parse_tools, validate, why_no_conversation
from cygnet.progress import Advance

MAX_CHARS = 20_000
ROWS_TO_JUDGE = 1_000
NO_BOUNDS_GIVEN = Bounds()
_CHAT_FIELDS = CONVERSATION_FIELDS | {"tools"}
_ROWS = {"jsonl": jsonl_rows, "json": json_rows, "csv": csv_rows}
_SEPARATOR_LINE = SEPARATOR.strip("\n")
_SOUGHT_IN = ("epub", "pdf")


def read_file(
    file: InputFile,
    problems: Problems,
    *,
    max_chars: int = MAX_CHARS,
    text_field: str = "",
    advance: Advance | None = None,
    bounds: Bounds = NO_BOUNDS_GIVEN,
) -> Iterator[Document]:
    """Yield the documents of one file, in order.

    Args:
        file: as `find_files` or `slices` gives it; its own `text_field` goes first.
        problems: where bad rows and files are counted and named.
        max_chars: longer texts are cut into pieces (a conversation never is).
        text_field: the field that holds the text; empty for the usual names.
        advance: is told the number of bytes read from disk.
        bounds: on what is unpacked.

    Raises:
        UserError: in a file given by its own name, no row has a text; a package is missing;
            `problems` are strict.
    """
    reading = _Reading(problems, max_chars, text_field, advance, bounds)
    if file.kind == "hub":
        return reading.data_set(file)
    return reading.file(file)


@dataclass(frozen=True, slots=True)
class _Reading:
    """How files are read, whichever they are."""

    problems: Problems
    max_chars: int
    text_field: str
    advance: Advance | None
    bounds: Bounds

    def file(self, file: InputFile) -> Iterator[Document]:
        try:
            raw = open_raw(file)
        except OSError as error:
            kind = "failed download" if file.url else "unreadable"
            self.problems.add(kind, file.place, error.strerror or in_a_line(error))
            return
        with raw:
            in_place = raw.seekable() and (not file.is_slice or file.kind == "parquet")
            opened = Opened(raw, file, self.bounds, advance=self.advance, in_place=in_place)
            yield from self.opened(opened, file)
            left = file.num_bytes() - opened.num_read
            if self.advance is not None and left > 0:  # it was sought in
                self.advance(left)

    def data_set(self, file: InputFile) -> Iterator[Document]:
        from cygnet.corpus.read.hub import hub_rows

        documents = self._documents_of(file)
        try:
            yield from documents.from_rows(hub_rows(file.url))
        except fault_types() as error:
            self.problems.add("failed download", file.place, in_a_line(error))
        documents.judge()

    def opened(self, opened: Opened, file: InputFile) -> Generator[Document, None, bool]:
        """Yield the documents of a file or an archive's member whose first bytes are seen.

        Returns:
            Whether its stream ended too early, which was counted.
        """
        if opened.is_empty:
            self._count(opened.fault or Fault("empty file", ""), file)
            return opened.fault is not None
        kind = opened.kind
        if kind is None:
            self._count(Fault("not text", opened.what), file)
            return False
        if opened.other_kind:
            self.problems.add("other kind", file.place, f"read as {opened.other_kind}")
        documents = self._documents_of(file)
        fault: Fault | None = None
        try:
            yield from self._read(opened, kind, file, documents)
        except fault_types() as error:
            fault = Fault("damaged file", in_a_line(error))
        fault = opened.fault or fault
        if fault is not None and not self._is_said(fault, file):
            self._count(fault, file)
        documents.judge()
        return opened.fault is not None

    def _count(self, fault: Fault, file: InputFile) -> None:
        self.problems.add(fault.kind, file.place, fault.why)

    def _is_said(self, fault: Fault, file: InputFile) -> bool:
        """Say whether the reader of a format has missed what is cut off, and counted it."""
        known = self.problems.kinds.get(fault.kind)
        if known is None or not known.places or fault.kind != "damaged file":
            return False
        return known.places[-1][0].startswith(file.place)

    def _documents_of(self, file: InputFile) -> _Documents:
        text_field = file.text_field or self.text_field
        return _Documents(file, self.problems, self.max_chars, text_field)

    def _read(
        self, opened: Opened, kind: str, file: InputFile, documents: _Documents
    ) -> Iterator[Document]:
        if kind in ARCHIVES:
            sought = opened.seekable() if kind == "zip" else opened.stream
            with_bounds = zip_members(sought, self.bounds) if kind == "zip" else tar_members(sought)
            is_told = False
            for member in with_bounds:
                if member.name or not is_told:  # else the last member was cut off with the archive
                    is_told = yield from self._member(member, file)
        elif kind == "parquet":
            rows = parquet_rows(opened.seekable(), file, self.problems)
            yield from documents.from_rows(rows)
        elif kind == "text" or kind in _ROWS:
            encoding = ("utf-8" if file.start else "utf-8-sig") if file.is_slice else None
            text = TextStream(opened.stream, file.place, self.problems, encoding, file.first_line)
            if kind == "text":
                yield from documents.from_text(text)
            else:
                yield from documents.from_rows(_ROWS[kind](text, file, self.problems))
        else:
            stream = opened.seekable() if kind in _SOUGHT_IN else opened.stream
            yield from documents.from_pieces(_pieces(kind)(stream, file.place, self.problems))

    def _member(self, member: Member, archive: InputFile) -> Generator[Document, None, bool]:
        """Yield the documents of a member; return what `opened` does."""
        place = f"{archive.place}!{member.name}" if member.name else archive.place
        if member.fault is not None or member.stream is None:
            fault = member.fault or Fault("damaged file", "")
            self.problems.add(fault.kind, place, fault.why)
            return False
        if is_hidden(member.name):
            return False
        kind = kind_of(Path(member.name))
        if kind is None:
            self.problems.add("not text", place, f"this kind of file is not read; {READABLE} are")
            return False
        file = replace(
            archive,
            path=Path(f"{archive.path}!{member.name}"),
            url=f"{archive.url}!{member.name}" if archive.url else "",
            given=f"{archive.place}!{member.name}",
            source=f"{archive.source}!{member.name}",
            kind=kind,
            named=False,
        )
        opened = Opened(
            member.stream,
            file,
            self.bounds,
            max_bytes=self.bounds.max_member_bytes,
            num_packed=member.num_packed,
        )
        if opened.kind in ARCHIVES:
            self.problems.add("nested archive", place)
            return False
        return (yield from self.opened(opened, file))


def _pieces(kind: str) -> Callable[[IO[bytes], str, Problems], Iterator[Piece]]:
    """Return what reads a format; each brings libraries of its own."""
    from cygnet.corpus.read import books, code, html, warc, wiki

    return {
        "html": html.html_pieces,
        "epub": books.epub_pieces,
        "pdf": books.pdf_pieces,
        "warc": warc.warc_pieces,
        "wiki": wiki.wiki_pieces,
        "code": code.code_pieces,
        "notebook": code.notebook_pieces,
        "latex": code.latex_pieces,
    }[kind]


class _Documents:
    """Makes documents of one file's text, pieces or rows."""

    def __init__(
        self, file: InputFile, problems: Problems, max_chars: int, text_field: str
    ) -> None:
        # A name that is no UTF-8 cannot be written down as it is.
        source, domain = (whole(name) for name in (file.source, file.domain))
        self._file, self._problems = replace(file, source=source, domain=domain), problems
        self._max_chars, self._text_field = max_chars, text_field
        self._num_without_text = self._num_good = 0
        self._see(())
        self._seen_fields: dict[str, None] = {}

    def from_text(self, text_stream: TextStream) -> Iterator[Document]:
        fields = self._with_licence({})
        for line, text in text_stream.pieces(self._max_chars):
            text = _without_separators(text)
            if text and not text.isspace():
                source = self._file.source if line == 1 else f"{self._file.source}:{line}"
                yield Document(document_id(text), text, self._file.domain, source, fields)

    def from_pieces(self, pieces: Iterable[Piece]) -> Iterator[Document]:
        for where, text, fields in pieces:
            if not text or text.isspace():
                continue
            source = f"{self._file.source}:{where.lstrip(':')}" if where else self._file.source
            fields = self._with_licence(as_json(fields))
            for piece in cut(text, self._max_chars):
                yield Document(document_id(piece), piece, self._file.domain, source, fields)

    def _with_licence(self, fields: dict[str, Any]) -> dict[str, Any]:
        if self._file.licence and "licence" not in fields:
            fields["licence"] = self._file.licence
        return fields

    def from_rows(self, rows: Iterable[tuple[int, Any]]) -> Iterator[Document]:
        for number, row in rows:
            yield from self._from_row(number, row)
            if not self._num_good and self._num_without_text >= ROWS_TO_JUDGE:
                self.judge()

    def _from_row(self, number: int, row: Any) -> Iterator[Document]:
        where = f"{self._file.place}:{number}"
        source = f"{self._file.source}:{number}"
        if isinstance(row, str):
            row = {"text": row}
        if not isinstance(row, Mapping):
            self._problems.add("broken row", where, f"an object is needed, not {_short(row)}")
            return
        shape = tuple(row)
        if shape != self._shape:
            self._see(shape)
        if self._may_be_conversation:
            try:
                messages, tools = conversation(row), parse_tools(row)
            except UserError as error:
                self._num_good += 1  # the kind of row is known, so the file's fields are right
                self._problems.add("bad conversation", where, str(error))
                return
            if messages is not None:
                self._num_good += 1
                yield self._conversation(row, messages, tools, source)
                return
        field, body = self._text_of(row, where)
        if body is not None:
            fields = self._with_licence(_json_fields(row, (field,)))
            for piece in cut(body, self._max_chars):
                yield Document(document_id(piece), piece, self._file.domain, source, fields)

    def _see(self, shape: tuple[Any, ...]) -> None:
        """Note what rows with these fields, as most of a file have, can be."""
        self._shape = shape
        self._may_be_conversation = not _CHAT_FIELDS.isdisjoint(shape)
        names = (self._text_field,) if self._text_field else TEXT_FIELDS
        by_lower = {str(name).strip().lower(): str(name) for name in shape}
        self._text_name = next(
            (by_lower[name.lower()] for name in names if name.lower() in by_lower), None
        )

    def _conversation(
        self,
        row: Mapping[str, Any],
        messages: list[dict[str, Any]],
        tools: list[Any] | None,
        source: str,
    ) -> Document:
        fields = self._with_licence(_json_fields(row, CONVERSATION_FIELDS))
        if tools:
            fields["tools"] = as_json(tools)
        text = transcript(messages)
        return Document(document_id(text), text, self._file.domain, source, fields, messages)

    def _text_of(self, row: Mapping[str, Any], where: str) -> tuple[str, str | None]:
        field = self._text_name
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
        # Of a slice, the first rows alone tell: others may have what these lack.
        if self._file.is_slice and (self._file.start or self._num_without_text < ROWS_TO_JUDGE):
            return
        if self._file.named and self._num_without_text and not self._num_good:
            raise UserError(f"{self._file.place}: in every row {self._missing(self._seen_fields)}")

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
    return as_json([dict(message) for message in messages])


def transcript(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return a conversation as plain text, `User: ...`, `Assistant: ...`, a blank line between."""
    return "\n\n".join(
        f"{str(message['role']).capitalize()}: {message.get('content') or ''}".rstrip()
        for message in messages
    )


def _json_fields(row: Mapping[str, Any], without: Container[str]) -> dict[str, Any]:
    return {whole(str(name)): as_json(value) for name, value in row.items() if name not in without}


def as_json(value: Any) -> Any:
    """Return a value as JSON in UTF-8 can hold it; half a character becomes U+FFFD."""
    if isinstance(value, str):
        return whole(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {whole(str(name)): as_json(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(inner) for inner in value]
    return whole(str(value))


def whole(text: str) -> str:
    """Return a text with U+FFFD for each half of a character (a lone surrogate)."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return SURROGATE.sub("\ufffd", text)
    return text


def _without_separators(text: str) -> str:
    """Take off what `SEPARATOR` leaves at the ends of a file and between two of its kind."""
    if _SEPARATOR_LINE not in text:
        return text
    while text.startswith(_SEPARATOR_LINE + "\n"):
        text = text[len(_SEPARATOR_LINE) + 1 :]
    return "" if text == _SEPARATOR_LINE else text.removesuffix("\n" + _SEPARATOR_LINE)


def _short(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)[:60]
