"""What becomes of every document: rules, held-out side, duplicates, passages held out.

All of it is decided on the numbers of the parts; of the few pairs that may be near duplicates
the words are read, and no text.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cygnet.corpus.array_file import ArrayFile
from cygnet.corpus.arrow import to_numpy
from cygnet.corpus.clean.rules import Rule, broken, first_broken
from cygnet.corpus.dedup import Duplicate, Entries, find_duplicates
from cygnet.corpus.document import Document
from cygnet.corpus.near import Candidates, Places, compare_in_tasks
from cygnet.corpus.overlap import overlap_with
from cygnet.corpus.part_writer import read_table
from cygnet.corpus.parts import rule_set
from cygnet.corpus.scale import ScaleConfig
from cygnet.corpus.settings import DataConfig
from cygnet.corpus.split import heldout_limit
from cygnet.errors import UserError

CONVERSATION_THRESHOLD = 0.8
"""Conversations are near duplicates from here on: two may ask alike and be answered otherwise."""
REASONS = {
    "not_drawn": "its source's weight is below 1, and its turn did not come",
}


class Parts:
    """All parts of a work folder, as if their documents stood behind one another.

    Attributes:
        folder: the work folder.
        keys: of the parts, in order.
        table: a row for each document; texts stay on disk.
    """

    def __init__(self, folder: Path, keys: Sequence[str]) -> None:
        import pyarrow

        self.folder, self.keys = folder, keys
        tables = [read_table(folder / f"{key}.arrow") for key in keys]
        self.offsets = np.cumsum([0, *(table.num_rows for table in tables)])
        filled = [table for table in tables if table.num_rows]
        self.table = pyarrow.concat_tables(filled) if filled else None

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def has(self, name: str) -> bool:
        """Say whether the table has a column."""
        return self.table is not None and name in self.table.column_names

    def column(self, name: str) -> NDArray[Any]:
        """Return a column of the table."""
        assert self.table is not None
        return to_numpy(self.table.column(name))

    def array(
        self, part: int, suffix: str, first: int = 0, last: int | None = None
    ) -> NDArray[Any]:
        """Read rows of a part's own array."""
        return ArrayFile(self.folder / f"{self.keys[part]}.{suffix}").rows(first, last)

    def document(self, number: int) -> Document:
        """Read one document."""
        part = int(np.searchsorted(self.offsets, number, side="right")) - 1
        with open(self.folder / f"{self.keys[part]}.jsonl", "rb") as file:
            file.seek(int(self._starts[number]))
            return Document.from_json(json.loads(file.readline()))

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return self.column("start")


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of each document, in arrays as long as there are documents."""

    outcome: NDArray[Any]
    """`train`, `heldout`, or why it goes: a rule's name, or a key of `dedup.REASONS`."""
    broken: dict[str, NDArray[np.bool_]]
    """For each rule, which documents break it, whatever other rules say."""
    duplicates: dict[int, Duplicate]
    numbers: dict[str, NDArray[Any]]
    """What the rules were held against."""
    most_like: NDArray[np.int64]
    """The held-out document that has most of a training document's runs of words, or -1."""


def decide(parts: Parts, config: DataConfig, rules: Sequence[Rule], scale: ScaleConfig) -> Decision:
    """Decide on all documents of some parts; texts are compared where `scale` says.

    Raises:
        UserError: the texts that stay share one subject, so that none can be held out.
    """
    numbers = numbers_of(parts)
    found = broken(rules, numbers, rule_sets(parts, config))
    outcome = first_broken(found, len(parts))
    most_like = np.full(len(parts), -1, np.int64)
    outcome[(outcome == "") & (parts.column("copies") == 0)] = "not_drawn"
    if not (outcome == "").any():
        return Decision(outcome, found, {}, numbers, most_like)
    positions = parts.column("position")
    limit = heldout_limit(positions[outcome == ""].tolist(), config.heldout_share)
    duplicates = _duplicates(parts, np.flatnonzero(outcome == ""), limit, config, scale)
    for number, duplicate in duplicates.items():
        outcome[number] = duplicate.reason
    is_heldout = (outcome == "") & (positions < limit)
    overlap = next((rule for rule in rules if rule.number == "heldout_overlap"), None)
    if overlap is not None:
        is_training = (outcome == "") & ~is_heldout
        shared, most_like = overlap_with(partial(_phrases, parts), is_heldout, is_training)
        share = shared / np.maximum(parts.column("phrases"), 1)
        numbers["heldout_overlap"] = share.astype(np.float32)
        found[overlap.name] = overlap.breaks(numbers["heldout_overlap"])
        outcome[(outcome == "") & found[overlap.name]] = overlap.name
    outcome[is_heldout] = "heldout"
    outcome[outcome == ""] = "train"
    return Decision(outcome, found, duplicates, numbers, most_like)


