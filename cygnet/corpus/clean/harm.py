"""Slurs, profanity and sexually explicit terms: lists, and the share of a text that they make up.

C4 (Raffel et al. 2020, arXiv:1910.10683, section 2.2) drops a page for a single word of such a
list, and so loses medicine, law and the writing of minorities (Dodge et al. 2021,
arXiv:2104.08758). Here terms that ordinary text needs are in `harm/mild.txt` and not counted, and
a text with fewer than `MIN_DIFFERENT` different terms counts as having none.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cygnet.corpus.clean.words import Hashes, Ints, TextBatch

CATEGORIES = ("adult", "profanity", "slur", "unsorted")
"""`unsorted` holds those of languages other than English and Chinese."""

MIN_DIFFERENT = 3
MAX_WORDS = 8
"""Longer terms are left out; a Chinese character is a word."""

_FOLDER = Path(__file__).parent / "harm"
_POWERS = np.array(
    [pow(0xD6E8FEB86659FD93, place, 1 << 64) for place in range(MAX_WORDS)], np.uint64
)
_TABLE_BITS = 16


def about() -> str:
    """Return sources and licences of the lists, as Markdown."""
    return (_FOLDER / "ATTRIBUTION.md").read_text(encoding="utf-8")


def terms() -> dict[str, tuple[str, ...]]:
    """Return the terms that count, in lower case, by category."""
    return {category: _read(category) for category in CATEGORIES}


def _read(category: str) -> tuple[str, ...]:
    lines = (_FOLDER / f"{category}.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if line and not line.startswith("#"))


def harmful_share(batch: TextBatch) -> NDArray[np.float64]:
    """Return the share of each document's words that stand in terms; 0 with too few different."""
    num_words = np.diff(batch.word_offsets)
    starts, lengths, numbers = _found(batch)
    documents = np.searchsorted(batch.word_offsets, starts, side="right") - 1
    covered = np.zeros(len(batch.word_hashes) + 1, np.int64)  # +1 where a term begins, -1 behind
    np.add.at(covered, starts, 1)
    np.add.at(covered, starts + lengths, -1)
    inside = np.concatenate([[0], np.cumsum(np.cumsum(covered[:-1]) > 0)])
    num_covered = np.diff(inside[batch.word_offsets])
    different = np.unique(documents * len(_index().keys) + numbers) // len(_index().keys)
    num_different = np.bincount(different, minlength=len(batch))
    enough = num_different >= MIN_DIFFERENT
    return np.where(enough, num_covered / np.maximum(num_words, 1), 0.0)


def _found(batch: TextBatch) -> tuple[Ints, Ints, Ints]:
    """Return of each term found the word it begins with, its words, and its number."""
    index = _index()
    hashes = batch.word_hashes
    maybe = np.flatnonzero(index.first_words[_low_bits(hashes)])
    ends = batch.word_offsets[np.searchsorted(batch.word_offsets, maybe, side="right")]
    runs = np.zeros(len(maybe), np.uint64)
    found: list[tuple[Ints, Ints, Ints]] = []
    for length in range(1, MAX_WORDS + 1):
        room = maybe + length <= ends
        maybe, ends, runs = maybe[room], ends[room], runs[room]
        runs = runs + hashes[maybe + length - 1] * _POWERS[length - 1]
        at = np.minimum(np.searchsorted(index.keys, runs), len(index.keys) - 1)
        hit = (index.keys[at] == runs) & (index.lengths[at] == length)
        found.append((maybe[hit], np.full(int(hit.sum()), length), at[hit]))
    starts, lengths, numbers = zip(*found, strict=True)
    return np.concatenate(starts), np.concatenate(lengths), np.concatenate(numbers)


@dataclass(frozen=True)
class _Index:
    keys: Hashes
    """(terms), sorted: the hash of each term's words."""
    lengths: Ints
    """(terms), the words of each."""
    first_words: NDArray[np.bool_]
    """(2 ** _TABLE_BITS), by the low bits of a word's hash: may a term begin with it?"""


@lru_cache(maxsize=1)
def _index() -> _Index:
    every = [term for category in terms().values() for term in category]
    batch = TextBatch(every)
    first_words = np.zeros(1 << _TABLE_BITS, bool)
    lengths: dict[int, int] = {}
    for number in range(len(every)):
        first, last = batch.word_offsets[number : number + 2].tolist()
        if 0 < last - first <= MAX_WORDS:
            words = batch.word_hashes[first:last]
            first_words[_low_bits(words[:1])] = True
            lengths[int((words * _POWERS[: last - first]).sum(dtype=np.uint64))] = last - first
    keys = np.array(sorted(lengths), np.uint64)
    return _Index(keys, np.array([lengths[int(key)] for key in keys], np.int64), first_words)


def _low_bits(hashes: Hashes) -> Ints:
    return (hashes & np.uint64((1 << _TABLE_BITS) - 1)).astype(np.int64)
