"""What becomes of every document: rules, held-out side, duplicates, passages held out.

All of it is decided on the numbers of the parts; texts are read again only to compare the few
pairs that may be near duplicates.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cygnet.corpus.array_file import ArrayFile
from cygnet.corpus.arrow import to_numpy
from cygnet.corpus.clean.rules import Rule, broken, first_broken
from cygnet.corpus.dedup import Duplicate, Entries, find_duplicates
from cygnet.corpus.document import Document
from cygnet.corpus.near import Candidates, Places, compare_in_tasks, sorted_set
from cygnet.corpus.part_writer import read_table
from cygnet.corpus.parts import rule_set
from cygnet.corpus.scale import ScaleConfig
from cygnet.corpus.settings import DataConfig
from cygnet.corpus.split import heldout_limit
from cygnet.errors import UserError

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
    outcome[(outcome == "") & (parts.column("copies") == 0)] = "not_drawn"
    if not (outcome == "").any():
        return Decision(outcome, found, {}, numbers, np.full(len(parts), -1, np.int64))
    positions = parts.column("position")
    most_like = np.full(len(parts), -1, np.int64)
    limit = heldout_limit(positions[outcome == ""].tolist(), config.heldout_share)
    duplicates = _duplicates(parts, np.flatnonzero(outcome == ""), limit, config, scale)
    for number, duplicate in duplicates.items():
        outcome[number] = duplicate.reason
    is_heldout = (outcome == "") & (positions < limit)
    overlap = next((rule for rule in rules if rule.number == "heldout_overlap"), None)
    if overlap is not None:
        share, most_like = _heldout_overlap(parts, outcome == "", is_heldout)
        numbers["heldout_overlap"] = share
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


def _heldout_overlap(
    parts: Parts, is_kept: NDArray[np.bool_], is_heldout: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return of each training document the share of its sampled runs of words that held-out ones
    have, and the held-out document that has most of them (-1: none).

    A single run is chance.
    """
    counts = parts.column("phrases")
    held = [
        (phrases[is_heldout[owners]], owners[is_heldout[owners]])
        for phrases, owners in _phrases(parts, counts)
    ]
    held_phrases, holders = (np.concatenate(arrays) for arrays in zip(*held, strict=True))
    order = np.lexsort((holders, held_phrases))
    held_phrases, holders = held_phrases[order], holders[order]
    known = sorted_set([held_phrases.copy()])
    overlap, most_like = np.zeros(len(parts), np.float32), np.full(len(parts), -1, np.int64)
    if not len(known):
        return overlap, most_like
    is_training = is_kept & ~is_heldout
    shared = []
    for phrases, owners in _phrases(parts, counts):
        phrases, owners = phrases[is_training[owners]], owners[is_training[owners]]
        at = np.minimum(np.searchsorted(known, phrases), len(known) - 1)
        hits = known[at] == phrases
        shared.append(sorted_set([at[hits] * len(parts) + owners[hits]]))
    at, owners = np.divmod(np.concatenate(shared), len(parts))
    is_rare = np.bincount(at, minlength=len(known))[at] <= COMMON_PHRASES
    at, owners = at[is_rare], owners[is_rare]
    overlap += np.bincount(owners, minlength=len(parts))
    overlap = np.where(overlap > 1, overlap / np.maximum(counts, 1), 0).astype(np.float32)
    # Each run of words counts for every held-out document that has it.
    begins = np.searchsorted(held_phrases, known)
    lengths = np.diff(begins, append=len(held_phrases))[at]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    holders = holders[np.repeat(begins[at], lengths) + within]
    pairs = np.sort(np.repeat(owners, lengths) * len(parts) + holders)
    begins = np.flatnonzero(np.diff(pairs, prepend=-1))
    owners, holders = np.divmod(pairs[begins], len(parts))
    by_count = np.argsort(np.diff(begins, append=len(pairs)), kind="stable")
    most_like[owners[by_count]] = holders[by_count]  # what is written last has most
    return overlap, most_like


def _phrases(
    parts: Parts, counts: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
    """Yield the sampled runs of words of each part, and the number of each one's document."""
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
