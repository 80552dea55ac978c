"""Exact and near duplicates: MinHash finds candidates, the texts themselves decide.

Two texts are near duplicates when the Jaccard similarity of their sets of word pairs reaches the
threshold. Pairs rather than longer runs, so that short texts behave: of two poems of 20
characters that differ in one, 17 of 21 pairs are shared (0.81). Source of the method: Broder,
"On the resemblance and containment of documents" (1997); banding as in Leskovec, Rajaraman,
Ullman, "Mining of Massive Datasets", section 3.4.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cygnet.corpus.clean.normalize import words
from cygnet.corpus.document import Document
from cygnet.errors import require

NUM_HASHES = 64
HASH_SEED = 1
MIN_RECALL = 0.995
REASONS = {
    "exact_duplicate": "the same words as another document",
    "near_duplicate": "shares most word pairs with another document",
    "heldout_duplicate": "the same as, or nearly the same as, a held-out document",
}


def comparable_words(document: Document) -> list[str]:
    """Return the words that a document is compared by: all but a first line with its title.

    One poem under two titles is one text. Of a conversation, what the assistant thinks and calls
    counts as what it says does.
    """
    text = document.text
    first, newline, rest = text.partition("\n")
    if newline and document.title and document.title in first and rest.strip():
        text = rest
    text = "\n".join([text, *_unsaid(document)])
    return words(text) or [text.strip()]


def _unsaid(document: Document) -> Iterator[str]:
    for message in document.messages or ():
        yield str(message.get("reasoning_content") or "")
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            if isinstance(call, Mapping):
                call = {name: value for name, value in call.items() if name != "id"}
            yield json.dumps(call, sort_keys=True, default=str)


def shingles(tokens: Sequence[str]) -> set[str]:
    """Return the set of pairs of neighbouring words (of a single word, the word)."""
    return {f"{a} {b}" for a, b in itertools.pairwise(tokens)} or set(tokens)


def exact_key(tokens: Sequence[str]) -> bytes:
    """Return a hash that is equal exactly when the words are."""
    return hashlib.sha256(" ".join(tokens).encode("utf-8", "surrogatepass")).digest()[:16]


def jaccard(a: set[str], b: set[str]) -> float:
    """Return the size of the intersection over the size of the union."""
    return len(a & b) / max(len(a | b), 1)


def signature(tokens: Sequence[str]) -> Any:
    """Return the MinHash signature (`NUM_HASHES` values) of the word pairs."""
    minhash = require("rensa", "data").RMinHash(num_perm=NUM_HASHES, seed=HASH_SEED)
    minhash.update(list(shingles(tokens)))
    return minhash


def num_bands(threshold: float) -> int:
    """Return the fewest bands that find a pair at the threshold with `MIN_RECALL` probability."""
    for rows in (16, 8, 4, 2):
        bands = NUM_HASHES // rows
        if 1 - (1 - threshold**rows) ** bands >= MIN_RECALL:
            return bands
    return NUM_HASHES


@dataclass(slots=True)
class Entry:
    """What duplicates are found by; the text itself stays on disk."""

    position: float
    """`split.split_position`: documents of lower position are kept before others."""
    id: str
    source: str
    exact: bytes
    signature: Any


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Why a document goes."""

    reason: str
    """A key of `REASONS`."""
    of: int
    """The number of the kept document."""
    similarity: float


def find_duplicates(
    entries: Sequence[Entry],
    heldout_below: float,
    threshold: float,
    words_of: Callable[[int], list[str]],
) -> Iterator[tuple[int, Duplicate | None]]:
    """Yield each entry's number with the duplicate it is, or None if it is kept.

    Entries are taken by (position, id, source), so held-out documents come first and the outcome
    does not depend on the order of `entries`.

    Args:
        entries: one for each document.
        heldout_below: documents of lower position are held out.
        threshold: the least Jaccard similarity of near duplicates.
        words_of: gives the `comparable_words` of a document by its number.
    """
    index = require("rensa", "data").RMinHashLSH(threshold, NUM_HASHES, num_bands(threshold))
    first_with: dict[bytes, int] = {}

    def duplicate(number: int, of: int, reason: str, similarity: float) -> Duplicate:
        leaks = entries[of].position < heldout_below <= entries[number].position
        return Duplicate("heldout_duplicate" if leaks else reason, of, similarity)

    def key(number: int) -> tuple[float, str, str]:
        return entries[number].position, entries[number].id, entries[number].source

    for number in sorted(range(len(entries)), key=key):
        entry = entries[number]
        if entry.exact in first_with:
            yield number, duplicate(number, first_with[entry.exact], "exact_duplicate", 1.0)
            continue
        candidates = sorted(index.query(entry.signature), key=key)  # held-out ones first
        near = _first_near(number, candidates, threshold, words_of)
        if near is not None:
            yield number, duplicate(number, near[0], "near_duplicate", near[1])
            continue
        first_with[entry.exact] = number
        index.insert(number, entry.signature)
        yield number, None


def _first_near(
    number: int, candidates: list[int], threshold: float, words_of: Callable[[int], list[str]]
) -> tuple[int, float] | None:
    if not candidates:
        return None
    own = shingles(words_of(number))
    for other in candidates:
        similarity = jaccard(own, shingles(words_of(other)))
        if similarity >= threshold:
            return other, similarity
    return None
