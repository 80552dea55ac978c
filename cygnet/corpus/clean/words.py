"""Many texts as one array of characters: their words, lines and paragraphs, and hashes of them.

Counting words in Python costs about a microsecond each; here a few passes of numpy over a batch of
documents do it for all of them. A Han character or kana is a word of its own, and so is a symbol,
so that rules made for words hold for Chinese as they do for English.

Spans are hashed by a polynomial in an odd base modulo 2**64: the hash of any span is a difference
of two prefix sums times a power of the base's inverse (Karp and Rabin 1987, "Efficient randomized
pattern-matching algorithms", taken modulo 2**64), mixed afterwards by the finalizer of splitmix64
(Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cygnet.han import HAN
from cygnet.hashing import mixed

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]

RUN, ONE, SPACE, NEWLINE, LETTER, DIGIT = 1, 2, 4, 8, 16, 32
"""Bits of a character's kind: part of a word; a word of its own; white space; ends a line; is
alphabetic; is a digit. Neither RUN nor ONE nor SPACE: punctuation."""

SYMBOLS = "-+*/=<>^%$&|~#@\\"
"""Words too, or "2 + 2" and "2 - 2" would be the same text."""

_KANA = "\u3040-\u30ff"
_LAST = 0x323B0
"""Behind it are no letters; planes of variation selectors and private use."""
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)


class TextBatch:
    """Documents as arrays.

    Attributes:
        texts: the documents.
        codes: (characters), the code points of all texts, a NUL behind each; uint8 if all are
            ASCII, else uint32.
        kinds: uint8 (characters), bits of `RUN`, `ONE`, ...
        offsets: (documents + 1), where each text begins in `codes`.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        joined = "\0".join([*texts, ""])
        self.codes: NDArray[Any]
        if joined.isascii():  # a quarter of the memory to go through
            self.codes = np.frombuffer(joined.encode("ascii"), np.uint8)
        else:
            self.codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        self.offsets: Ints = np.concatenate([[0], np.cumsum(lengths + 1)])
        self.kinds = _kinds()[self._known_codes()]

    def _known_codes(self) -> NDArray[Any]:
        return self.codes if self.codes.dtype == np.uint8 else np.minimum(self.codes, _LAST)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def num_chars(self) -> Ints:
        """(documents), the characters of each."""
        return np.diff(self.offsets) - 1

    def counts(self, positions: Ints) -> Ints:
        """Return how many of some sorted positions in `codes` lie in each document."""
        return np.diff(np.searchsorted(positions, self.offsets))

    def sums(self, positions: Ints, values: NDArray[np.generic]) -> NDArray[np.float64]:
        """Return each document's sum of the values at some sorted positions in `codes`."""
        totals = np.concatenate([[0], np.cumsum(values, dtype=np.float64)])
        return np.diff(totals[np.searchsorted(positions, self.offsets)])

    @cached_property
    def word_spans(self) -> tuple[Ints, Ints]:
        """(words), (words): where each word begins in `codes`, and where it ends."""
        in_run = (self.kinds & RUN).view(bool)
        alone = (self.kinds & ONE) > 0
        before = np.concatenate([[False], in_run[:-1]])  # the last character is a NUL
        behind = np.concatenate([in_run[1:], [False]])
        starts = np.flatnonzero((in_run & ~before) | alone)
        ends = np.flatnonzero((in_run & ~behind) | alone) + 1
        return starts, ends

    @cached_property
    def word_offsets(self) -> Ints:
        """(documents + 1), where each document's words begin among all."""
        return np.searchsorted(self.word_spans[0], self.offsets)

    @cached_property
    def word_hashes(self) -> Hashes:
        """(words), equal for words that differ in case alone."""
        return self.hashes(*self.word_spans)

    @cached_property
    def line_spans(self) -> tuple[Ints, Ints]:
        """(lines), (lines): the lines that are not blank, without white space at either end."""
        return self._stripped(np.flatnonzero((self.codes == 10) | (self.codes == 0)))

    @cached_property
    def paragraph_spans(self) -> tuple[Ints, Ints]:
        """(paragraphs), (paragraphs): runs of lines that are not blank."""
        starts, ends = self.line_spans
        if not len(starts):
            return starts, ends
        # A blank line lies between where two lie apart by more than one line's end, or documents.
        line_ends = np.flatnonzero((self.codes == 10) | (self.codes == 0))
        crossed = np.searchsorted(line_ends, starts[1:]) - np.searchsorted(line_ends, ends[:-1])
        apart = crossed > 1
        apart |= np.diff(np.searchsorted(self.offsets, starts, side="right")) > 0
        first = np.concatenate([[True], apart])
        last = np.concatenate([apart, [True]])
        return starts[first], ends[last]

    def _stripped(self, ends: Ints) -> tuple[Ints, Ints]:
        filled = np.flatnonzero((self.kinds & SPACE) == 0)
        filled = filled[self.codes[filled] != 0]
        at = np.searchsorted(filled, ends)
        begin = np.concatenate([[0], at[:-1]])
        kept = at > begin
        return filled[begin[kept]], filled[at[kept] - 1] + 1

    @cached_property
    def _prefix(self) -> Hashes:
        sums = np.zeros(len(self.codes) + 1, np.uint64)
        lowered = _lower_case()[self._known_codes()].astype(np.uint64)
        if self.codes.dtype != np.uint8 and (beyond := self.codes >= _LAST).any():
            lowered[beyond] = self.codes[beyond]
        np.cumsum((lowered + np.uint64(1)) * _powers(_BASE, len(self.codes)), out=sums[1:])
        return sums

    def hashes(self, starts: Ints, ends: Ints) -> Hashes:
        """Return a hash of each span of `codes`, equal where texts differ in case alone."""
        parts = self._prefix[ends] - self._prefix[starts]
        return mixed(parts * _powers(_INVERSE, len(self.codes) + 1)[starts])

    @cached_property
    def _word_prefix(self) -> Hashes:
        sums = np.zeros(len(self.word_hashes) + 1, np.uint64)
        np.cumsum(self.word_hashes * _powers(_BASE, len(self.word_hashes)), out=sums[1:])
        return sums

    def ngrams(self, length: int) -> tuple[Hashes, Ints]:
        """Return the hash of each run of `length` words, and (documents + 1) where they begin.

        Runs do not cross documents.
        """
        num_words = np.diff(self.word_offsets)
        num_runs = np.maximum(num_words - length + 1, 0)
        offsets = np.concatenate([[0], np.cumsum(num_runs)])
        # Position i of all runs is word i plus what documents before have more of words.
        starts = np.arange(offsets[-1]) + np.repeat(self.word_offsets[:-1] - offsets[:-1], num_runs)
        parts = self._word_prefix[starts + length] - self._word_prefix[starts]
        return mixed(parts * _powers(_INVERSE, len(self._word_prefix))[starts]), offsets

    def ngrams_of(self, document: int, length: int) -> Hashes:
        """Return the hash of each run of `length` words of one document."""
        first, last = self.word_offsets[document], self.word_offsets[document + 1]
        sums = self._word_prefix[first : last + 1]
        parts = sums[length:] - sums[:-length]
        return mixed(parts * _powers(_INVERSE, len(self._word_prefix))[first : first + len(parts)])

    def words(self, document: int) -> list[str]:
        """Return the lower-case words of one document."""
        first, last = self.word_offsets[document], self.word_offsets[document + 1]
        starts, ends = self.word_spans
        origin = int(self.offsets[document])
        text = self.texts[document]
        spans = zip(starts[first:last].tolist(), ends[first:last].tolist(), strict=True)
        return [text[start - origin : end - origin].lower() for start, end in spans]


