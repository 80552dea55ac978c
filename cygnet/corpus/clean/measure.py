"""What is measured on each document: numbers that the rules of `rules.py` hold thresholds against.

Because a rule is no more than a threshold on a number that is kept, it can be changed afterwards
without a text being read again. Numbers are those of Gopher (Rae et al. 2021, arXiv:2112.11446,
table A1), C4 (Raffel et al. 2020, arXiv:1910.10683, section 2.2), FineWeb (Penedo et al. 2024,
arXiv:2406.17557, section 3.6) and StarCoder (Li et al. 2023, arXiv:2305.06161, section 3.3), in
the definitions of datatrove, with words as `words.TextBatch` parts them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cygnet.corpus.clean.words import (
    DIGIT,
    LETTER,
    NEWLINE,
    ONE,
    RUN,
    SPACE,
    Hashes,
    Ints,
    TextBatch,
)
from cygnet.hashing import mixed

Numbers = NDArray[np.float64]

STATISTICS = {
    "chars": "characters",
    "words": "words; a Han character, a kana and a symbol are one each",
    "han": "share of words that are Han characters or kana",
    "unreadable": "share of characters that are lost (U+FFFD)",
    "letters": "share of letters and digits in the characters, space aside",
    "runs": "share of characters in runs of one character, 40 or more of it",
    "repeated_lines": "share of the characters of lines that stand in lines that came before",
    "repeated_phrases": "share of runs of 8 words that came before (of texts of 50 words or more)",
    "mean_word_length": "mean characters of a word, symbols aside",
    "alpha_words": "share of what stands between spaces that has a letter; of Han text, of words",
    "hashes": "# signs over what stands between spaces, or words of Han text",
    "ellipses": "... and … over what stands between spaces, or words of Han text",
    "bullets": "share of lines that begin with a bullet (• or -)",
    "ellipsis_lines": "share of lines that end with an ellipsis",
    "stop_words": "different stop words of the document's language",
    "dup_lines": "share of lines that came before",
    "dup_line_chars": "characters of lines that came before, over all",
    "dup_paragraphs": "share of paragraphs that came before",
    "dup_paragraph_chars": "characters of paragraphs that came before, over all",
    **{
        f"top_{n}": f"characters of the most frequent run of {n} words, over all" for n in (2, 3, 4)
    },
    **{
        f"dup_{n}": f"characters of runs of {n} words that came before, over all (under 8 %: 0)"
        for n in range(5, 11)
    },
    "punctuated_lines": "share of lines that end with a sentence's end",
    "short_lines": "share of lines of 30 characters or fewer",
    "dup_chars": "characters of lines that came before, over those of all lines",
    "newlines": "line ends over what stands between spaces, or words of Han text",
    "sentences": "sentences, one a line at least",
    "curly_brackets": "{ signs",
    "lorem_ipsum": "times that it says lorem ipsum",
    "mean_line_length": "mean characters of a line",
    "max_line_length": "characters of the longest line",
}
"""Every number's name and meaning; runs of words are twice as long where words are Han."""

OF_ALL = (
    *("chars", "words", "han", "unreadable", "letters", "runs", "repeated_lines"),
    *("repeated_phrases", "mean_line_length", "max_line_length"),
)
"""What rules for any text ask for; all else is measured on web pages alone."""
RUNS = (*(f"top_{n}" for n in (2, 3, 4)), *(f"dup_{n}" for n in range(5, 11)))
RUN_LENGTH = 40
PHRASE_WORDS = 8
MIN_WORDS_FOR_PHRASES = 50
SHORT_LINE = 30
MIN_DUPLICATED = 0.08
MOSTLY_HAN = 0.5

TERMINALS = "!.?؞؟۔܀܁܂߹।॥၊။።፧፨។៕៖៙៚᠃᠉᥄᥅‼‽⁇⁈⁉⸮。꓿꘎꘏꛳꛷꡶꡷꣎꣏꤯꧈꧉꩝꩞꩟꫰꫱꯫﹒﹖﹗！．？｡"
"""What ends a sentence: the code points of Unicode's Sentence_Terminal in the basic plane."""