def numbers_of(parts: Parts) -> dict[str, NDArray[Any]]:
    """Return the numbers that rules are held against."""
    import pyarrow

    assert parts.table is not None
    return {
        field.name: parts.column(field.name)
        for field in parts.table.schema
        if field.type == pyarrow.float32()
    }


def rule_sets(parts: Parts, config: DataConfig) -> NDArray[Any]:
    """Return the set of rules that each document is held to."""
    kinds, wanted = parts.column("kind"), parts.column("rules")
    pairs = set(zip(kinds.tolist(), wanted.tolist(), strict=True))
    sets = np.full(len(parts), "", dtype=object)
    for kind, name in pairs:
        sets[(kinds == kind) & (wanted == name)] = rule_set(kind, name, config)
    return sets


def _duplicates(
    parts: Parts,
    numbers: NDArray[np.int64],
    limit: float,
    config: DataConfig,
    scale: ScaleConfig,
) -> dict[int, Duplicate]:
    """Return the duplicates among some documents, by their numbers among all."""
    bounds = np.searchsorted(numbers, parts.offsets)

    def minhash(first: int, last: int) -> NDArray[np.uint32]:
        """Read some rows, a part at a time: all of them take 512 bytes a document."""
        columns = []
        for part, (start, stop) in enumerate(itertools.pairwise(bounds.tolist())):
            rows = parts.array(part, "npy", first, last)
            columns.append(rows[:, numbers[start:stop] - parts.offsets[part]])
        return np.concatenate(columns, axis=1)

    is_conversation = parts.column("is_conversation")[numbers]
    threshold = config.near_duplicate_threshold
    entries = Entries(
        positions=parts.column("position")[numbers],
        ids=parts.column("id")[numbers].astype("S16"),
        sources=parts.column("source")[numbers],
        exact=parts.column("exact")[numbers],
        minhash=minhash,
        thresholds=np.where(is_conversation, max(threshold, CONVERSATION_THRESHOLD), threshold),
        edits=np.where(is_conversation, 0.0, config.near_duplicate_edits),
    )

    counts = parts.column("num_words")
    begins = np.cumsum(counts) - counts

    def compare(candidates: Candidates) -> NDArray[Any]:
        documents = numbers[candidates.documents]
        part = np.searchsorted(parts.offsets, documents, side="right") - 1
        start = begins[documents] - begins[parts.offsets[part]]
        places = Places(part, start, counts[documents])
        return compare_in_tasks(candidates, places, parts.folder, parts.keys, scale)

    found = find_duplicates(entries, limit, compare)
    return {
        int(numbers[number]): Duplicate(
            duplicate.reason, int(numbers[duplicate.of]), duplicate.similarity
        )
        for number, duplicate in found.items()
    }


def _phrases(parts: Parts) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
    """Yield the sampled runs of words of each part, and the number of each one's document."""
    counts = parts.column("phrases")
    for part, (first, last) in enumerate(itertools.pairwise(parts.offsets.tolist())):
        owners = np.repeat(np.arange(first, last), counts[first:last])
        yield parts.array(part, "phrases.npy"), owners


def nothing_left(outcome: NDArray[Any], where: str) -> UserError:
    """Say that every document was dropped, and by what."""
    names, counts = np.unique(outcome.astype(str), return_counts=True)
    dropped = ", ".join(f"{n} {c:,}" for n, c in zip(names, counts, strict=True))
    most = str(names[counts.argmax()])
    advice = {
        "too_short": "lower --corpus.min-chars",
        "other_language": "give other --corpus.languages",
        "private": "mask private data: --corpus.privacy mask",
        "low_quality": "cut lower: --corpus.thresholds low_quality=0.1",
    }.get(most, f"leave a rule out: --corpus.thresholds {most}=off")
    return UserError(
        f"{where}: all {len(outcome):,} documents were dropped ({dropped}); "
        f"give more or longer text, or {advice}"
    )