def words(text: str) -> list[str]:
    """Return lower-case words; a Han character or kana is a word of its own, so is a symbol."""
    return TextBatch([text]).words(0)


def word_run_hash(text: str) -> tuple[int, np.uint64]:
    """Return a text's number of words and their hash, as `TextBatch.ngrams` would give it."""
    batch = TextBatch([text])
    count = len(batch.word_hashes)
    return count, batch.ngrams(count)[0][0] if count else np.uint64(0)


@lru_cache(maxsize=8)
def _powers_of(base: int, size: int) -> Hashes:
    powers = np.full(size, base, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


def _powers(base: int, count: int) -> Hashes:
    size = 1 << max(count - 1, 1).bit_length()  # few sizes, so that they are made once
    return _powers_of(base, size)[:count]


@lru_cache(maxsize=1)
def _kinds() -> NDArray[np.uint8]:
    kinds = np.zeros(_LAST + 1, np.uint8)
    for code in range(_LAST):
        char = chr(code)
        if char.isalnum() or unicodedata.category(char)[0] == "M" or char == "_":
            kinds[code] = RUN
            kinds[code] |= LETTER if char.isalpha() else DIGIT if char.isdigit() else 0
        elif char.isspace():
            kinds[code] = SPACE
    for first, last in _ranges(_KANA + HAN):
        letters = kinds[first : last + 1]
        letters[:] = ONE | (letters & LETTER)
    kinds[[ord(symbol) for symbol in SYMBOLS]] = ONE
    kinds[ord("\n")] |= NEWLINE
    return kinds


@lru_cache(maxsize=1)
def _lower_case() -> NDArray[np.uint32]:
    lowered = np.arange(_LAST + 1, dtype=np.uint32)
    for code in range(_LAST):
        lower = chr(code).lower()
        if len(lower) == 1:
            lowered[code] = ord(lower)
    return lowered


def _ranges(characters: str) -> list[tuple[int, int]]:
    """Return the ranges of a regular expression's class, such as `a-zA-Z_`."""
    ranges, at = [], 0
    while at < len(characters):
        last = at + 2 if characters[at + 1 : at + 2] == "-" else at
        ranges.append((ord(characters[at]), ord(characters[last])))
        at = last + 1
    return ranges
