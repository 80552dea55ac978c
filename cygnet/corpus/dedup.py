"""Exact and near duplicates: MinHash finds candidates, the texts themselves decide.

Two texts are near duplicates when the Jaccard similarity of their sets of word pairs reaches the
threshold, or when few words need be changed, put in or left out to make one of the other
(Levenshtein). The first holds where sentences are moved, the second where words are changed here
and there. Pairs rather than longer runs, so that short texts behave: of two poems of 20 characters
that differ in one, 17 of 21 pairs are shared (0.81). Where a share e of the words is changed one
by one, about (1 - e)**2 of the pairs stay, so that the similarity is about s / (2 - s) with
s = (1 - e)**2: 0.82 for a twentieth, 0.68 for a tenth, 0.47 for a fifth. Distinct pages of one
template share as many pairs as the latter, which is why the words themselves decide there.

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
from cygnet.errors import require
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
FLOOR_MARGIN = 0.9
"""Texts with a share of edits may be a little less similar than `similarity_after` says."""
REASONS = {
    "exact_duplicate": "the same words as another document",
    "near_duplicate": "shares most word pairs with another document",
    "heldout_duplicate": "the same as, or nearly the same as, a held-out document",
}
Values = NDArray[np.uint32]


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
        words=_short(batch.word_hashes),
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


@dataclass(frozen=True, slots=True)
class Compared:
    """What of a text is held against another."""

    words: Values
    """A hash of each, in order."""
    pairs: Hashes
    """The set of pairs of neighbouring words, sorted; of a single word, that one."""

    @classmethod
    def of(cls, text: str) -> Compared:
        """Return the words and pairs of a `comparable` text."""
        return cls.of_words(_short(TextBatch([text]).word_hashes))

    @classmethod
    def of_words(cls, words: Values) -> Compared:
        """Return the words and their pairs."""
        long = words.astype(np.uint64)
        pairs = (long[:-1] << np.uint64(32)) | long[1:] if len(long) > 1 else long
        return cls(words, _unique(pairs))


def edited_share(a: Compared, b: Compared, most: float) -> float:
    """Return the edits of words that make `b` of `a`, over the longer one's words.

    Where they are more than `most`, it is 1.
    """
    levenshtein = require("rapidfuzz.distance", "data").Levenshtein
    distance = levenshtein.normalized_distance
    return float(distance(a.words.tolist(), b.words.tolist(), score_cutoff=most))


def similarity_after(edits: Any) -> Any:
    """Return the Jaccard similarity of a text and one with a share of its words changed."""
    kept = (1 - edits) ** 2
    return kept / (2 - kept)


def jaccard(a: Hashes, b: Hashes) -> float:
    """Return the size of the intersection over the size of the union of two sorted sets."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / max(len(a) + len(b) - common, 1)


def _unique(values: NDArray[Any]) -> NDArray[Any]:
    """Return the different values, sorted; `numpy.unique` takes ten times as long on integers."""
    values = np.sort(values)
    return values[np.flatnonzero(np.diff(values, prepend=~values[:1]))]


def _short(hashes: Hashes) -> Values:
    return (hashes >> np.uint64(32)).astype(np.uint32)


def _minhash(hashes: Hashes, offsets: Ints) -> Values:
    values = _short(hashes)
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
    entries: Entries,
    heldout_below: float,
    compared: Callable[[int], Compared],
    advance: Callable[[], None] = lambda: None,
) -> dict[int, Duplicate]:
    """Return the documents that are duplicates of one that is kept.

    Documents are taken by (position, id, source), so held-out documents come first and the outcome
    does not depend on the order of `entries`.

    Args:
        entries: of all documents.
        heldout_below: documents of lower position are held out.
        compared: gives a document's words by its number.
        advance: is told of each document.
    """
    return _Search(entries, heldout_below, compared).run(advance)


