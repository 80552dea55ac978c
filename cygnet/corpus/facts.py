"""What the report tells, counted: rules, lengths, languages, duplicates, private data, cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cygnet.corpus import dedup
from cygnet.corpus.arrow import to_arrow, to_numpy
from cygnet.corpus.clean.privacy import KINDS
from cygnet.corpus.clean.rules import BY_NAME, Rule
from cygnet.corpus.decide import REASONS
from cygnet.corpus.part_writer import PRIVATE
from cygnet.corpus.table import LAST_RULE, Category, DocumentTable

REASON_NAMES = (*(name for name in BY_NAME if name != LAST_RULE), *REASONS, *dedup.REASONS,
                LAST_RULE)  # fmt: skip
"""Every reason a document is dropped for, in the order in which they are tried."""
NEAR = "near_duplicate"
OTHERS = "others"
PRIVACY_TOLD = {
    "mask": "masked: each find became a word like [EMAIL]",
    "drop": "a reason to drop a document",
    "keep": "not looked for",
}
"""What is done with private data, by `DataConfig.privacy`."""
SIZES = ((2, 2), (3, 3), (4, 5), (6, 10), (11, 30), (31, 100), (101, None))
"""Sizes of clusters of duplicates that are counted together: from, to."""


@dataclass(slots=True)
class Count:
    """How much text."""

    documents: int = 0
    characters: int = 0
    bytes: int = 0

    def to_json(self) -> dict[str, int]:
        """Return the JSON object of the report."""
        return {"documents": self.documents, "characters": self.characters, "bytes": self.bytes}


@dataclass(frozen=True, slots=True)
class RuleCount:
    """How a rule bears on the documents."""

    rule: Rule
    held: int
    """Documents that it is held against."""
    breaks: int
    """Documents that break it, whatever other rules say."""
    first: int
    """Documents that go because of it: it is the first that they break."""
    alone: int
    """Documents that break no other rule: without it they would stay, unless duplicates."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of the report."""
        rule = self.rule
        counts = {name: getattr(self, name) for name in ("held", "breaks", "first", "alone")}
        return {"number": rule.number, "side": rule.side, "threshold": rule.threshold, **counts}


def rule_counts(
    table: DocumentTable, found: dict[str, NDArray[np.bool_]] | None = None
) -> list[RuleCount]:
    """Return the counts of each rule that some document is held against.

    Args:
        table: the documents.
        found: `table.broken(table.rules)`, where it is known.
    """
    found = table.broken(table.rules) if found is None else found
    broken = np.zeros(len(table), np.int16)
    for name, mask in found.items():
        if name != LAST_RULE:
            broken += mask
    counts = []
    for rule in table.rules:
        if rule.name not in found:
            continue
        mask = found[rule.name]
        first = int((table.outcome == rule.name).sum())
        # The last rule is held against what all others left.
        alone = first if rule.name == LAST_RULE else int((mask & (broken == 1)).sum())
        held = int(table.held_to(rule).sum())
        if held:
            counts.append(RuleCount(rule, held, int(mask.sum()), first, alone))
    return counts


@dataclass(frozen=True, slots=True)
class Share:
    """How much of one language, domain, licence... was read and stayed."""

    name: str
    read: Count
    kept: Count


def shares(table: DocumentTable, column: str | Category, most: int) -> list[Share]:
    """Return the shares of each word of a column, the largest first, small ones as `others`."""
    category = table.category(column) if isinstance(column, str) else column
    weights = np.ones(len(table)), table.column("chars"), table.bytes
    read = np.stack([category.counts(weight) for weight in weights], axis=1)
    kept = np.stack([category.counts(weight, table.is_kept) for weight in weights], axis=1)
    order = np.argsort(-read[:, 2], kind="stable")
    found = [
        Share(category.names[i], Count(*read[i].tolist()), Count(*kept[i].tolist()))
        for i in order[:most].tolist()
    ]
    rest = order[most:]
    if len(rest):
        totals = (Count(*counts[rest].sum(axis=0).tolist()) for counts in (read, kept))
        found.append(Share(f"{OTHERS} ({len(rest):,})", *totals))
    return found


@dataclass(frozen=True, slots=True)
class Epoch:
    """How much training text of a domain there is, and how much an epoch sees."""

    documents: int
    bytes: int
    seen_documents: int
    seen_bytes: int


def epoch(table: DocumentTable) -> dict[str, Epoch]:
    """Return what an epoch holds of each domain; nothing where it sees every document once."""
    is_train, copies = table.outcome == "train", table.column("copies")
    if (copies[is_train] == 1).all():
        return {}
    domain = table.category("domain")
    weights = np.ones(len(table)), table.bytes, copies, copies * table.bytes
    counts = np.stack([domain.counts(weight, is_train) for weight in weights], axis=1)
    order = np.argsort(-counts[:, 3], kind="stable").tolist()
    return {domain.names[i]: Epoch(*counts[i].tolist()) for i in order if counts[i, 0]}


