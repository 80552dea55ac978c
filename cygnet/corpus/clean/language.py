"""In which language a text is written.

Chinese, Japanese and Korean are told by their scripts. All else goes through the byte n-grams of
py3langid (naive Bayes over 140 languages; Lui and Baldwin 2011, "Cross-domain feature selection
for language identification"), which walks an automaton byte by byte. Here the automaton walks all
documents of a batch at once, with the same answers in a sixth of the time
(`benchmarks/language_id.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import tempfile
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cygnet.corpus.clean.words import LETTER, ONE, TextBatch
from cygnet.errors import require
from cygnet.files import cache_folder, read_json, write_atomic, write_json

UNDETERMINED = "und"
PLACES, CHARS_AT_PLACE = 3, 70
"""A longer text is judged by as many characters at its start, in its middle and at its end."""
MIN_KANA = 0.1
"""Share of kana among kana and Han characters from which a text is Japanese."""
LETTERS_A_SIGN = 2
"""Alphabetic letters that say about as much as a Han character, a kana or a Hangul syllable."""
BATCH_TEXTS = 1024
_FORMAT, _SUMS = 1, "sums.json"
"""Another number where the unpacked model is written otherwise; the CRC-32 of its files."""

Counts = NDArray[np.int64]


def languages(texts: Sequence[str]) -> list[tuple[str, float]]:
    """Return each text's language and the confidence in it, from 0 to 1.

    The language is its ISO 639-1 code (ISO 639-3 where there is none), "und" for a text without
    letters and for what the model takes for no language. An answer does not depend on the other
    texts.

    Raises:
        UserError: py3langid is not installed.
    """
    samples = [sample(text) for text in texts]
    answers = _by_script(samples)
    left = [i for i, answer in enumerate(answers) if answer is None]
    for start in range(0, len(left), BATCH_TEXTS):
        chosen = left[start : start + BATCH_TEXTS]
        found = _NaiveBayes.of_library().languages([samples[i] for i in chosen])
        for i, answer in zip(chosen, found, strict=True):
            answers[i] = answer
    return [answer or (UNDETERMINED, 0.0) for answer in answers]


def sample(text: str) -> str:
    """Return the text, or its start, middle and end where it is long."""
    if len(text) <= PLACES * CHARS_AT_PLACE:
        return text
    step = (len(text) - CHARS_AT_PLACE) // (PLACES - 1)
    return " ".join(text[i * step : i * step + CHARS_AT_PLACE] for i in range(PLACES))


def _by_script(samples: Sequence[str]) -> list[tuple[str, float] | None]:
    """Return the answer for what has no letters or is in a script of East Asia, else None."""
    batch = TextBatch(samples)
    is_letter = (batch.kinds & LETTER) > 0
    is_kana = (batch.codes >= 0x3040) & (batch.codes <= 0x30FF) & is_letter
    is_han = ((batch.kinds & ONE) > 0) & is_letter & ~is_kana
    is_hangul = (batch.codes >= 0xAC00) & (batch.codes <= 0xD7A3)
    counts = (_counts(batch, mask) for mask in (is_letter, is_kana, is_han, is_hangul))
    answers: list[tuple[str, float] | None] = []
    for letters, kana, han, hangul in zip(*(c.tolist() for c in counts), strict=True):
        answers.append(_script_answer(letters, kana, han, hangul))
    return answers


def _counts(batch: TextBatch, mask: NDArray[np.bool_]) -> Counts:
    return batch.counts(np.flatnonzero(mask))


def _script_answer(letters: int, kana: int, han: int, hangul: int) -> tuple[str, float] | None:
    if not letters:
        return UNDETERMINED, 1.0
    signs = max(kana + han, hangul)
    share = LETTERS_A_SIGN * signs / (LETTERS_A_SIGN * signs + letters - signs)
    if share < 0.5:
        return None
    if hangul > kana + han:
        return "ko", round(share, 3)
    return "ja" if kana >= MIN_KANA * (kana + han) else "zh", round(share, 3)


@dataclass(frozen=True, slots=True)
class _NaiveBayes:
    """The library's model as arrays."""

    labels: NDArray[np.str_]
    """(labels)"""
    next_states: NDArray[np.int32]
    """(rows x 256), the state behind a row's state and a byte."""
    rows: NDArray[np.int32]
    """(states), 256 times the row of `next_states` that a state has."""
    features: NDArray[np.int32]
    """(states), the n-gram that ends in a state, or -1."""
    weights: NDArray[np.float16]
    """(n-grams, labels), logarithms of probabilities."""
    bias: NDArray[np.float32]
    """(labels)"""

    @staticmethod
    @lru_cache(maxsize=1)
    def of_library() -> _NaiveBayes:
        """Load the model that comes with py3langid, unpacked once for all (68 MB).

        From then on its arrays lie in the user's cache, and all processes share them.
        """
        library: Any = require("py3langid.langid", "data")
        version = f"py3langid-{metadata.version('py3langid')}-{_FORMAT}"
        with contextlib.suppress(OSError):
            if mapped := _NaiveBayes._mapped(cache_folder() / version):
                return mapped
        model = library.LanguageIdentifier.from_model_file(library.MODEL_FILE)
        unpacked = _NaiveBayes(
            labels=np.asarray(model.nb_classes),
            next_states=np.asarray(model.tk_nextmove).astype(np.int32),
            rows=np.asarray(model.tk_row, np.int32) * np.int32(256),
            features=np.asarray(model.tk_output, np.int32),
            weights=np.asarray(model.nb_ptc, np.float16),
            bias=np.asarray(model.nb_pc, np.float32),
        )
        with contextlib.suppress(OSError):
            unpacked._save(cache_folder() / version)
        return unpacked

    @staticmethod
    def _mapped(folder: Path) -> _NaiveBayes | None:
        """Return what `_save` wrote; None where that is not there or damaged."""
        sums = read_json(folder / _SUMS)
        if sums.keys() != {field.name for field in dataclasses.fields(_NaiveBayes)}:
            return None
        arrays = {}
        for name, expected in sums.items():
            path = folder / f"{name}.npy"
            if zlib.crc32(path.read_bytes()) != expected:
                return None
            arrays[name] = np.load(path, mmap_mode="r")
        return _NaiveBayes(**arrays)

    def _save(self, folder: Path) -> None:
        """Write all arrays to a folder that appears whole, in the place of a damaged one."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as place:
            new, old = Path(place) / "new", Path(place) / "old"
            sums = {}
            for field in dataclasses.fields(self):
                content = io.BytesIO()
                np.save(content, getattr(self, field.name))
                write_atomic(new / f"{field.name}.npy", content.getvalue())
                sums[field.name] = zlib.crc32(content.getvalue())
            write_json(new / _SUMS, sums)
            with contextlib.suppress(FileNotFoundError):
                folder.rename(old)
            new.rename(folder)

    def languages(self, samples: Sequence[str]) -> list[tuple[str, float]]:
        """Return the most probable label of each text and its probability."""
        texts = [_as_bytes(text) for text in samples]
        scores = np.tile(self.bias, (len(texts), 1))
        for document, ngrams, counts in self._ngrams(texts):
            scores[document] += np.log1p(counts) @ self.weights.take(ngrams, axis=0).astype(
                np.float32
            )
        # n-grams overlap, so the sum is overconfident; the root of the length evens that out.
        scores /= np.sqrt([[max(len(text), 1)] for text in texts])
        probabilities = np.exp(scores - scores.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        labels = self.labels.tolist()
        for i, label in enumerate(labels):
            first = labels.index(label)
            if first < i:  # a language in two scripts
                probabilities[:, first] += probabilities[:, i]
                probabilities[:, i] = 0
        best = probabilities.argmax(axis=1).tolist()
        return [
            (UNDETERMINED if labels[i] == "zxx" else labels[i], round(float(row[i]), 3))
            for i, row in zip(best, probabilities, strict=True)
        ]

    def _ngrams(
        self, texts: Sequence[bytes]
    ) -> Iterator[tuple[int, NDArray[np.int32], NDArray[np.float32]]]:
        """Yield (document, its n-grams, how often each occurs) where there are any."""
        found = self._walk(texts)
        # A document and an n-gram in one number, so that one sort brings the same together.
        bits = len(self.weights).bit_length()
        keys = found + (np.arange(len(texts), dtype=np.int32) << np.int32(bits))
        keys = np.sort(keys[found >= 0])
        firsts = np.flatnonzero(np.diff(keys, prepend=np.int32(-1)))
        counts = np.diff(firsts, append=len(keys)).astype(np.float32)
        keys = keys[firsts]
        ngrams = keys & np.int32((1 << bits) - 1)
        borders = np.searchsorted(keys >> np.int32(bits), np.arange(len(texts) + 1)).tolist()
        for document, (start, end) in enumerate(itertools.pairwise(borders)):
            if start < end:
                yield document, ngrams[start:end], counts[start:end]

    def _walk(self, texts: Sequence[bytes]) -> NDArray[np.int32]:
        """Return (bytes of the longest, documents): the n-gram that ends at each byte, or -1."""
        lengths = np.array([len(text) for text in texts])
        longest_first = np.argsort(-lengths, kind="stable")
        letters = np.zeros((lengths.max(), len(texts)), np.uint8)
        for column, document in enumerate(longest_first.tolist()):
            text = texts[document]
            letters[: len(text), column] = np.frombuffer(text, np.uint8)
        found = np.full(letters.shape, -1, np.int32)
        states = np.zeros(len(texts), np.int32)
        num_left = np.searchsorted(-lengths[longest_first], -np.arange(len(letters)))
        for at, left in enumerate(num_left.tolist()):
            states = self.next_states[self.rows[states[:left]] + letters[at, :left]]
            found[at, :left] = self.features[states]
        unsorted = np.empty_like(found)
        unsorted[:, longest_first] = found
        return unsorted


def _as_bytes(text: str) -> bytes:
    """Return what the model was trained on: NFC in UTF-8, capitals alone as small letters."""
    if text.isupper():
        text = text.lower()
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return text.encode("utf-8", "surrogatepass")
