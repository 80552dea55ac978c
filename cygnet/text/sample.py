"""A balanced sample of a corpus: what a vocabulary is learnt from, of a bounded size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cygnet.errors import UserError
from cygnet.files import open_bytes, read_jsonl
from cygnet.text.scripts import language_of

MB = 10**6
_READ_BYTES = 2**20
Group = tuple[str, str]
"""Domain and language."""


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How much text a vocabulary is learnt from, and in what shares.

    Raises:
        UserError: a value is out of range.
    """

    sample_mb: float = 256.0
    """MB of text that the vocabulary is learnt from; a corpus that is no larger is read whole."""
    balance: float = 0.5
    """Of a larger one, the share of a domain and language: 1 as in the corpus, 0 the same for all,
    between them its bytes (times copies) to this power, so that what is rare counts for more."""

    def __post_init__(self) -> None:
        if not self.sample_mb > 0:
            raise UserError(f"sample_mb {self.sample_mb}: give a number of MB above 0")
        if not 0 <= self.balance <= 1:
            raise UserError(f"balance {self.balance}: give a number from 0 to 1")


@dataclass(frozen=True, slots=True)
class Sample:
    """Which documents of a file are taken: the same at each reading, in the file's order."""

    documents: Path
    shares: Mapping[Group, float] | None
    """Of each group's documents, how many are taken; none: the file is taken whole."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the documents taken."""
        for row in read_jsonl(self.documents):
            if self.shares is None or _position(row["text"]) < self.shares[_group(row)]:
                yield row


def plan_sample(documents: Path, config: SampleConfig) -> Sample:
    """Say what is taken of a file of clean documents; memory holds a number for each group."""
    limit = config.sample_mb * MB
    with open_bytes(documents) as file:
        left = limit
        while left >= 0 and (content := file.read(_READ_BYTES)):
            left -= len(content)
    if left >= 0:  # the lines hold more than the texts
        return Sample(documents, None)
    sizes: dict[Group, int] = {}
    weights: dict[Group, int] = {}
    for row in read_jsonl(documents):
        group, num_bytes = _group(row), len(row["text"].encode("utf-8", "surrogatepass"))
        sizes[group] = sizes.get(group, 0) + num_bytes
        weights[group] = weights.get(group, 0) + num_bytes * row.get("copies", 1)
    if sum(sizes.values()) <= limit:
        return Sample(documents, None)
    powers = {group: weight**config.balance for group, weight in weights.items() if weight}
    quotas = share_out(limit, powers, sizes)
    shares = {group: quotas.get(group, 0) / max(size, 1) for group, size in sizes.items()}
    return Sample(documents, shares)


def share_out(
    total: float, weights: Mapping[Group, float], limits: Mapping[Group, float]
) -> dict[Group, float]:
    """Part a total by weights, no one getting more than there is of it; what is left goes around.

    Returns:
        Amounts, together `total`, or all the limits where they are less.
    """
    amounts: dict[Group, float] = {}
    open_weights = dict(weights)
    while open_weights:
        unit = (total - sum(amounts.values())) / sum(open_weights.values())
        full = [group for group, weight in open_weights.items() if weight * unit >= limits[group]]
        if not full:
            return amounts | {group: weight * unit for group, weight in open_weights.items()}
        for group in full:
            amounts[group] = limits[group]
            del open_weights[group]
    return amounts


def _group(row: Mapping[str, Any]) -> Group:
    return row["domain"], language_of(row)


def _position(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone (and not as its id does)."""
    digest = hashlib.blake2b(
        text.encode("utf-8", "surrogatepass"), digest_size=8, person=b"tokenizer"
    ).digest()
    return int.from_bytes(digest, "big") / 2**64
