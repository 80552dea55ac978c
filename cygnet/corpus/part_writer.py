"""A part of the corpus on disk: documents, and a row of numbers for each.

It lies in the work folder as `KEY.jsonl` (the documents), `KEY.arrow` (a row for each), `KEY.npy`
(their MinHash values), `KEY.words.npy` (a hash of every word), `KEY.phrases.npy` (of sampled runs
of words) and `KEY.problems.json`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cygnet.corpus.arrow import to_arrow
from cygnet.corpus.clean.harm import harmful_share
from cygnet.corpus.clean.language import languages
from cygnet.corpus.clean.measure import OF_ALL, measure
from cygnet.corpus.clean.privacy import KINDS
from cygnet.corpus.clean.quality import QualityModel
from cygnet.corpus.clean.words import TextBatch
from cygnet.corpus.dedup import Fingerprints, comparable, fingerprints
from cygnet.corpus.document import Document
from cygnet.corpus.evaluation import EvaluationSet
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.settings import DataConfig
from cygnet.corpus.split import split_position
from cygnet.files import write_json

BATCH_CHARS = 1 << 16
"""Characters that are measured at once: their arrays fit a processor's cache."""
GROUP_CHARS, MAX_ROWS = 1 << 20, 4096
"""Documents are taken in groups of about so many characters, and at most so many of them."""
PRIVATE = "private_"
"""What the columns that count one kind of private data begin with."""

CONTAMINATED = ("contaminated_by", "contaminated_passage")
"""The columns that say which item of an evaluation set was found, and by which words."""


@dataclass(frozen=True, slots=True)
class Row:
    """A cleaned document and what is known of its source."""

    document: Document
    private: Mapping[str, int]
    """How much private data was found in it, by its kind."""
    kind: str
    """`InputFile.kind`."""
    of_web: bool
    """Whether it is held to the rules for web pages."""
    rules: str
    """The set of rules that its source asks for, or an empty string."""
    copies: int
    """How often it is seen in an epoch."""
    repeated_chars: int = 0
    """Characters that were taken out of it, since they stand in many documents."""