class _Search:
    """The search among documents in the order in which they are taken, their ranks."""

    def __init__(
        self, entries: Entries, heldout_below: float, compared: Callable[[int], Compared]
    ) -> None:
        self._entries, self._compared, self._heldout_below = entries, compared, heldout_below
        self._order = np.lexsort((entries.sources, entries.ids, entries.positions))
        self._rank = np.empty(len(self._order), np.int64)
        self._rank[self._order] = np.arange(len(self._order))
        self._floors = entries.floors[self._order]
        self._found: dict[int, Duplicate] = {}

    def run(self, advance: Callable[[], None]) -> dict[int, Duplicate]:
        exact = np.ascontiguousarray(self._entries.exact)[self._order]
        first_of = _first_of(exact.view(np.uint64).reshape(-1, 2))
        is_first = first_of == np.arange(len(exact))
        lower, higher = self._likely_pairs(is_first)
        begins = np.searchsorted(higher, np.arange(len(exact) + 1))
        asked = np.flatnonzero(np.diff(begins) > 0)
        for _ in range(int(is_first.sum()) - len(asked)):
            advance()
        is_kept = np.ones(len(exact), bool)
        for rank in asked.tolist():
            advance()
            others = lower[begins[rank] : begins[rank + 1]]
            is_kept[rank] = not self._is_near(rank, others[is_kept[others]])
        for rank in np.flatnonzero(~is_first).tolist():
            advance()
            first = int(first_of[rank])
            if is_kept[first]:
                self._add(rank, first, "exact_duplicate", 1.0)
            else:  # it repeats what its first copy repeats
                near = self._found[int(self._order[first])]
                self._add(rank, int(self._rank[near.of]), "near_duplicate", near.similarity)
        return self._found

    def _likely_pairs(self, is_first: NDArray[np.bool_]) -> tuple[Ints, Ints]:
        """Return the ranks of pairs estimated to be near enough, by the higher, then the lower.

        Of equal documents the first alone is looked at.
        """
        count = len(self._order)
        ranks = np.flatnonzero(is_first)
        rows, num_bands = bands(self._entries.least_similarity)
        found = np.empty(0, np.int64)
        for band in range(num_bands):
            values = self._entries.minhash(band * rows, (band + 1) * rows)
            keys = _band_key(values[:, self._order[ranks]])
            higher, lower = np.divmod(_equal_pairs(keys), max(len(ranks), 1))
            found = _unique(np.concatenate([found, ranks[higher] * count + ranks[lower]]))
        higher, lower = np.divmod(found, max(count, 1))
        involved = _unique(np.concatenate([lower, higher]))
        sketch = self._sketch(self._order[involved])
        at = np.searchsorted(involved, lower), np.searchsorted(involved, higher)
        floors = np.maximum(self._floors[lower], self._floors[higher])
        likely = np.empty(len(found), bool)
        for first in range(0, len(found), PAIRS_AT_ONCE):
            chosen = slice(first, first + PAIRS_AT_ONCE)
            estimates = (sketch[at[0][chosen]] == sketch[at[1][chosen]]).sum(axis=1) / NUM_HASHES
            likely[chosen] = estimates >= floors[chosen] - MARGIN
        return lower[likely], higher[likely]

    def _sketch(self, numbers: Ints) -> NDArray[np.uint8]:
        """Return (documents, `NUM_HASHES`), the low bytes of some documents' values."""
        sketch = np.empty((len(numbers), NUM_HASHES), np.uint8)
        for first in range(0, NUM_HASHES, HASHES_AT_ONCE):
            values = self._entries.minhash(first, first + HASHES_AT_ONCE)
            sketch[:, first : first + HASHES_AT_ONCE] = (values[:, numbers] & 0xFF).T
        return sketch

    def _is_near(self, rank: int, others: Ints) -> bool:
        if not len(others):
            return False
        entries = self._entries
        own = int(self._order[rank])
        text = self._compared(own)
        for other in others.tolist():  # in order, so that held-out ones come first
            number = int(self._order[other])
            near = self._compared(number)
            similarity = jaccard(text.pairs, near.pairs)
            edits = min(entries.edits[own], entries.edits[number])
            floor = FLOOR_MARGIN * similarity_after(edits)
            if similarity >= max(entries.thresholds[own], entries.thresholds[number]) or (
                edits > 0 and similarity >= floor and edited_share(text, near, edits) <= edits
            ):
                self._add(rank, other, "near_duplicate", similarity)
                return True
        return False

    def _add(self, rank: int, of: int, reason: str, similarity: float) -> None:
        number, kept = int(self._order[rank]), int(self._order[of])
        positions = self._entries.positions
        leaks = positions[kept] < self._heldout_below <= positions[number]
        reason = "heldout_duplicate" if leaks else reason
        self._found[number] = Duplicate(reason, kept, similarity)


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
