"""How well near duplicates are found: recall and precision on a set with planted ones.

python -m benchmarks.near_duplicates.py [--threshold T] [--set FILE] [--orders 3]

The set is `benchmarks/data/near_duplicates.jsonl.gz` (see its README; made by
`plant_near_duplicates.py`). First what the similarity itself can do, from the exact Jaccard
similarity of the word pairs of all pairs of documents; then what the pipeline's finder does, which
takes documents in an order of its own, compares by MinHash first and with kept documents alone.

Recall: the share of copies that are joined, by what was found, to their original. Precision: the
share of found pairs that are of one original. Intervals are Wilson's, 95 %.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.stats import binomtest

from cygnet.corpus.clean.words import Hashes, TextBatch
from cygnet.corpus.dedup import Entries, bands, find_duplicates, fingerprints, share_found
from cygnet.corpus.near import Candidates, Compared, near_duplicates

FILE = Path(__file__).parent / "data" / "near_duplicates.jsonl.gz"
THRESHOLDS = (0.3, 0.35, 0.4, 0.42, 0.44, 0.46, 0.48, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8)
LENGTHS = ((100, 300), (300, 1000), (1000, 3000), (3000, 20_000))
EDITS = ((0.0, 0.05), (0.05, 0.1), (0.1, 0.15), (0.15, 0.2001))
Row = dict[str, Any]
Pair = tuple[int, int]


def wilson(hits: int, total: int) -> str:
    """Return a share with its 95 % interval (Wilson 1927)."""
    if not total:
        return "    -"
    interval = binomtest(hits, total).proportion_ci(0.95, method="wilson")
    return f"{hits / total:.4f} [{interval.low:.4f}, {interval.high:.4f}] of {total:,}"


def load(path: Path) -> list[Row]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def similarities(sets: Sequence[Hashes], least: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (pairs), (pairs), (pairs): two numbers a < b and their Jaccard similarity."""
    sizes = np.array([len(s) for s in sets])
    _, columns = np.unique(np.concatenate(sets), return_inverse=True)
    rows = np.repeat(np.arange(len(sets)), sizes)
    table = csr_matrix((np.ones(len(rows), np.int32), (rows, columns)))
    common = (table @ table.T).tocoo()
    a, b, shared = (x[common.row < common.col] for x in (common.row, common.col, common.data))
    similarity = shared / (sizes[a] + sizes[b] - shared)
    enough = similarity >= least
    return a[enough], b[enough], similarity[enough]


def clusters(rows: Sequence[Row]) -> np.ndarray:
    """Return (rows), the number of each row's original."""
    number = {row["id"]: i for i, row in enumerate(rows) if row["of"] is None}
    return np.array([number[row["of"] or row["id"]] for row in rows])


def joined(count: int, pairs: Iterable[Pair]) -> list[int]:
    """Return for each number the least one that pairs join it to."""
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for a, b in pairs:
        a, b = root(a), root(b)
        parent[max(a, b)] = min(a, b)
    return [root(i) for i in range(count)]


def find(
    rows: Sequence[Row], texts: Sequence[Compared], threshold: float, edits: float, order: int
) -> list[Pair]:
    """Return (document, kept one) as the pipeline's finder finds them, in a drawn order."""
    draw = random.Random(order)
    found = fingerprints(TextBatch([row["text"] for row in rows]))
    entries = Entries(
        positions=np.array([draw.random() for _ in rows]),
        ids=np.array([row["id"] for row in rows]),
        sources=np.array(["set"] * len(rows)),
        exact=found.exact,
        minhash=lambda first, last: found.minhash[first:last],
        thresholds=np.full(len(rows), threshold),
        edits=np.full(len(rows), edits),
    )

    def compare(candidates: Candidates) -> NDArray[Any]:
        return near_duplicates(candidates, lambda at: texts[candidates.documents[at]])

    duplicates = find_duplicates(entries, 0.0, compare)
    return [(number, duplicate.of) for number, duplicate in duplicates.items()]


