"""Exact and near duplicates: MinHash finds candidates, their words decide (`near`).

Source of the method: Broder, "On the resemblance and containment of documents" (1997); banding as
in Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cygnet.corpus.clean.words import Hashes, Ints, TextBatch
from cygnet.corpus.document import Document
from cygnet.corpus.near import (
    FLOOR_MARGIN,
    Candidates,
    Values,
    shortened,
    similarity_after,
    sorted_set,
)
from cygnet.hashing import mixed

NUM_HASHES = 128
HASHES_AT_ONCE = 16
MIN_RECALL = 0.98
"""Of pairs just at the threshold; those above it are found more surely."""
MARGIN = 0.11
"""Candidates estimated to lie so far below the threshold are not compared: two and a half standard
deviations of an estimate from `NUM_HASHES` values at most."""
PHRASE_WORDS = 13
"""Length of the runs of words by which passages are recognised (Brown et al. 2020,
arXiv:2005.14165, appendix C)."""
SAMPLED = 16
"""One run of words in so many is kept."""
MOST_PAIRED = 64
"""Documents that share a band are compared with so many before them, and with the first."""
PAIRS_AT_ONCE = 1 << 16
REASONS = {
    "exact_duplicate": "the same words as another document",
    "near_duplicate": "shares most word pairs with another document",
    "heldout_duplicate": "the same as, or nearly the same as, a held-out document",
}


def comparable(document: Document) -> str:
    """Return the text that a document is compared by: all but a first line with its title.

    One poem under two titles is one text. Of a conversation, what the assistant thinks and calls
    counts as what it says does.
    """
    text = document.text
    first, newline, rest = text.partition("\n")
    if newline and document.title and document.title in first and rest.strip():
        text = rest
    unsaid = list(_unsaid(document)) if document.messages else []
    return "\n".join([text, *unsaid]) if unsaid else text


def _unsaid(document: Document) -> Iterator[str]:
    for message in document.messages or ():
        yield str(message.get("reasoning_content") or "")
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            if isinstance(call, Mapping):
                call = {name: value for name, value in call.items() if name != "id"}
            yield json.dumps(call, sort_keys=True, default=str)


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """What duplicates are found by, of some documents; texts stay on disk."""

    exact: NDArray[Any]
    """(documents) of 16 bytes: equal exactly when the words are."""
    minhash: Values
    """(`NUM_HASHES`, documents), the least value of each hash over the word pairs."""
    words: Values
    """A hash of every word, one document's behind another's."""
    num_words: Ints
    """(documents), how many of `words` are of each."""
    phrases: Hashes
    """Sampled hashes of runs of `PHRASE_WORDS` words, one document's behind another's."""
    phrase_counts: Ints
    """(documents), how many of `phrases` are of each."""


def fingerprints(batch: TextBatch) -> Fingerprints:
    """Return the fingerprints of `comparable` texts."""
    hashes, offsets = _pairs(batch)
    phrases, phrase_offsets = batch.ngrams(PHRASE_WORDS)
    chosen = np.flatnonzero(phrases % np.uint64(SAMPLED) == 0)
    return Fingerprints(
        exact=np.array([_exact_key(batch, i) for i in range(len(batch))], "V16"),
        minhash=_minhash(hashes, offsets),
        words=shortened(batch.word_hashes),
        num_words=np.diff(batch.word_offsets),
        phrases=phrases[chosen],
        phrase_counts=np.diff(np.searchsorted(chosen, phrase_offsets)),
    )


def _exact_key(batch: TextBatch, document: int) -> bytes:
    first, last = batch.word_offsets[document], batch.word_offsets[document + 1]
    if first == last:
        content = batch.texts[document].strip().encode("utf-8", "surrogatepass")
    else:
        content = batch.word_hashes[first:last].tobytes()
    return hashlib.sha256(content).digest()[:16]


def _pairs(batch: TextBatch) -> tuple[Hashes, Ints]:
    """Return hashes of neighbouring words, and where each document's begin: one at least.

    Of a single word it is that word's, of a text without words the text's own.
    """
    hashes, offsets = batch.ngrams(2)
    lonely = np.flatnonzero(np.diff(offsets) == 0)
    if len(lonely):
        own = np.array([_exact_key(batch, i) for i in lonely.tolist()], "V16")
        hashes = np.insert(hashes, offsets[lonely], own.view(np.uint64)[::2])
        offsets = np.concatenate([[0], np.cumsum(np.maximum(np.diff(offsets), 1))])
    return hashes, offsets


def _minhash(hashes: Hashes, offsets: Ints) -> Values:
    values = shortened(hashes)
    result = np.empty((NUM_HASHES, len(offsets) - 1), np.uint32)
    if not len(values):
        return result
    seeds = mixed(np.arange(1, 2 * NUM_HASHES + 1, dtype=np.uint64)) >> np.uint64(32)
    factors, terms = seeds.astype(np.uint32).reshape(2, -1)
    factors |= 1
    for first in range(0, NUM_HASHES, HASHES_AT_ONCE):
        chosen = slice(first, first + HASHES_AT_ONCE)
        hashed = values * factors[chosen, None] + terms[chosen, None]
        np.minimum.reduceat(hashed, offsets[:-1], axis=1, out=result[chosen])
    return result


def bands(threshold: float) -> tuple[int, int]:
    """Return (rows, bands): most rows that find a pair at the threshold by `MIN_RECALL`."""
    for rows in range(16, 1, -1):
        if share_found(threshold, rows, NUM_HASHES // rows) >= MIN_RECALL:
            return rows, NUM_HASHES // rows
    return 1, NUM_HASHES


def share_found(similarity: float, rows: int, num_bands: int) -> float:
    """Return the probability that a pair of a given similarity becomes a candidate."""
    return 1 - (1 - similarity**rows) ** num_bands


@dataclass(frozen=True, slots=True)
class Entries:
    """What is known of all documents, in arrays as long as there are documents."""

    positions: NDArray[np.float64]
    """`split.split_position`: documents of lower position are kept before others."""
    ids: NDArray[Any]
    sources: NDArray[Any]
    exact: NDArray[Any]
    """`Fingerprints.exact`."""
    minhash: Callable[[int, int], Values]
    """Gives the rows from one to another of all documents' `Fingerprints.minhash`."""
    thresholds: NDArray[np.float64]
    """The least similarity at which each is a near duplicate; of a pair, the higher one counts."""
    edits: NDArray[np.float64]
    """Or the largest share of edited words, 0 for none; of a pair, the lower one counts."""

    @property
    def least_similarity(self) -> float:
        """What the least similar near duplicates usually have."""
        after = np.where(self.edits > 0, similarity_after(self.edits), 1.0)
        return float(np.minimum(self.thresholds, after).min(initial=1.0))

    @property
    def floors(self) -> NDArray[np.float64]:
        """The similarity from which each is compared at all."""
        after = FLOOR_MARGIN * similarity_after(self.edits)
        return np.where(self.edits > 0, np.minimum(self.thresholds, after), self.thresholds)


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Why a document goes."""

    reason: str
    """A key of `REASONS`."""
    of: int
    """The number of the kept document."""
    similarity: float


def find_duplicates(
    entries: Entries, heldout_below: float, compare: Callable[[Candidates], NDArray[Any]]
) -> dict[int, Duplicate]:
    """Return the documents that are duplicates of one that is kept.

    Documents are taken by (position, id, source), so held-out documents come first and the outcome
    does not depend on the order of `entries`.

    Args:
        entries: of all documents.
        heldout_below: documents of lower position are held out.
        compare: finds the near duplicates among candidates, as `near.near_duplicates` does.
    """
    order = np.lexsort((entries.sources, entries.ids, entries.positions))
    exact = np.ascontiguousarray(entries.exact)[order]
    first_of = _first_of(exact.view(np.uint64).reshape(-1, 2))
    is_first = first_of == np.arange(len(exact))
    found: dict[int, Duplicate] = {}

    def add(number: int, kept: int, reason: str, similarity: float) -> None:
        leaks = entries.positions[kept] < heldout_below <= entries.positions[number]
        found[number] = Duplicate("heldout_duplicate" if leaks else reason, kept, similarity)

    for number, kept, similarity in compare(_candidates(entries, order, is_first)).tolist():
        add(number, kept, "near_duplicate", similarity)
    for rank in np.flatnonzero(~is_first).tolist():
        first = int(order[first_of[rank]])
        if near := found.get(first):  # it repeats what its first copy repeats
            add(int(order[rank]), near.of, "near_duplicate", near.similarity)
        else:
            add(int(order[rank]), first, "exact_duplicate", 1.0)
    return found


def _candidates(entries: Entries, order: Ints, is_first: NDArray[np.bool_]) -> Candidates:
    """Return the pairs estimated to be near enough; of equal documents the first alone is in them.

    Args:
        entries: of all documents.
        order: (documents), the numbers in the order in which they are taken.
        is_first: (documents) in that order, whether no equal one came before.
    """
    documents = order[is_first]
    sketch, floors = _sketch(entries, documents), entries.floors[documents]
    rows, num_bands = bands(entries.least_similarity)
    likely = [np.empty(0, np.int64)]
    for band in range(num_bands):
        values = entries.minhash(band * rows, (band + 1) * rows)
        pairs = _equal_pairs(_band_key(values[:, documents]))
        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            likely.append(_likely(pairs[start : start + PAIRS_AT_ONCE], sketch, floors))
        if sum(map(len, likely[1:])) > len(likely[0]) / 2 or band == num_bands - 1:
            likely = [sorted_set(likely)]
    second, first = np.divmod(likely.pop(), max(len(documents), 1))
    involved = sorted_set([first, second])
    first, second = np.searchsorted(involved, first), np.searchsorted(involved, second)
    documents = documents[involved]
    thresholds, edits = entries.thresholds[documents], entries.edits[documents]
    return Candidates.of_pairs(documents, thresholds, edits, first, second)


def _sketch(entries: Entries, documents: Ints) -> NDArray[np.uint8]:
    """Return (documents, `NUM_HASHES`), the low bytes of their MinHash values."""
    sketch = np.empty((len(documents), NUM_HASHES), np.uint8)
    for row in range(0, NUM_HASHES, HASHES_AT_ONCE):
        values = entries.minhash(row, row + HASHES_AT_ONCE)
        sketch[:, row : row + HASHES_AT_ONCE] = (values[:, documents] & 0xFF).T
    return sketch


def _likely(pairs: Ints, sketch: NDArray[np.uint8], floors: NDArray[np.float64]) -> Ints:
    """Return those pairs, numbered as by `_equal_pairs`, that are estimated to be near enough."""
    one, other = np.divmod(pairs, len(sketch))
    estimates = (sketch[one] == sketch[other]).sum(axis=1) / NUM_HASHES
    return pairs[estimates >= np.maximum(floors[one], floors[other]) - MARGIN]


def _first_of(keys: Hashes) -> Ints:
    """Return of each row of (documents, 2) the number of the first row that is equal."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable, so the first of equal ones comes first
    begins = np.ones(len(keys), bool)
    begins[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    first = np.empty(len(keys), np.int64)
    first[order] = order[np.flatnonzero(begins)][np.cumsum(begins) - 1]
    return first


def _band_key(values: Values) -> Hashes:
    """Return (documents), equal where all of a band's values are: (rows, documents)."""
    keys = np.zeros(values.shape[1], np.uint64)
    for row in values:
        keys = mixed(keys + row.astype(np.uint64) + np.uint64(1))
    return keys


def _equal_pairs(keys: Hashes) -> Ints:
    """Return pairs (i, j), i < j, of equal keys, as j * len(keys) + i.

    Of many equal ones, each is paired with the `MOST_PAIRED` before it and with the first.
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    begins = np.flatnonzero(np.diff(ordered, prepend=~ordered[:1]))
    lengths = np.diff(begins, append=len(ordered))
    first_of = np.repeat(begins, lengths)
    at = np.flatnonzero(first_of < np.arange(len(ordered)))
    pairs = [order[at] * len(keys) + order[first_of[at]]]
    for distance in range(1, min(MOST_PAIRED, lengths.max(initial=1)) + 1):
        at = at[at - first_of[at] > distance]  # nearer than the first, which is paired already
        pairs.append(order[at] * len(keys) + order[at - distance])
    return np.concatenate(pairs)
