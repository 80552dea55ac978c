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
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cygnet.corpus.array_file import ArrayFile, save_array
from cygnet.corpus.clean.words import Hashes, Ints, TextBatch
from cygnet.corpus.scale import ScaleConfig, run_tasks
from cygnet.errors import require
from cygnet.files import write_json

FLOOR_MARGIN = 0.9
"""Texts with a share of edits may be a little less similar than `similarity_after` says."""
PAIRS_A_TASK, PAIRS_ALONE = 1 << 14, 1 << 16
"""So many pairs are a task, and so few are compared here before other processes have
started."""
TEXTS_AT_HAND, FILES_OPEN = 1024, 256
JOB, DOCUMENTS, PAIRS = "near.json", "near-documents.npy", "near-pairs.npy"
DOCUMENT = np.dtype(
    [
        *(("documents", np.int64), ("thresholds", np.float64), ("edits", np.float64)),
        *(("part", np.int64), ("start", np.int64), ("count", np.int64)),
    ]
)
PAIR = np.dtype([("first", np.int64), ("second", np.int64)])
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
    """Return of each document the least one that pairs join it to.

    Of two joined clusters the one of the greater least document is hung below the other; at least
    half of those that have a neighbour go in each round.
    """
    least = np.arange(count)
    while True:
        one, other = least[first], least[second]
        if (one == other).all():
            return least
        np.minimum.at(least, np.maximum(one, other), np.minimum(one, other))
        while (least != least[least]).any():
            least = least[least]


def near_duplicates(candidates: Candidates, compared: Callable[[int], Compared]) -> NDArray[Any]:
    """Return (`number`, `of`, `similarity`) of the documents that are near one that is kept.

    Args:
        candidates: what to compare.
        compared: gives the words by a place in `candidates.documents`.
    """
    first, second = candidates.first, candidates.second
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
    num_pairs = len(candidates.first)
    if not num_pairs:
        return np.empty(0, FOUND)
    wanted = np.arange(0, num_pairs, PAIRS_A_TASK)
    starts = sorted_set([candidates.borders[np.searchsorted(candidates.borders, wanted)]])
    borders = np.append(starts[starts < num_pairs], num_pairs)
    documents, pairs = np.empty(len(candidates.documents), DOCUMENT), np.empty(num_pairs, PAIR)
    for name in ("documents", "thresholds", "edits"):
        documents[name] = getattr(candidates, name)
    for name in ("part", "start", "count"):
        documents[name] = getattr(places, name)
    pairs["first"], pairs["second"] = candidates.first, candidates.second
    job = {"keys": list(keys), "borders": borders.tolist()}
    hashed = hashlib.sha256(json.dumps(job).encode())
    for path, array in ((work / DOCUMENTS, documents), (work / PAIRS, pairs)):
        hashed.update(array.view(np.uint8).data)
        save_array(path, array)
    digest = hashed.hexdigest()[:24]
    write_json(work / JOB, job | {"digest": digest})
    if num_pairs < PAIRS_ALONE:
        scale = ScaleConfig(workers=1)
    num_tasks = len(borders) - 1
    run_tasks("cygnet.corpus.near:compare_task", work, num_tasks, scale, "compare", digest)
    return np.concatenate([np.load(_result(work, digest, i)) for i in range(num_tasks)])


def compare_task(folder: Path, number: int) -> None:
    """Write what is found among the pairs of one task."""
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    out = _result(folder, job["digest"], number)
    if out.exists():
        return
    pairs = ArrayFile(folder / PAIRS).rows(*job["borders"][number : number + 2])
    involved = sorted_set([pairs["first"], pairs["second"]])
    documents = np.load(folder / DOCUMENTS, mmap_mode="r")[involved]
    candidates = Candidates.of_pairs(
        documents["documents"],
        documents["thresholds"],
        documents["edits"],
        np.searchsorted(involved, pairs["first"]),
        np.searchsorted(involved, pairs["second"]),
    )
    places = Places(documents["part"], documents["start"], documents["count"])
    compared = lru_cache(maxsize=TEXTS_AT_HAND)(_Words(folder, job["keys"], places).of)
    save_array(out, near_duplicates(candidates, compared))


def _result(folder: Path, digest: str, number: int) -> Path:
    return folder / f"{digest}.{number}.npy"


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