@dataclass(frozen=True, slots=True)
class Lengths:
    """How many documents have lengths from 2**i up to 2**(i + 1) characters."""

    read: list[int]
    kept: list[int]


def lengths(table: DocumentTable) -> Lengths:
    """Return the distribution of lengths, in steps of a factor of two."""
    powers = np.log2(np.maximum(table.column("chars"), 1)).astype(np.int64)
    read = np.bincount(powers, minlength=1)
    kept = np.bincount(powers[table.is_kept], minlength=len(read))
    return Lengths(read.tolist(), kept.tolist())


@dataclass(frozen=True, slots=True)
class Clusters:
    """Duplicates, by the document that is kept in their place."""

    kept: NDArray[np.int64]
    """The numbers of documents that have duplicates, that of the most duplicates first."""
    sizes: NDArray[np.int64]
    """How many documents each cluster has, the kept one counted."""

    def by_size(self) -> list[tuple[str, int]]:
        """Return how many clusters there are of each of `SIZES`."""
        counts = []
        for low, high in SIZES:
            inside = (self.sizes >= low) & (self.sizes <= (high or np.inf))
            label = f"{low}" if low == high else f"{low}-{high}" if high else f"{low} or more"
            counts.append((label, int(inside.sum())))
        return counts


def clusters(table: DocumentTable, reasons: Sequence[str] = tuple(dedup.REASONS)) -> Clusters:
    """Return the clusters of duplicates that go for some reasons."""
    goes = np.isin(table.outcome.astype(str), reasons) & (table.duplicate_of >= 0)
    kept, counts = np.unique(table.duplicate_of[goes], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return Clusters(kept[order], counts[order] + 1)


def similarities(table: DocumentTable, bins: int = 25) -> tuple[list[int], float]:
    """Return how many near duplicates are how like the kept one: from a least value up to 1."""
    near = table.similarity[(table.similarity < 1) & (table.duplicate_of >= 0)]
    low = min(float(table.config.near_duplicate_threshold), float(near.min(initial=1)), 0.99)
    return np.histogram(near, bins, (low, 1.0 + 1e-9))[0].tolist(), low


def private_data(table: DocumentTable) -> tuple[int, int]:
    """Return how many documents held private data, and how much was found."""
    return _finds(table.numbers.get("private", np.zeros(len(table))))


def private_by_kind(table: DocumentTable) -> dict[str, tuple[int, int]]:
    """Return the same for each kind of private data that was found, the commonest first."""
    counts = {
        kind: _finds(table.column(PRIVATE + kind)) for kind in KINDS if table.has(PRIVATE + kind)
    }
    order = sorted(counts, key=lambda kind: -counts[kind][1])
    return {kind: counts[kind] for kind in order if counts[kind][1]}


def _finds(found: NDArray[Any]) -> tuple[int, int]:
    return int((found > 0).sum()), int(found.sum(dtype=np.float64))


@dataclass(frozen=True, slots=True)
class Repeated:
    """What was taken out of documents, since it stands in many."""

    documents: int
    """That lost something."""
    characters: int
    spans: str
    """`line`, `paragraph`, or `keep`: nothing was looked for."""
    least: int
    """In how many documents it stands at least."""

    @property
    def told(self) -> str:
        """It in a sentence."""
        if self.spans == "keep":
            return (
                "Lines and paragraphs that stand in many documents were left where they are: "
                "--corpus.repeated-spans line (or paragraph) takes them out."
            )
        return (
            f"{self.documents:,} documents lost {self.characters:,} characters: {self.spans}s that "
            f"stand in {self.least:,} documents or more stay in the first alone."
        )


def repeated(table: DocumentTable) -> Repeated:
    """Return what was taken out of the documents."""
    spans, least = table.config.repeated_spans, table.config.repeated_in
    return Repeated(*_finds(table.column("repeated_chars")), spans, least)


def contaminated_by(table: DocumentTable, most: int) -> list[tuple[str, int]]:
    """Return for which items of evaluation sets most documents went, and how many."""
    if not table.has("contaminated_by"):
        return []
    category = table.category("contaminated_by")
    counts = category.counts(np.ones(len(table)), table.outcome == "contaminated")
    order = np.argsort(-counts, kind="stable")[:most].tolist()
    return [(category.names[i], int(counts[i])) for i in order if counts[i]]


def sources(table: DocumentTable) -> Category:
    """Return the file that each document was read from: its source without row or part."""
    import pyarrow.compute as pc

    category = table.category("source")
    if not category.names:
        return category
    pattern = r"(?::\d+|:chapter \d+|:page \d+)+$"
    files = pc.replace_substring_regex(to_arrow(category.names), pattern, "")
    encoded = files.dictionary_encode()
    codes = to_numpy(encoded.indices).astype(np.int64)
    return Category(encoded.dictionary.to_pylist(), codes[category.codes])
