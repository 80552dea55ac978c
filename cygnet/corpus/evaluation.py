"""Evaluation sets: what a model will be measured on must not be learnt.

A document that holds a run of `RUN_WORDS` words of an item is contaminated, as in Brown et al. 2020
(arXiv:2005.14165, appendix C). Shorter items are recognised by `SHORT_WORDS` words.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cygnet.corpus.clean.words import Hashes, Ints, TextBatch
from cygnet.corpus.cleaning import Cleaner
from cygnet.corpus.document import Document
from cygnet.corpus.read.find import InputFile, find_files
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.read.readers import read_file
from cygnet.corpus.settings import DataConfig
from cygnet.errors import UserError
from cygnet.files import read_json, write_json
from cygnet.progress import say, track

RUN_WORDS = 13
SHORT_WORDS = 8
TEXT_FIELDS = ("question", "query", "problem", "prompt", "premise", "sentence", "input")
PASSAGE_CHARS = 300
NAMES, HASHES = "evaluation.json", "evaluation.npz"


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """Runs of words of all items."""

    items: Sequence[str]
    """Where each item was read."""
    hashes: dict[int, Hashes]
    """By the length of a run: hashes, sorted."""
    owners: dict[int, Ints]
    """The number of the item of each."""

    def found_in(self, batch: TextBatch) -> tuple[NDArray[np.float64], list[str], list[str]]:
        """Return of each document how many of its runs stand in items.

        And the source of one of the items, and the first run that stands in it.
        """
        counts = np.zeros(len(batch))
        by, passages = [""] * len(batch), [""] * len(batch)
        for length, known in self.hashes.items():
            hashes, offsets = batch.ngrams(length)
            if not len(known) or not len(hashes):
                continue
            at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
            places = np.flatnonzero(known[at] == hashes)
            document = np.searchsorted(offsets, places, side="right") - 1
            counts += np.bincount(document, minlength=len(batch))
            for number, place in zip(document.tolist(), places.tolist(), strict=True):
                if not by[number]:
                    by[number] = self.items[self.owners[length][at[place]]]
                    first = int(batch.word_offsets[number] + place - offsets[number])
                    passages[number] = _passage(batch, number, first, length)
        return counts, by, passages

    def save(self, folder: Path) -> None:
        """Write the set to a work folder."""
        write_json(folder / NAMES, {"items": list(self.items)})
        arrays: dict[str, Any] = {f"hashes_{n}": values for n, values in self.hashes.items()}
        arrays |= {f"owners_{n}": values for n, values in self.owners.items()}
        with open(folder / HASHES, "wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, folder: Path) -> EvaluationSet:
        """Read what `save` wrote."""
        arrays = np.load(folder / HASHES)
        lengths = (RUN_WORDS, SHORT_WORDS)
        return cls(
            read_json(folder / NAMES)["items"],
            {length: arrays[f"hashes_{length}"] for length in lengths},
            {length: arrays[f"owners_{length}"] for length in lengths},
        )


def _passage(batch: TextBatch, document: int, first: int, length: int) -> str:
    """Return a run of words as it is written."""
    starts, ends = batch.word_spans
    origin = int(batch.offsets[document])
    text = batch.texts[document][starts[first] - origin : ends[first + length - 1] - origin]
    return text[:PASSAGE_CHARS]


def read_evaluation(config: DataConfig, problems: Problems) -> EvaluationSet:
    """Read the evaluation sets of some settings; every text of every row is an item.

    Rows that cannot be used are counted in `problems`.

    Items are cleaned as documents are, or they would not be found in them.

    Raises:
        UserError: a path is wrong, or no item is long enough to be recognised.
    """
    items: list[str] = []
    texts: list[str] = []
    cleaner = Cleaner(config)
    for source, text in track(_texts(config.evaluation, problems), "evaluation sets"):
        items.append(source)
        texts.append(cleaner.text(text))
    batch = TextBatch(texts or [""])
    num_words = np.diff(batch.word_offsets)
    hashes: dict[int, Hashes] = {}
    owners: dict[int, Ints] = {}
    for length, chosen in (
        (RUN_WORDS, num_words >= RUN_WORDS),
        (SHORT_WORDS, (num_words >= SHORT_WORDS) & (num_words < RUN_WORDS)),
    ):
        found, offsets = batch.ngrams(length)
        owner = np.repeat(np.arange(len(batch)), np.diff(offsets))
        found, owner = found[chosen[owner]], owner[chosen[owner]]
        hashes[length], first = np.unique(found, return_index=True)
        owners[length] = owner[first]
    num_short = int((num_words < SHORT_WORDS).sum())
    if num_short == len(batch):
        raise UserError(
            f"{', '.join(config.evaluation)}: no item of {SHORT_WORDS} words or more, so none can "
            "be recognised; give the file that holds the questions' text"
        )
    if num_short:
        say(
            f"data: {num_short:,} of {len(batch):,} evaluation items have fewer than "
            f"{SHORT_WORDS} words and cannot be recognised"
        )
    return EvaluationSet(items, hashes, owners)


def _texts(paths: Sequence[str], problems: Problems) -> Iterator[tuple[str, str]]:
    for file in find_files(paths, problems):
        for document in _rows(file, problems):
            for message in document.messages or ({"content": document.text},):
                if isinstance(content := message.get("content"), str):
                    yield document.source, content
            for name, value in document.fields.items():
                for text in value if isinstance(value, list) else [value]:
                    if isinstance(text, str) and name != "title":
                        yield document.source, text


def _rows(file: InputFile, problems: Problems) -> list[Document]:
    """Return a file's rows, whose text may be in a field that only such sets have."""
    found: list[Document] = []
    own = Problems()
    for name in ("", *TEXT_FIELDS):
        with contextlib.suppress(UserError):  # no row has that field
            found += read_file(file, own if not found else Problems(), text_field=name)
    if not found:
        raise UserError(
            f"{file.place}: no row with a text, a conversation, or one of the fields "
            f"{', '.join(TEXT_FIELDS)}; name the field that holds the text so"
        )
    read = {file.place + document.source.removeprefix(file.source) for document in found}
    for kind, problem in own.kinds.items():
        # A question is no text to read, and no chat where its answer is a number; its field is.
        is_read_otherwise = kind in ("no text", "bad conversation")
        for where, why in problem.places:
            if not (is_read_otherwise and where in read):
                problems.add(kind, where, why)
    return found
