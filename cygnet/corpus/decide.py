"""What becomes of every document: rules, held-out side, duplicates, passages held out.

All of it is decided on the numbers of the parts; texts are read again only to compare the few
pairs that may be near duplicates.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cygnet.corpus.arrow import to_numpy
from cygnet.corpus.clean.rules import Rule, broken, first_broken
from cygnet.corpus.dedup import Compared, Duplicate, Entries, find_duplicates
from cygnet.corpus.document import Document
from cygnet.corpus.part_writer import read_table
from cygnet.corpus.parts import rule_set
from cygnet.corpus.settings import DataConfig
from cygnet.corpus.split import heldout_limit
from cygnet.errors import UserError
from cygnet.progress import progress

COMMON_PHRASES = 10
"""Runs of words in more training documents than this are common property (licences, notices), and
no sign that held-out text was copied."""
CONVERSATION_THRESHOLD = 0.8
"""Conversations are near duplicates from here on: two may ask alike and be answered otherwise."""
REASONS = {
    "not_drawn": "its source's weight is below 1, and its turn did not come",
}


class Parts:
    """All parts of a work folder, as if their documents stood behind one another.

    Attributes:
        table: a row for each document; texts stay on disk.
    """

    def __init__(self, folder: Path, keys: Sequence[str]) -> None:
        import pyarrow

        self._folder, self._keys = folder, keys
        self._open = lru_cache(maxsize=64)(partial(np.load, mmap_mode="r"))
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

    def array(self, part: int, suffix: str) -> NDArray[Any]:
        """Return a part's own array, on disk; few are open at a time."""
        return self._open(self._folder / f"{self._keys[part]}.{suffix}")

    def document(self, number: int) -> Document:
        """Read one document."""
        part = int(np.searchsorted(self.offsets, number, side="right")) - 1
        with open(self._folder / f"{self._keys[part]}.jsonl", "rb") as file:
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


def decide(parts: Parts, config: DataConfig, rules: Sequence[Rule]) -> Decision:
    """Decide on all documents of some parts.

    Raises:
        UserError: the texts that stay share one subject, so that none can be held out.
    """
    numbers = numbers_of(parts)
    found = broken(rules, numbers, rule_sets(parts, config))
    outcome = first_broken(found, len(parts))
    outcome[(outcome == "") & (parts.column("copies") == 0)] = "not_drawn"
    if not (outcome == "").any():
        return Decision(outcome, found, {}, numbers)
    positions = parts.column("position")
    limit = heldout_limit(positions[outcome == ""].tolist(), config.heldout_share)
    duplicates = _duplicates(parts, np.flatnonzero(outcome == ""), limit, config)
    for number, duplicate in duplicates.items():
        outcome[number] = duplicate.reason
    is_heldout = (outcome == "") & (positions < limit)
    overlap = next((rule for rule in rules if rule.number == "heldout_overlap"), None)
    if overlap is not None:
        numbers["heldout_overlap"] = _heldout_overlap(parts, outcome == "", is_heldout)
        found[overlap.name] = overlap.breaks(numbers["heldout_overlap"])
        outcome[(outcome == "") & found[overlap.name]] = overlap.name
    outcome[is_heldout] = "heldout"
    outcome[outcome == ""] = "train"
    return Decision(outcome, found, duplicates, numbers)


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
    parts: Parts, numbers: NDArray[np.int64], limit: float, config: DataConfig
) -> dict[int, Duplicate]:
    """Return the duplicates among some documents, by their numbers among all."""
    bounds = np.searchsorted(numbers, parts.offsets)

    def minhash(first: int, last: int) -> NDArray[np.uint32]:
        """Read some rows, a part at a time: all of them take 512 bytes a document."""
        columns = []
        for part, (start, stop) in enumerate(itertools.pairwise(bounds.tolist())):
            rows = parts.array(part, "npy")[first:last]
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

    ends = parts.column("num_words").cumsum()
    begins = np.concatenate([[0], ends[:-1]])

    @lru_cache(maxsize=4096)
    def compared(number: int) -> Compared:
        document = int(numbers[number])
        part = int(np.searchsorted(parts.offsets, document, side="right")) - 1
        origin = begins[parts.offsets[part]]
        span = slice(begins[document] - origin, ends[document] - origin)
        return Compared.of_words(np.array(parts.array(part, "words.npy")[span]))

    with progress("de-duplicate", len(numbers)) as advance:
        found = find_duplicates(entries, limit, compared, advance)
    return {
        int(numbers[number]): Duplicate(
            duplicate.reason, int(numbers[duplicate.of]), duplicate.similarity
        )
        for number, duplicate in found.items()
    }


def _heldout_overlap(
    parts: Parts, is_kept: NDArray[np.bool_], is_heldout: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return the share of each training document's sampled runs of words that held-out ones have.

    A single one is chance.
    """
    counts = parts.column("phrases")
    owners = np.repeat(np.arange(len(parts)), counts)
    num_parts = len(parts.offsets) - 1
    phrases = np.concatenate([parts.array(part, "phrases.npy") for part in range(num_parts)])
    held = np.unique(phrases[is_heldout[owners]])
    overlap = np.zeros(len(parts), np.float32)
    if not len(held):
        return overlap
    is_training = (is_kept & ~is_heldout)[owners]
    owners, phrases = owners[is_training], phrases[is_training]
    at = np.minimum(np.searchsorted(held, phrases), len(held) - 1)
    shared = held[at] == phrases
    pairs = np.unique(np.stack([at[shared], owners[shared]], axis=1), axis=0)
    num_documents = np.bincount(pairs[:, 0], minlength=len(held))
    rare = pairs[num_documents[pairs[:, 0]] <= COMMON_PHRASES]
    np.add.at(overlap, rare[:, 1], 1)
    return np.where(overlap > 1, overlap / np.maximum(counts, 1), 0).astype(np.float32)


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
