"""Which of the texts that may be near duplicates are: their words are compared, pair by pair.

Two texts are near duplicates when the Jaccard similarity of their sets of word pairs reaches the
threshold, or when few words need be changed, put in or left out to make one of the other
(Levenshtein). The first holds where sentences are moved, the second where words are changed here
and there. Pairs rather than longer runs, so that short texts behave: of two poems of 20 characters
that differ in one, 17 of 21 pairs are shared (0.81). Where a share e of the words is changed one
by one, about (1 - e)**2 of the pairs stay, so that the similarity is about s / (2 - s) with
s = (1 - e)**2: 0.82 for a twentieth, 0.68 for a tenth, 0.47 for a fifth. Distinct pages of one
template share as many pairs as the latter, which is why the words themselves decide there.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cygnet.corpus.array_file import ArrayFile
from cygnet.corpus.clean.words import Hashes, Ints, TextBatch
from cygnet.corpus.scale import ScaleConfig, run_tasks
from cygnet.errors import require
from cygnet.files import write_atomic, write_json

FLOOR_MARGIN = 0.9
"""Texts with a share of edits may be a little less similar than `similarity_after` says."""
PAIRS_A_TASK, PAIRS_ALONE = 1 << 14, 1 << 16
"""So many pairs are a task, and so few are compared here before other processes have
started."""
TEXTS_AT_HAND, FILES_OPEN = 1024, 256
JOB, PAIRS = "near.json", "near.npz"
FOUND = np.dtype([("number", np.int64), ("of", np.int64), ("similarity", np.float64)])
Values = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Compared:
    """What of a text is held against another."""

    words: Values
    """A hash of each, in order."""
    pairs: Hashes
    """The set of pairs of neighbouring words, sorted; of a single word, that one."""

    @classmethod
    def of(cls, text: str) -> Compared:
        """Return the words and pairs of a text, as `dedup.comparable` gives it."""
        return cls.of_words(shortened(TextBatch([text]).word_hashes))

    @classmethod
    def of_words(cls, words: Values) -> Compared:
        """Return the words and their pairs."""
        long = words.astype(np.uint64)
        pairs = (long[:-1] << np.uint64(32)) | long[1:] if len(long) > 1 else long
        return cls(words, sorted_set([pairs]))


def shortened(hashes: Hashes) -> Values:
    """Return the upper halves of hashes, which are hashes too."""
    return (hashes >> np.uint64(32)).astype(np.uint32)


def sorted_set(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    """Return the different values of some arrays, sorted; the list is emptied to make room.

    `numpy.unique` takes ten times as long on integers.
    """
    values = np.concatenate(arrays)
    arrays.clear()
    values.sort()
    is_new = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=is_new[1:])
    return values[is_new]


def jaccard(a: Hashes, b: Hashes) -> float:
    """Return the size of the intersection over the size of the union of two sorted sets."""
    both = np.concatenate((a, b))
    both.sort()
    common = int(np.count_nonzero(both[1:] == both[:-1]))
    return common / max(len(a) + len(b) - common, 1)


def edited_share(a: Compared, b: Compared, most: float) -> float:
    """Return the edits of words that make `b` of `a`, over the longer one's words.

    Where they are more than `most`, it is 1.
    """
    return float(_levenshtein()(a.words.tolist(), b.words.tolist(), score_cutoff=most))


@cache
def _levenshtein() -> Any:
    return require("rapidfuzz.distance", "data").Levenshtein.normalized_distance


def similarity_after(edits: Any) -> Any:
    """Return the Jaccard similarity of a text and one with a share of its words changed."""
    kept = (1 - edits) ** 2
    return kept / (2 - kept)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Pairs of documents that may be near duplicates, cluster by cluster.

    No document is in two clusters. Of a cluster the pairs stand by `second`, then by `first`.
    """

    documents: Ints
    """(documents), their numbers among all, in the order in which they are taken."""
    thresholds: NDArray[np.float64]
    """(documents), as in `dedup.Entries`."""
    edits: NDArray[np.float64]
    """(documents), as in `dedup.Entries`."""
    first: Ints
    """(pairs), the place in `documents` of the one that is taken before."""
    second: Ints
    """(pairs), and of the other."""
    borders: Ints
    """(clusters + 1), where each begins among the pairs, and the end."""

    @classmethod
    def of_pairs(
        cls,
        documents: Ints,
        thresholds: NDArray[np.float64],
        edits: NDArray[np.float64],
        first: Ints,
        second: Ints,
    ) -> Candidates:
        """Put pairs in order."""
        cluster = _clusters(first, second, len(documents))[first]
        order = np.lexsort((first, second, cluster))
        begins = np.flatnonzero(np.diff(cluster[order], prepend=-1))
        borders = np.append(begins, len(first))
        return cls(documents, thresholds, edits, first[order], second[order], borders)


def _clusters(first: Ints, second: Ints, count: int) -> Ints:
    """Return of each document the least one that it is joined to by pairs."""
    least = np.arange(count)
    while True:
        before = least.copy()
        of_pair = np.minimum(least[first], least[second])
        np.minimum.at(least, first, of_pair)
        np.minimum.at(least, second, of_pair)
        least = least[least]
        if (least == before).all():
            return least