class PartWriter:
    """Makes one part; the table comes last, so that a part with a table is whole."""

    def __init__(self, folder: Path, key: str, config: DataConfig) -> None:
        self._folder, self._key, self._config = folder, key, config
        self._tables: list[Any] = []
        self._minhash: list[Any] = []
        self._phrases: list[Any] = []
        self._words: list[Any] = []
        self._end = 0
        self._evaluation = EvaluationSet.load(folder) if config.evaluation else None
        self._quality = (
            QualityModel.load(Path(config.quality_filter)) if config.quality_filter else None
        )

    def write(self, rows: Iterator[Row], problems: Problems) -> None:
        """Measure and write some rows, and the problems that reading them had."""
        import pyarrow
        import pyarrow.ipc

        def temporary(suffix: str) -> Path:
            return self._folder / f".{self._key}.{os.getpid()}.{suffix}.tmp"

        names = ("jsonl", "npy", "phrases.npy", "words.npy", "problems.json", "arrow")
        try:
            with open(temporary("jsonl"), "wb") as texts:
                for group in _parted(rows, GROUP_CHARS):
                    texts.write(self._take(group))
            empty = fingerprints(TextBatch([""]))
            with open(temporary("npy"), "wb") as file:
                np.save(file, np.concatenate([*self._minhash, empty.minhash[:, :0]], axis=1))
            with open(temporary("phrases.npy"), "wb") as file:
                np.save(file, np.concatenate([*self._phrases, empty.phrases[:0]]))
            with open(temporary("words.npy"), "wb") as file:
                np.save(file, np.concatenate([*self._words, empty.words[:0]]))
            write_json(temporary("problems.json"), problems.to_state())
            table = pyarrow.concat_tables(self._tables) if self._tables else pyarrow.table({})
            options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
            sizes = {name: str(temporary(name).stat().st_size) for name in names[:-1]}
            table = table.replace_schema_metadata(sizes)
            with pyarrow.ipc.new_file(temporary("arrow"), table.schema, options=options) as writer:
                writer.write_table(table)
            for name in names:
                os.replace(temporary(name), self._folder / f"{self._key}.{name}")
        finally:
            for name in names:
                temporary(name).unlink(missing_ok=True)

    def _take(self, rows: list[Row]) -> bytes:
        """Measure a group of documents; return their lines."""
        spoken = [language for language, _ in languages([row.document.text for row in rows])]
        numbers: list[dict[str, NDArray[Any]]] = []
        prints: list[Fingerprints] = []
        first = 0
        for batch in _parted(rows, BATCH_CHARS):
            found = self._numbers(batch, spoken[first : first + len(batch)])
            numbers.append(found[0])
            prints.append(found[1])
            first += len(batch)
        lines = [_line(row, language) for row, language in zip(rows, spoken, strict=True)]
        joined = {name: np.concatenate([n[name] for n in numbers]) for name in numbers[0]}
        self._add(rows, spoken, joined, prints, lines)
        return b"".join(lines)

    def _numbers(
        self, rows: list[Row], spoken: list[str]
    ) -> tuple[dict[str, NDArray[Any]], Fingerprints]:
        """Measure a batch of documents."""
        texts = [row.document.text for row in rows]
        words = TextBatch(texts)
        numbers: dict[str, NDArray[Any]] = {}
        of_web = np.array([row.of_web for row in rows])
        for name, values in measure(words, spoken, bool(of_web.any())).items():
            numbers[name] = values if name in OF_ALL else np.where(of_web, values, np.nan)
        numbers["harmful"] = harmful_share(words)
        numbers["private"] = np.array([sum(row.private.values()) for row in rows])
        if self._config.languages:
            wanted = [language in self._config.languages for language in spoken]
            numbers["wanted_language"] = np.array(wanted)
        if self._quality is not None:
            numbers["quality"] = self._quality.scores(words)
        compared = [comparable(row.document) for row in rows]
        whole = words if compared == texts else TextBatch(compared)
        if self._evaluation is not None:
            numbers["contaminated"], *told = self._evaluation.found_in(whole)
            numbers |= zip(CONTAMINATED, (np.array(words, object) for words in told), strict=True)
        return numbers, fingerprints(whole)

    def _add(
        self,
        rows: list[Row],
        spoken: list[str],
        numbers: dict[str, NDArray[Any]],
        prints: list[Fingerprints],
        lines: list[bytes],
    ) -> None:
        import pyarrow

        lengths = np.array([len(line) for line in lines], np.int64)
        starts = self._end + np.cumsum(lengths) - lengths
        self._end += int(lengths.sum())
        documents = [row.document for row in rows]
        seed = self._config.seed
        exact = np.concatenate([found.exact for found in prints])
        by_exact = zip(documents, map(bytes, exact), strict=True)
        columns: dict[str, Any] = {
            "id": [document.id for document in documents],
            "source": [document.source for document in documents],
            "domain": [document.domain for document in documents],
            "language": spoken,
            "is_conversation": np.array([document.messages is not None for document in documents]),
            "kind": [row.kind for row in rows],
            "rules": [row.rules for row in rows],
            "licence": [str(document.fields.get("licence") or "") for document in documents],
            "copies": np.array([row.copies for row in rows]),
            "repeated_chars": np.array([row.repeated_chars for row in rows], np.int32),
            "position": np.array([split_position(doc, seed, key) for doc, key in by_exact]),
            "bytes": np.array([len(doc.text.encode("utf-8", "replace")) for doc in documents]),
            "start": starts,
            "length": lengths,
            "exact": exact,
            "num_words": np.concatenate([found.num_words for found in prints]),
            "phrases": np.concatenate([found.phrase_counts for found in prints]),
        }
        if self._evaluation is not None:
            columns |= {name: numbers.pop(name) for name in CONTAMINATED}
        for kind in KINDS:
            found = [row.private.get(kind, 0) for row in rows]
            columns[PRIVATE + kind] = np.minimum(found, 0xFFFF).astype(np.uint16)
        columns |= {name: values.astype(np.float32) for name, values in numbers.items()}
        arrays = {name: to_arrow(values) for name, values in columns.items()}
        self._tables.append(pyarrow.table(arrays))
        self._minhash += [found.minhash for found in prints]
        self._phrases += [found.phrases for found in prints]
        self._words += [found.words for found in prints]


def is_whole(folder: Path, key: str) -> bool:
    """Say whether a part is there with all its files; a power cut may leave some of them short."""
    path = folder / f"{key}.arrow"
    try:
        sizes = read_table(path).schema.metadata or {}
        return all(
            (folder / f"{key}.{name.decode()}").stat().st_size == int(size)
            for name, size in sizes.items()
        )
    except (OSError, ValueError):  # pyarrow's own errors are ValueErrors
        return False


def read_table(path: Path) -> Any:
    """Return a part's table (a `pyarrow.Table`)."""
    import pyarrow
    import pyarrow.ipc

    with pyarrow.memory_map(str(path)) as file:
        return pyarrow.ipc.open_file(file).read_all()


def private_in(table: Any) -> list[dict[str, int]]:
    """Return how much private data was found in each document of a part, by its kind."""
    found = table.select([PRIVATE + kind for kind in KINDS]).rename_columns(list(KINDS))
    return [{kind: n for kind, n in row.items() if n} for row in found.to_pylist()]


def _parted(rows: Iterable[Row], most_chars: int) -> Iterator[list[Row]]:
    """Yield rows of about so many characters at a time."""
    part: list[Row] = []
    chars = 0
    for row in rows:
        part.append(row)
        chars += len(row.document.text)
        if chars >= most_chars or len(part) >= MAX_ROWS:
            yield part
            part, chars = [], 0
    if part:
        yield part


def _line(row: Row, language: str) -> bytes:
    value = row.document.to_json() | {"language": language}
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_with_finite_numbers(value), ensure_ascii=False)
    return text.encode() + b"\n"


def _with_finite_numbers(value: Any) -> Any:
    """Return a JSON value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_with_finite_numbers(item) for item in value]
    if isinstance(value, dict):
        return {name: _with_finite_numbers(item) for name, item in value.items()}
    return value
