"""Raw files to a data folder: read, normalise, filter, de-duplicate, split, report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import cygnet
from cygnet.corpus import builtin
from cygnet.corpus.clean.filters import drop_reason
from cygnet.corpus.clean.normalize import normalize
from cygnet.corpus.dedup import (
    Duplicate,
    Entry,
    comparable_words,
    exact_key,
    find_duplicates,
    signature,
)
from cygnet.corpus.document import Document, document_id
from cygnet.corpus.read.find import READABLE, InputFile, find_files
from cygnet.corpus.read.problems import FILE as PROBLEMS_FILE
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.read.readers import MAX_CHARS, read_file, transcript
from cygnet.corpus.report import Tally
from cygnet.corpus.split import heldout_limit, split_position
from cygnet.errors import UserError
from cygnet.files import JsonlWriter, folder_atomic, sha256_file, write_atomic, write_json
from cygnet.progress import Advance, progress, say

FORMAT_VERSION = 1
TRAIN, HELDOUT = "train.jsonl.zst", "heldout.jsonl.zst"
OUTPUTS = (TRAIN, HELDOUT, "report.json", "report.md", PROBLEMS_FILE)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to read and how to clean it.

    Raises:
        UserError: a value is out of its range.
    """

    paths: tuple[str, ...] = ()
    """Files, folders or globs: txt, md, jsonl, json, csv, tsv, parquet, each also .gz or .zst.
    None given: the built-in text."""
    heldout_share: float = 0.02
    """The share of documents that are held out, chosen by a hash of their title or text."""
    min_chars: int = 20
    """Shorter documents are dropped."""
    max_chars: int = MAX_CHARS
    """Longer texts are cut into documents of at most so many characters."""
    near_duplicate_threshold: float = 0.8
    """The least share of common word pairs (Jaccard) at which a document counts as a duplicate."""
    text_field: str = ""
    """The field that holds the text of a row; empty for the usual names (text, content, ...)."""
    seed: int = 0
    """Another seed holds out other documents."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("heldout_share", 1e-6, 0.5),
            ("min_chars", 1, 10_000),
            ("max_chars", 200, 10_000_000),
            ("near_duplicate_threshold", 0.3, 1.0),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"{name} is {value}; give a value from {low} to {high}")
        if self.min_chars > self.max_chars:
            raise UserError(f"min_chars ({self.min_chars}) is over max_chars ({self.max_chars})")


def prepare(config: DataConfig, out: Path) -> Path:
    """Make the data folder `out`: train and held-out documents, report, manifest.

    Does nothing but say so if `out` was made from the same files with the same settings.

    Raises:
        UserError: a path cannot be read, nothing usable is left, no text is left to hold out or
            to train on, or `out` holds something else.
    """
    problems = Problems()
    files = find_files(config.paths, problems, exclude=out)
    if config.paths and not files:
        raise UserError(f"{', '.join(config.paths)}: no file to read there; {_first_of(problems)}")
    manifest = _manifest(config, files)
    changed = _what_changed(out, manifest)
    if not changed:
        say(f"data: up to date, nothing to do ({out})")
        return out
    if changed != ["new"]:
        say(f"data: made again, for {'; '.join(changed)}")
    with folder_atomic(out) as folder:
        tally = _Preparation(config, files, problems, folder).run()
        write_json(folder / "report.json", tally.to_json(problems))
        write_atomic(folder / "report.md", tally.to_markdown(problems))
        with JsonlWriter(folder / PROBLEMS_FILE) as writer:
            for row in problems.rows():
                writer.write(row)
        manifest["outputs"] = {name: sha256_file(folder / name) for name in OUTPUTS}
        write_json(folder / "manifest.json", manifest)
    _say_outcome(tally, problems, out)
    return out


def _manifest(config: DataConfig, files: list[InputFile]) -> dict[str, Any]:
    settings = dataclasses.asdict(config)
    del settings["paths"]  # the inputs say more, and the same files give the same bytes anywhere
    if not config.paths:
        files = [InputFile(p, f"builtin/{p.name}", "", "jsonl") for p in builtin.builtin_files()]
    return {
        "made_by": "cygnet data",
        "format_version": FORMAT_VERSION,
        "cygnet_version": cygnet.__version__,
        "settings": settings,
        "inputs": [
            {
                "path": file.source,
                "domain": file.domain,
                "bytes": file.path.stat().st_size,
                "sha256": sha256_file(file.path),
            }
            for file in files
        ],
    }


def _what_changed(out: Path, wanted: dict[str, Any]) -> list[str]:
    """Return what differs from the manifest in `out`: nothing, `new`, or each change."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return ["new"]
    try:
        found = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        ours = found["made_by"] == wanted["made_by"]
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise UserError(f"{out}: exists and was not made by cygnet data; choose another --out")
    changes = [
        f"{name} was {found.get(name)}, is {wanted[name]}"
        for name in ("cygnet_version", "format_version")
        if found.get(name) != wanted[name]
    ]
    old, new = found.get("settings", {}), wanted["settings"]
    changes += [
        f"{name} was {old.get(name)!r}, is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    changes += _changed_inputs(found.get("inputs", []), wanted["inputs"])
    outputs = found.get("outputs", {})
    for name in OUTPUTS:
        path = out / name
        if not path.is_file() or sha256_file(path) != outputs.get(name):
            changes.append(f"{name} is missing or was changed")
    return changes


def _changed_inputs(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[str]:
    if old == new:
        return []
    before = {entry["path"]: entry for entry in old}
    after = {entry["path"]: entry for entry in new}
    changes = [f"{path} is new" for path in after if path not in before]
    changes += [f"{path} is gone" for path in before if path not in after]
    changes += [f"{p} changed" for p in after if p in before and before[p] != after[p]]
    changes = changes or ["the files come in another order"]
    more = [f"{len(changes) - 3} more"] if len(changes) > 3 else []
    return changes[:3] + more


class _Preparation:
    """One run of the pipeline. Texts wait on disk; memory holds a signature a document."""

    def __init__(
        self, config: DataConfig, files: list[InputFile], problems: Problems, folder: Path
    ) -> None:
        self._config, self._files, self._problems = config, files, problems
        self._folder = folder
        self._tally = Tally()
        self._entries: list[Entry] = []
        self._offsets: list[int] = []

    def run(self) -> Tally:
        """Write the two document files; return the counts."""
        waiting = self._folder / "waiting.jsonl"
        try:
            with open(waiting, "wb") as spill:
                for document in self._documents():
                    self._take(document, spill)
            with open(waiting, "rb") as spill:
                if not self._entries:
                    raise UserError(self._nothing_left())
                limit = heldout_limit(
                    [entry.position for entry in self._entries], self._config.heldout_share
                )
                self._write(spill, limit, self._duplicates(spill, limit))
        finally:
            waiting.unlink(missing_ok=True)
        if not self._tally.count("train").documents:
            raise UserError(
                "no training text left: all that is not held out repeats held-out text; "
                "give more text"
            )
        return self._tally

    def _documents(self) -> Iterator[Document]:
        if not self._config.paths:
            with progress("read", builtin.NUM_DOCUMENTS) as advance:
                for document in builtin.builtin_documents():
                    advance()
                    yield document
            return
        with progress("read", sum(file.path.stat().st_size for file in self._files)) as advance:
            for file in self._files:
                yield from self._read(file, advance)

    def _read(self, file: InputFile, advance: Advance) -> Iterator[Document]:
        return read_file(
            file,
            self._problems,
            max_chars=self._config.max_chars,
            text_field=self._config.text_field,
            advance=advance,
        )

    def _take(self, document: Document, spill: IO[bytes]) -> None:
        document = normalized(document)
        self._tally.add_read(document)
        tokens = comparable_words(document)
        reason = drop_reason(document.text, tokens, self._config.min_chars)
        if reason is not None:
            self._tally.add_outcome(document, reason)
            return
        self._offsets.append(spill.tell())
        spill.write(json.dumps(document.to_json(), ensure_ascii=False).encode() + b"\n")
        position = split_position(document, self._config.seed)
        key, minhash = exact_key(tokens), signature(tokens)
        self._entries.append(Entry(position, document.id, document.source, key, minhash))

    def _at(self, spill: IO[bytes], number: int) -> Document:
        spill.seek(self._offsets[number])
        return Document.from_json(json.loads(spill.readline()))

    def _duplicates(self, spill: IO[bytes], limit: float) -> dict[int, Duplicate]:
        found = find_duplicates(
            self._entries,
            limit,
            self._config.near_duplicate_threshold,
            lambda number: comparable_words(self._at(spill, number)),
        )
        duplicates: dict[int, Duplicate] = {}
        with progress("de-duplicate", len(self._entries)) as advance:
            for number, duplicate in found:
                if duplicate is not None:
                    duplicates[number] = duplicate
                advance()
        return duplicates

    def _write(self, spill: IO[bytes], limit: float, duplicates: dict[int, Duplicate]) -> None:
        with (
            JsonlWriter(self._folder / TRAIN) as train,
            JsonlWriter(self._folder / HELDOUT) as heldout,
            progress("write", len(self._entries)) as advance,
        ):
            for number, entry in enumerate(self._entries):
                document = self._at(spill, number)
                duplicate = duplicates.get(number)
                if duplicate is not None:
                    of = self._entries[duplicate.of].source
                    why = f"{duplicate.similarity:.2f} like {of}"
                    self._tally.add_outcome(document, duplicate.reason, why)
                elif entry.position < limit:
                    heldout.write(document.to_json())
                    self._tally.add_outcome(document, "heldout")
                else:
                    train.write(document.to_json())
                    self._tally.add_outcome(document, "train")
                advance()

    def _nothing_left(self) -> str:
        counts = dict(self._tally.waterfall())
        num_read = counts.pop("read").documents
        where = ", ".join(self._config.paths)
        if not num_read:
            return f"{where}: no text found; {_first_of(self._problems)}"
        dropped = ", ".join(f"{name} {c.documents:,}" for name, c in counts.items() if c.documents)
        return (
            f"{where}: all {num_read:,} documents were dropped ({dropped}); "
            "give more or longer text, or lower --corpus.min-chars"
        )


def normalized(document: Document) -> Document:
    """Return the document with its text, messages and title normalised, and its id anew."""
    messages = document.messages
    if messages is not None:
        messages = [
            {**message, "content": normalize(message["content"])}
            if isinstance(message.get("content"), str)
            else message
            for message in messages
        ]
        text = transcript(messages)
    else:
        text = normalize(document.text)
    if text == document.text and messages == document.messages:
        return document
    return dataclasses.replace(document, id=document_id(text), text=text, messages=messages)


def _first_of(problems: Problems) -> str:
    lines = problems.lines()
    return lines[0] if lines else f"give {READABLE}"


def _say_outcome(tally: Tally, problems: Problems, out: Path) -> None:
    for line in problems.lines():
        say(f"data: {line}")
    counts = dict(tally.waterfall())
    num_read = counts.pop("read").documents
    train, heldout = counts.pop("train"), counts.pop("heldout")
    dropped = ", ".join(f"{name} {c.documents:,}" for name, c in counts.items() if c.documents)
    say(
        f"data: {num_read:,} documents read, {train.documents:,} to train on "
        f"({train.bytes / 1e6:.2f} MB), {heldout.documents:,} held out "
        f"({heldout.bytes / 1e6:.2f} MB); dropped: {dropped or 'none'}; see {out / 'report.md'}"
    )