STOP_WORDS = {
    "en": "the be to of and that have with",
    "de": "der die und das ist nicht ein zu",
    "fr": "le la de et les des est un",
    "es": "el la de que y los en un",
    "it": "il di che la e un per non",
    "pt": "o de que a e do da em",
    "nl": "de het een van en is dat niet",
    "sv": "och att det som en på är av",
    "da": "og at det en er på til af",
    "pl": "i w na nie się że do jest",
    "ru": "и в не на что с по это",
    "uk": "і в не на що з до це",
    "tr": "ve bir bu da için ile çok olarak",
    "zh": "的 了 是 在 不 有 和 这",
    "ja": "の に は を た が で て",
    "ko": "이 그 및 수 있다 는 을 를",
    "ar": "في من على أن إلى هذا ما لا",
    "hi": "के में की है और का को से",
    "vi": "và của là có cho không được các",
    "id": "yang dan di dengan untuk dari ini itu",
}
"""Eight of the most frequent function words of a language; English's are Gopher's."""


def measure(
    batch: TextBatch, languages: Sequence[str] | None = None, of_web: bool = True
) -> dict[str, Numbers]:
    """Return each number of `STATISTICS`, (documents) of float64.

    Args:
        batch: the documents.
        languages: of each document its ISO 639-1 code, for stop words; English where not given.
        of_web: measure what rules for web pages alone ask for, which takes three times as long as
            the rest; else NaN.
    """
    return _Measures(batch, languages).all(of_web)


