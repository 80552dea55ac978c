"""How many tokens a data folder's training text has, by domain and language."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cygnet.corpus.document import TRAIN
from cygnet.corpus.page import TokenCount
from cygnet.corpus.table import DocumentTable
from cygnet.errors import UserError
from cygnet.files import open_bytes
from cygnet.text.tokenizer import Tokenizer

SAMPLE, LEAST = 20_000, 50
"""About so many documents are counted, and so many of each domain and language at least."""
MAX_PARTS = 30
BATCH = 512


def count_tokens(
    table: DocumentTable, folder: Path, tokenizer: Tokenizer, sample: int = SAMPLE, seed: int = 0
) -> list[TokenCount]:
    """Count the tokens of all training text, and of each domain and language, the largest first.

    Of many documents a sample is counted, drawn anew in each domain and language; what a part has
    is its bytes times the tokens for a byte of its sample (a ratio estimate), with the standard
    error that goes with it (Cochran, "Sampling Techniques", 3rd edition, equation 6.13). Those of
    an epoch are estimated in the same way from bytes and tokens times copies.

    Args:
        table: of the data folder.
        folder: the data folder.
        tokenizer: what text is cut into tokens by.
        sample: about how many documents are counted.
        seed: of the sample.

    Raises:
        UserError: the folder's text has changed since its table was written.
    """
    rows = np.flatnonzero(table.outcome == "train")
    domain, language = table.category("domain"), table.category("language")
    strata = domain.codes[rows] * len(language.names) + language.codes[rows]
    num_bytes = table.bytes[rows].astype(np.float64)
    chosen = _draw(strata, sample, np.random.default_rng(seed))
    tokens = np.zeros(len(rows))
    tokens[chosen] = np.fromiter(_tokens_of(folder / TRAIN, chosen, tokenizer), np.float64)
    is_counted = np.zeros(len(rows), bool)
    is_counted[chosen] = True
    names, stratum = np.unique(strata, return_inverse=True)
    copies = table.column("copies")[rows].astype(np.float64)
    found = [
        Estimate.of(tokens[inside], num_bytes[inside], copies[inside], is_counted[inside])
        for inside in (stratum == i for i in range(len(names)))
    ]
    counts = [_sum("all", "", found)]
    of_domain, of_language = names // len(language.names), names % len(language.names)
    for kind, category, owner in (
        ("domain", domain, of_domain), ("language", language, of_language),
    ):  # fmt: skip
        parts = [
            _sum(
                kind,
                category.names[i] or "not known",
                [found[j] for j in (owner == i).nonzero()[0]],
            )
            for i in np.unique(owner).tolist()
        ]
        counts += sorted(parts, key=lambda part: -part.bytes)[:MAX_PARTS]
    return counts


def _draw(strata: NDArray[np.int64], sample: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Return the places of a sample: all of small strata, of large ones a share."""
    order = np.argsort(strata, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(strata[order])) + 1)
    share = min(sample / max(len(strata), 1), 1)
    chosen = [
        random.choice(part, min(len(part), max(LEAST, round(share * len(part)))), replace=False)
        for part in parts
        if len(part)
    ]
    return np.sort(np.concatenate([np.zeros(0, np.int64), *chosen]))


def _tokens_of(path: Path, chosen: NDArray[np.int64], tokenizer: Tokenizer) -> Iterator[int]:
    """Yield the tokens of some lines of a file of documents."""
    wanted = set(chosen.tolist())
    batch: list[str] = []
    seen = 0
    with open_bytes(path) as file:
        for number, line in enumerate(file):
            if number in wanted:
                batch.append(json.loads(line)["text"])
                seen += 1
            if len(batch) == BATCH:
                yield from map(len, tokenizer.encode_batch(batch))
                batch = []
    if seen != len(chosen):
        raise UserError(f"{path}: not the text that the report is of; run `cygnet data` again")
    yield from map(len, tokenizer.encode_batch(batch))


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a stratum has."""

    documents: int
    bytes: float
    tokens: float
    variance: float
    counted: int
    """How many of its documents were counted."""
    epoch_tokens: float
    epoch_variance: float

    @classmethod
    def of(
        cls,
        tokens: NDArray[np.float64],
        num_bytes: NDArray[np.float64],
        copies: NDArray[np.float64],
        is_counted: NDArray[np.bool_],
    ) -> Estimate:
        """Estimate it; all arrays are of its documents."""
        once = _ratio_estimate(tokens, num_bytes, is_counted)
        epoch = _ratio_estimate(tokens * copies, num_bytes * copies, is_counted)
        return cls(len(tokens), float(num_bytes.sum()), *once, int(is_counted.sum()), *epoch)


def _ratio_estimate(
    tokens: NDArray[np.float64], num_bytes: NDArray[np.float64], is_counted: NDArray[np.bool_]
) -> tuple[float, float]:
    """Return the sum of tokens and its variance."""
    n, total, counted = int(is_counted.sum()), len(tokens), num_bytes[is_counted]
    if n == total:
        return float(tokens.sum()), 0.0
    tokens = tokens[is_counted]
    ratio = float(tokens.sum()) / max(float(counted.sum()), 1.0)
    variance = 0.0
    if n > 1:
        spread = float(((tokens - ratio * counted) ** 2).sum()) / (n - 1)
        variance = total**2 * (1 - n / total) * spread / n
    return ratio * float(num_bytes.sum()), variance


def _sum(kind: str, name: str, found: list[Estimate]) -> TokenCount:
    sums = {field.name: sum(getattr(e, field.name) for e in found) for field in fields(Estimate)}
    return TokenCount(
        kind, name, sums["documents"], int(sums["bytes"]), sums["tokens"],
        float(sums["variance"]) ** 0.5, sums["counted"], sums["epoch_tokens"],
        float(sums["epoch_variance"]) ** 0.5,
    )  # fmt: skip