class Score:
    """What a list of found pairs is worth."""

    def __init__(self, rows: Sequence[Row], pairs: Sequence[Pair]) -> None:
        self.rows = rows
        own = clusters(rows)
        self.wrong = [(a, b) for a, b in pairs if own[a] != own[b]]
        self.num_pairs = len(pairs)
        right = [(a, b) for a, b in pairs if own[a] == own[b]]
        roots = joined(len(rows), right)
        self.hits = {
            i: roots[i] == roots[own[i]] for i, row in enumerate(rows) if row["of"] is not None
        }

    def recall(self, which: Callable[[Row], bool] = lambda row: True) -> str:
        """Return the share of the chosen copies that were joined to their original."""
        chosen = [hit for i, hit in self.hits.items() if which(self.rows[i])]
        return wilson(sum(chosen), len(chosen))

    def precision(self) -> str:
        """Return the share of found pairs that are of one original."""
        return wilson(self.num_pairs - len(self.wrong), self.num_pairs)


def groups(rows: Sequence[Row]) -> dict[str, Callable[[Row], bool]]:
    """Return the parts of the set that figures are given for."""
    length = {row["id"]: len(row["text"]) for row in rows}
    parts: dict[str, Callable[[Row], bool]] = {}
    for low, high in EDITS:
        parts[f"edits {low:.0%}-{high:.0%}"] = lambda r, a=low, b=high: a <= r["edit"] < b
    for low, high in LENGTHS:
        parts[f"{low}-{high} characters"] = lambda r, a=low, b=high: (
            a <= length[r["of"] or r["id"]] < b
        )
    for language in sorted({row["language"] for row in rows}):
        parts[f"language {language}"] = lambda r, x=language: r["language"] == x
    for kind in sorted({row["kind"] for row in rows if row["of"] is not None}):
        parts[kind] = lambda r, x=kind: r["kind"] == x
    return parts


def exact_curve(rows: Sequence[Row], sets: Sequence[Hashes]) -> None:
    a, b, similarity = similarities(sets, min(THRESHOLDS))
    print("exact similarity of all pairs\nthreshold  recall                           precision")
    for threshold in THRESHOLDS:
        over = similarity >= threshold
        score = Score(rows, list(zip(a[over].tolist(), b[over].tolist(), strict=True)))
        print(f"{threshold:9.2f}  {score.recall()}  {score.precision()}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--set", type=Path, default=FILE)
    parser.add_argument("--threshold", type=float, default=0.75, help="of the finder's tables")
    parser.add_argument("--edits", type=float, default=0.2, help="share of edited words; 0: none")
    parser.add_argument("--orders", type=int, default=3, help="drawn orders of the documents")
    arguments = parser.parse_args()
    rows = load(arguments.set)
    texts = [Compared.of(row["text"]) for row in rows]
    exact_curve(rows, [text.pairs for text in texts])
    for edits in (0.0, arguments.edits):
        print(f"\nthe pipeline's finder, or at most {edits:.0%} of the words edited")
        print("threshold  recall                           precision")
        for threshold in THRESHOLDS:
            score = Score(rows, find(rows, texts, threshold, edits, order=0))
            print(f"{threshold:9.2f}  {score.recall()}  {score.precision()}")
    for order in range(arguments.orders):
        begin = time.perf_counter()
        score = Score(rows, find(rows, texts, arguments.threshold, arguments.edits, order))
        took = time.perf_counter() - begin
        of = f"order {order}, threshold {arguments.threshold}, edits {arguments.edits}"
        print(f"\n{of}, {took:.1f} s: recall {score.recall()}, precision {score.precision()}")
        for name, which in groups(rows).items() if not order else ():
            print(f"  {name:24} recall {score.recall(which)}")
        for number, other in score.wrong[:5]:
            print("  wrong:", *(repr(rows[i]["text"][:60]) for i in (number, other)))
    num_rows, num_bands = bands(arguments.threshold)
    print("\nshare of pairs that become candidates:", *(
        f"{s:.2f}: {share_found(s, num_rows, num_bands):.4f}" for s in THRESHOLDS))  # fmt: skip


if __name__ == "__main__":
    main()