class _Measures:
    def __init__(self, batch: TextBatch, languages: Sequence[str] | None) -> None:
        self._batch = batch
        self._languages = languages
        self._chars = np.maximum(batch.num_chars, 1).astype(np.float64)
        self._words = np.diff(batch.word_offsets)
        self._han = self._share_of_han()

    def all(self, of_web: bool) -> dict[str, Numbers]:
        batch = self._batch
        numbers: dict[str, NDArray[Any]] = {
            "chars": batch.num_chars,
            "words": self._words,
            "han": self._han,
            "unreadable": self._count(batch.codes == 0xFFFD) / self._chars,
            "letters": self._letters(),
            "runs": self._runs(),
            "repeated_phrases": self._repeated_phrases(),
            **self._of_line_lengths(),
        }
        if of_web:
            numbers |= {
                **self._of_words(),
                **self._of_lines(),
                **self._of_repeats(),
                **self._of_runs(),
                "curly_brackets": self._count(batch.codes == ord("{")),
                "lorem_ipsum": self._lorem_ipsum(),
            }
            assert numbers.keys() == STATISTICS.keys()
        else:
            _, chars, all_chars = self._repeats(*batch.line_spans)
            numbers["repeated_lines"] = chars / np.maximum(all_chars, 1)
        missing = np.full(len(batch), np.nan)
        return {name: numbers.get(name, missing).astype(np.float64) for name in STATISTICS}

    @cached_property
    def _token_spans(self) -> tuple[Ints, Ints]:
        """Where what stands between white space begins and ends."""
        filled = ((self._batch.kinds & SPACE) == 0) & (self._batch.codes != 0)
        before = np.concatenate([[False], filled[:-1]])
        behind = np.concatenate([filled[1:], [False]])
        return np.flatnonzero(filled & ~before), np.flatnonzero(filled & ~behind) + 1

    @cached_property
    def _tokens(self) -> Ints:
        """The words that papers count: those between spaces; Han text has none between words."""
        num_tokens = self._batch.counts(self._token_spans[0])
        return np.maximum(np.where(self._han > MOSTLY_HAN, self._words, num_tokens), 1)

    def _count(self, mask: NDArray[np.bool_]) -> Ints:
        return self._batch.counts(np.flatnonzero(mask))

    def _share_of_han(self) -> Numbers:
        starts, _ = self._batch.word_spans
        is_han = (self._batch.kinds[starts] & (ONE | LETTER)) == (ONE | LETTER)
        return self._batch.counts(starts[is_han]) / np.maximum(self._words, 1)

    def _letters(self) -> Numbers:
        kinds = self._batch.kinds
        visible = self._batch.num_chars - self._count((kinds & SPACE) > 0)
        return self._count((kinds & (LETTER | DIGIT)) > 0) / np.maximum(visible, 1)

    def _runs(self) -> Numbers:
        codes = self._batch.codes
        begins = np.flatnonzero(np.diff(codes, prepend=np.uint32(0xFFFFFFFF)))
        lengths = np.diff(begins, append=len(codes))
        long = (lengths >= RUN_LENGTH) & ((self._batch.kinds[begins] & SPACE) == 0)
        return self._batch.sums(begins[long], lengths[long]) / self._chars

    def _of_words(self) -> dict[str, Numbers]:
        batch = self._batch
        starts, ends = batch.word_spans
        is_run = (batch.kinds[starts] & RUN) > 0
        num_runs = np.maximum(batch.counts(starts[is_run]), 1)
        codes = batch.codes
        dots = codes == ord(".")
        triples = np.flatnonzero(dots[:-2] & dots[1:-1] & dots[2:])
        # As str.count does: three in a row are one, six are two.
        ellipses = triples[_every_third(triples)]
        return {
            "mean_word_length": batch.sums(starts[is_run], (ends - starts)[is_run]) / num_runs,
            "alpha_words": self._alpha_words(),
            "hashes": self._count(codes == ord("#")) / self._tokens,
            "ellipses": (batch.counts(ellipses) + self._count(codes == ord("…"))) / self._tokens,
            "stop_words": self._stop_words(),
        }

    def _alpha_words(self) -> Numbers:
        batch = self._batch
        letters = np.zeros(len(batch.codes) + 1, np.int32)
        np.cumsum((batch.kinds & LETTER) > 0, out=letters[1:])
        starts, ends = self._token_spans
        with_letter = starts[letters[ends] > letters[starts]]
        words, _ = batch.word_spans
        alpha = words[(batch.kinds[words] & LETTER) > 0]
        is_han = self._han > MOSTLY_HAN
        return np.where(is_han, batch.counts(alpha), batch.counts(with_letter)) / self._tokens

    def _stop_words(self) -> Numbers:
        batch = self._batch
        languages = np.array(self._languages or ["en"] * len(batch), object)
        found = np.full(len(batch), np.nan)
        known, may_be = _all_stop_hashes()
        # Few words pass the first sixteen bits of a stop word's hash.
        words = np.flatnonzero(may_be[batch.word_hashes >> np.uint64(48)])
        at = np.minimum(np.searchsorted(known, batch.word_hashes[words]), len(known) - 1)
        is_one = known[at] == batch.word_hashes[words]
        document = np.searchsorted(batch.word_offsets, words[is_one], side="right") - 1
        seen = np.zeros((len(batch), len(known)), bool)
        seen[document, at[is_one]] = True
        for language in set(languages.tolist()) & STOP_WORDS.keys():
            documents = np.flatnonzero(languages == language)
            columns = np.searchsorted(known, _stop_hashes(language))
            found[documents] = seen[np.ix_(documents, columns)].sum(axis=1)
        return found

    def _of_lines(self) -> dict[str, NDArray[Any]]:
        batch = self._batch
        starts, ends = batch.line_spans
        codes = batch.codes
        lengths = ends - starts
        num_filled = np.maximum(batch.counts(starts), 1)
        num_newlines = self._count((batch.kinds & NEWLINE) > 0)
        first, last = codes[starts], codes[ends - 1]
        is_bullet = (first == ord("•")) | (first == ord("-"))
        before = codes[np.maximum(ends - 2, 0)], codes[np.maximum(ends - 3, 0)]
        is_open = (last == ord("…")) | (
            (lengths > 2) & (last == ord(".")) & (before[0] == ord(".")) & (before[1] == ord("."))
        )
        is_short = lengths <= SHORT_LINE
        return {
            "bullets": batch.counts(starts[is_bullet]) / (num_newlines + 1),
            "ellipsis_lines": batch.counts(starts[is_open]) / (num_newlines + 1),
            "punctuated_lines": batch.counts(starts[_is_terminal()[last]]) / num_filled,
            "short_lines": batch.counts(starts[is_short]) / num_filled,
            "newlines": num_newlines / self._tokens,
            "sentences": batch.counts(starts) + self._inner_ends(ends),
        }

    def _inner_ends(self, line_ends: Ints) -> Ints:
        """Count sentences' ends that are no line's end."""
        codes, kinds = self._batch.codes, self._batch.kinds
        at = np.flatnonzero(_is_terminal()[codes[:-1]])
        ends = (kinds[at + 1] & SPACE > 0) | (codes[at] > 0x2FFF)
        at = at[ends & (kinds[at + 1] & NEWLINE == 0)]
        return self._batch.counts(np.setdiff1d(at, line_ends - 1, assume_unique=True))

    def _of_line_lengths(self) -> dict[str, NDArray[Any]]:
        starts, ends = self._batch.line_spans
        lengths = ends - starts
        num_filled = np.maximum(self._batch.counts(starts), 1)
        return {
            "mean_line_length": self._batch.sums(starts, lengths) / num_filled,
            "max_line_length": self._longest(starts, lengths),
        }

    def _longest(self, starts: Ints, lengths: Ints) -> Ints:
        longest = np.zeros(len(self._batch), np.int64)
        np.maximum.at(
            longest, np.searchsorted(self._batch.offsets, starts, side="right") - 1, lengths
        )
        return longest

    def _of_repeats(self) -> dict[str, Numbers]:
        batch = self._batch
        lines, line_chars, all_line_chars = self._repeats(*batch.line_spans)
        paragraphs, paragraph_chars, _ = self._repeats(*batch.paragraph_spans)
        num_lines = np.maximum(batch.counts(batch.line_spans[0]), 1)
        num_paragraphs = np.maximum(batch.counts(batch.paragraph_spans[0]), 1)
        without_ends = np.maximum(batch.num_chars - self._count(batch.codes == 10), 1)
        return {
            "repeated_lines": line_chars / np.maximum(all_line_chars, 1),
            "dup_lines": lines / num_lines,
            "dup_line_chars": line_chars / self._chars,
            "dup_paragraphs": paragraphs / num_paragraphs,
            "dup_paragraph_chars": paragraph_chars / self._chars,
            "dup_chars": line_chars / without_ends,
        }

    def _repeats(self, starts: Ints, ends: Ints) -> tuple[NDArray[Any], ...]:
        """Return how many spans came before in their document, their characters, those of all."""
        batch = self._batch
        documents = np.searchsorted(batch.offsets, starts, side="right") - 1
        keys = batch.hashes(starts, ends) ^ mixed_number(documents)
        order = np.argsort(keys, kind="stable")
        again = order[1:][keys[order[1:]] == keys[order[:-1]]]
        count = len(batch)
        lengths = ends - starts
        return (
            np.bincount(documents[again], minlength=count).astype(np.float64),
            np.bincount(documents[again], lengths[again], minlength=count),
            np.bincount(documents, lengths, minlength=count),
        )

    def _of_runs(self) -> dict[str, Numbers]:
        is_han = self._han > MOSTLY_HAN
        numbers = {name: np.zeros(len(self._batch)) for name in RUNS}
        for factor, chosen in ((1, ~is_han), (2, is_han)):
            if chosen.any():
                for name, values in self._runs_of_words(factor, chosen).items():
                    numbers[name][chosen] = values[chosen]
        return numbers

    def _runs_of_words(self, factor: int, chosen: NDArray[np.bool_]) -> dict[str, Numbers]:
        numbers = {f"top_{n}": self._top(n * factor) for n in (2, 3, 4)}
        shares = np.zeros((len(self._batch), 6))
        for document in np.flatnonzero(chosen & self._may_repeat(5 * factor)).tolist():
            total = self._chars[document]
            repeated = [self._duplicated(document, n * factor) for n in range(5, 11)]
            shares[document] = np.array(repeated) / total
        shares[shares < MIN_DUPLICATED] = 0
        return numbers | {f"dup_{n}": shares[:, n - 5] for n in range(5, 11)}

    def _keys(self, length: int) -> tuple[Hashes, Hashes, Ints]:
        """Return a key of each run of words that no other document has, them sorted, and where
        each document's begin in both."""
        hashes, offsets = self._batch.ngrams(length)
        documents = np.repeat(np.arange(len(self._batch), dtype=np.uint64), np.diff(offsets))
        keys = (documents << np.uint64(44)) | (hashes >> np.uint64(20))
        return keys, np.sort(keys), offsets

    def _top(self, length: int) -> Numbers:
        batch = self._batch
        keys, ordered, offsets = self._keys(length)
        share = np.zeros(len(batch))
        if not len(keys):
            return share
        begins = np.flatnonzero(np.diff(ordered, prepend=~ordered[0]))
        counts = np.diff(begins, append=len(ordered))
        filled = np.flatnonzero(np.diff(offsets))
        groups = np.searchsorted(begins, offsets[filled])
        highest = np.maximum.reduceat(counts, groups)
        of_group = np.repeat(np.arange(len(groups)), np.diff(groups, append=len(begins)))
        is_best = np.flatnonzero(counts == highest[of_group])
        best = ordered[begins[is_best[np.searchsorted(is_best, groups)]]]
        # One place where each document's most frequent run stands gives its length.
        places = np.flatnonzero(keys == np.repeat(best, np.diff(offsets)[filled]))
        run = places[np.searchsorted(places, offsets[filled])]
        word = batch.word_offsets[filled] + run - offsets[filled]
        starts, ends = batch.word_spans
        chars = ends[word + length - 1] - starts[word]
        share[filled] = highest * chars / self._chars[filled]
        return share

    def _repeated_phrases(self) -> Numbers:
        _, ordered, offsets = self._keys(PHRASE_WORDS)
        again = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
        repeated = np.diff(np.searchsorted(again, offsets)) / np.maximum(np.diff(offsets), 1)
        return np.where(self._words >= MIN_WORDS_FOR_PHRASES, repeated, 0.0)

    def _may_repeat(self, length: int) -> NDArray[np.bool_]:
        """Say of which documents runs that occur twice make up more than `MIN_DUPLICATED`.

        Longer runs that occur twice consist of these, so that all others need no second look.
        """
        batch = self._batch
        keys, ordered, offsets = self._keys(length)
        twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        if not len(twice):
            return np.zeros(len(batch), bool)
        at = np.minimum(np.searchsorted(twice, keys), len(twice) - 1)
        places = np.flatnonzero(twice[at] == keys)
        document = np.searchsorted(offsets, places, side="right") - 1
        word = batch.word_offsets[document] + places - offsets[document]
        steps = np.zeros(len(batch.word_hashes) + 1, np.int64)
        np.add.at(steps, word, 1)
        np.add.at(steps, word + length, -1)
        covered = np.cumsum(steps)[:-1] > 0
        starts, ends = batch.word_spans
        chars = batch.sums(starts[covered], (ends - starts)[covered])
        return chars > MIN_DUPLICATED * self._chars

    def _duplicated(self, document: int, length: int) -> int:
        """Return the characters of runs of words that came before, read as datatrove does.

        A run that came before is counted and stepped over whole.
        """
        batch = self._batch
        first, last = batch.word_offsets[document], batch.word_offsets[document + 1]
        starts, ends = (spans[first:last] for spans in batch.word_spans)
        runs = batch.ngrams_of(document, length)
        order = np.argsort(runs, kind="stable")
        same = runs[order[1:]] == runs[order[:-1]]
        # Runs that occur once change nothing: the walk steps over them.
        recurs = np.zeros(len(runs), bool)
        recurs[order[1:][same]] = recurs[order[:-1][same]] = True
        places = np.flatnonzero(recurs)
        ends_of = np.concatenate([[0], np.cumsum(ends - starts)])
        chars = (ends_of[places + length] - ends_of[places]).tolist()
        seen: set[int] = set()
        at = repeated = 0
        for place, run, size in zip(places.tolist(), runs[places].tolist(), chars, strict=True):
            if place < at:
                continue
            if run in seen:
                repeated += size
                at = place + length
            seen.add(run)
        return repeated

    def _lorem_ipsum(self) -> Numbers:
        found = np.zeros(len(self._batch))
        for number, text in enumerate(self._batch.texts):
            if "psum" in text:
                found[number] = len(_LOREM_IPSUM.findall(text))
        return found