def near_duplicates(
    candidates: Candidates,
    compared: Callable[[int], Compared],
    chosen: slice = slice(None),
) -> NDArray[Any]:
    """Return (`number`, `of`, `similarity`) of the documents that are near one that is kept.

    Args:
        candidates: what to compare.
        compared: gives the words by a place in `candidates.documents`.
        chosen: which pairs; whole clusters.
    """
    first, second = candidates.first[chosen], candidates.second[chosen]
    is_kept = np.ones(len(candidates.documents), bool)
    found = []
    begins = np.flatnonzero(np.diff(second, prepend=-1)).tolist()
    for begin, end in itertools.pairwise([*begins, len(second)]):
        others, own = first[begin:end], int(second[begin])
        others = others[is_kept[others]]
        near = _first_near(candidates, own, others.tolist(), compared)
        if near is not None:
            is_kept[own] = False
            of, similarity = near
            found.append((candidates.documents[own], candidates.documents[of], similarity))
    return np.array(found, FOUND)


def _first_near(
    candidates: Candidates, own: int, others: Sequence[int], compared: Callable[[int], Compared]
) -> tuple[int, float] | None:
    """Return the first of some documents that one is near to, and how similar it is."""
    thresholds, most_edits = candidates.thresholds, candidates.edits
    for other in others:
        text, near = compared(own), compared(other)
        similarity = jaccard(text.pairs, near.pairs)
        edits = min(most_edits[own], most_edits[other])
        floor = FLOOR_MARGIN * similarity_after(edits)
        if similarity >= max(thresholds[own], thresholds[other]) or (
            edits > 0 and similarity >= floor and edited_share(text, near, edits) <= edits
        ):
            return other, similarity
    return None


@dataclass(frozen=True, slots=True)
class Places:
    """Where the words of some documents lie in the parts of a work folder."""

    part: Ints
    """(documents), the number of its part."""
    start: Ints
    """(documents), words of the part before it."""
    count: Ints
    """(documents), its words."""


def compare_in_tasks(
    candidates: Candidates, places: Places, work: Path, keys: Sequence[str], scale: ScaleConfig
) -> NDArray[Any]:
    """Return what `near_duplicates` returns, with the work spread over processes.

    Args:
        candidates: what to compare.
        places: of `candidates.documents`.
        work: the work folder.
        keys: of its parts.
        scale: where to run.
    """
    if not len(candidates.first):
        return np.empty(0, FOUND)
    starts = np.arange(0, len(candidates.first), PAIRS_A_TASK)
    borders = sorted_set([candidates.borders[np.searchsorted(candidates.borders, starts)]])
    borders = np.append(borders, len(candidates.first))
    arrays = {f.name: getattr(each, f.name) for each in (candidates, places) for f in fields(each)}
    content = b"".join(array.tobytes() for array in arrays.values())
    digest = hashlib.sha256(content + json.dumps(list(keys)).encode()).hexdigest()[:24]
    file = BytesIO()
    np.savez(file, tasks=borders, **arrays)
    write_atomic(work / PAIRS, file.getvalue())
    write_json(work / JOB, {"digest": digest, "keys": list(keys)})
    if len(candidates.first) < PAIRS_ALONE:
        scale = ScaleConfig(workers=1)
    num_tasks = len(borders) - 1
    run_tasks("cygnet.corpus.near:compare_task", work, num_tasks, scale, "compare", digest)
    found = [np.load(work / f"{digest}.{number}.npy") for number in range(num_tasks)]
    return np.concatenate(found)


def compare_task(folder: Path, number: int) -> None:
    """Write what is found among the pairs of one task."""
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    out = folder / f"{job['digest']}.{number}.npy"
    if out.exists():
        return
    arrays = np.load(folder / PAIRS)
    candidates = Candidates(**{f.name: arrays[f.name] for f in fields(Candidates)})
    places = Places(**{f.name: arrays[f.name] for f in fields(Places)})
    compared = lru_cache(maxsize=TEXTS_AT_HAND)(_Words(folder, job["keys"], places).of)
    chosen = slice(*arrays["tasks"][number : number + 2].tolist())
    content = BytesIO()
    np.save(content, near_duplicates(candidates, compared, chosen))
    write_atomic(out, content.getvalue())


class _Words:
    """The words of documents, read from the files of their parts."""

    def __init__(self, folder: Path, keys: Sequence[str], places: Places) -> None:
        self._folder, self._keys, self._places = folder, keys, places
        self._file = lru_cache(maxsize=FILES_OPEN)(self._opened)

    def of(self, number: int) -> Compared:
        """Return a document's."""
        places = self._places
        start = int(places.start[number])
        file = self._file(int(places.part[number]))
        return Compared.of_words(file.rows(start, start + int(places.count[number])))

    def _opened(self, part: int) -> ArrayFile:
        return ArrayFile(self._folder / f"{self._keys[part]}.words.npy")