_LOREM_IPSUM = re.compile("lorem ipsum", re.IGNORECASE)


def _every_third(positions: Ints) -> NDArray[np.bool_]:
    """Say which of some positions str.count would count, each match three characters wide."""
    begins = np.flatnonzero(np.diff(positions, prepend=-2) != 1)
    within = np.arange(len(positions)) - np.repeat(begins, np.diff(begins, append=len(positions)))
    return within % 3 == 0


def mixed_number(numbers: Ints) -> Hashes:
    """Return a hash of each number."""
    return mixed(numbers.astype(np.uint64) + np.uint64(1))


@lru_cache(maxsize=32)
def _stop_hashes(language: str) -> Hashes:
    return TextBatch([STOP_WORDS[language]]).word_hashes


@lru_cache(maxsize=1)
def _all_stop_hashes() -> tuple[Hashes, NDArray[np.bool_]]:
    """Return all languages' stop words, sorted, and whether a hash's first bits are of one."""
    known = np.unique(np.concatenate([_stop_hashes(language) for language in STOP_WORDS]))
    may_be = np.zeros(1 << 16, bool)
    may_be[known >> np.uint64(48)] = True
    return known, may_be


@lru_cache(maxsize=1)
def _is_terminal() -> NDArray[np.bool_]:
    table = np.zeros(0x110000, bool)
    table[[ord(mark) for mark in TERMINALS]] = True
    return table
