"""A row for each document that was read: where it is from, its numbers, what became of it.

The report and `--what-if` work on it, whether it was just decided on or is read back from the
`numbers.parquet` of a data folder. Texts are read singly, for the few that are shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cygnet.corpus.arrow import to_arrow, to_numpy
from cygnet.corpus.clean.measure import MOSTLY_HAN
from cygnet.corpus.clean.privacy import mask
from cygnet.corpus.clean.rules import RULE_SETS, Rule, broken
from cygnet.corpus.decide import Decision, Parts
from cygnet.corpus.manifest import NUMBERS
from cygnet.corpus.parts import rule_set
from cygnet.corpus.settings import DataConfig
from cygnet.errors import UserError
from cygnet.files import read_json

KEPT = ("train", "heldout")
LAST_RULE = "heldout_overlap"
"""The one rule that is tried behind the search for duplicates, on what is left."""


@dataclass(frozen=True, slots=True)
class Category:
    """A column of few different words."""

    names: list[str]
    """In the order in which they are first seen."""
    codes: NDArray[np.int64]
    """(documents) of positions in `names`."""

    def counts(self, weights: NDArray[Any], where: NDArray[np.bool_] | None = None) -> Any:
        """Return the sum of some weights for each name."""
        codes = self.codes if where is None else self.codes[where]
        weights = weights if where is None else weights[where]
        return np.bincount(codes, weights, minlength=len(self.names)).astype(np.int64)


@dataclass(frozen=True, eq=False, repr=False)
class DocumentTable:
    """All documents of a data folder, in arrays as long as there are documents."""

    table: Any
    """The columns of `numbers.parquet`, as a pyarrow table."""
    config: DataConfig
    outcome: NDArray[Any]
    """`train`, `heldout`, or why it goes."""
    duplicate_of: NDArray[np.int64]
    """The number of the kept document that one is a duplicate of, or -1."""
    similarity: NDArray[np.float32]
    numbers: dict[str, NDArray[Any]]
    """What rules are held against."""
    text_of: Callable[[int], str | None]
    """Gives a document's text by its number, or None where it is not at hand; for `excerpt`."""

    @classmethod
    def of(cls, parts: Parts, decision: Decision, config: DataConfig) -> DocumentTable:
        """Return the table of what was just decided."""
        count = len(parts)
        duplicate_of, similarity = np.full(count, -1, np.int64), np.full(count, np.nan, np.float32)
        if decision.duplicates:
            at = np.fromiter(decision.duplicates, np.int64)
            found = decision.duplicates.values()
            duplicate_of[at] = [duplicate.of for duplicate in found]
            similarity[at] = [duplicate.similarity for duplicate in found]
        return cls(
            parts.table, config, decision.outcome.astype(object), duplicate_of, similarity,
            decision.numbers, lambda number: parts.document(number).text,
        )  # fmt: skip

    @classmethod
    def load(cls, folder: Path, work: Path | None = None) -> DocumentTable:
        """Read the table of a data folder.

        Args:
            folder: the data folder.
            work: its work folder, which texts are read from where it is still there.

        Raises:
            UserError: the folder was not made by `cygnet data`, or by another version of it.
        """
        import pyarrow
        from pyarrow import parquet

        manifest = read_json(folder / "manifest.json")
        if manifest.get("made_by") != "cygnet data" or not (folder / NUMBERS).is_file():
            raise UserError(
                f"{folder}: no data folder with a {NUMBERS}; make one with `cygnet data --out "
                f"{folder}` first"
            )
        try:
            table = parquet.read_table(folder / NUMBERS)
            config = _config_of(manifest["settings"])
            outcome = to_numpy(table.column("outcome"))
            duplicate_of = to_numpy(table.column("duplicate_of"))
            similarity = to_numpy(table.column("similarity"))
        except (pyarrow.ArrowException, OSError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder}: not as this version of Cygnet writes it ({error}); run `cygnet data "
                f"--out {folder}` again"
            ) from error
        numbers = {
            field.name: to_numpy(table.column(field.name))
            for field in table.schema
            if field.type == pyarrow.float32() and field.name != "similarity"
        }
        text_of = _texts_in(work, table.column("id"))
        return cls(table, config, outcome, duplicate_of, similarity, numbers, text_of)

    def __len__(self) -> int:
        return len(self.outcome)

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """The rules, with the thresholds of the run."""
        return self.config.rules_in_force()

    @cached_property
    def bytes(self) -> NDArray[np.int64]:
        """Each document's length in bytes of UTF-8."""
        return self.column("bytes")

    @cached_property
    def is_kept(self) -> NDArray[np.bool_]:
        """Which documents are trained on or held out."""
        found = [name in KEPT for name in self.outcomes.names]
        return np.array(found, bool)[self.outcomes.codes]

    @cached_property
    def outcomes(self) -> Category:
        """`outcome` as a category."""
        return _category(to_arrow(self.outcome))

    def excerpt(self, number: int) -> str | None:
        """Return a document's text as it may be shown: private data that it went for is masked."""
        text = self.text_of(number)
        is_private = self.config.privacy == "drop" and self.numbers["private"][number] > 0
        return mask(text, self.config.private)[0] if text is not None and is_private else text

    def column(self, name: str) -> NDArray[Any]:
        """Return a column of numbers."""
        return to_numpy(self.table.column(name))

    def has(self, name: str) -> bool:
        """Say whether there is such a column."""
        return name in self.table.column_names

    def word(self, name: str, number: int) -> str:
        """Return a document's word in a column."""
        return str(self.table.column(name)[number].as_py())

    def category(self, name: str) -> Category:
        """Return a column of words."""
        return _category(self.table.column(name))

    @cached_property
    def sets(self) -> Category:
        """The set of rules that each document is held to, which follows from its kind of file."""
        kinds, wanted = self.category("kind"), self.category("rules")
        sets = np.array(
            [
                [RULE_SETS.index(rule_set(kind, name, self.config)) for name in wanted.names]
                for kind in kinds.names
            ],
            np.int64,
        ).reshape(len(kinds.names), len(wanted.names))
        return Category(list(RULE_SETS), sets[kinds.codes, wanted.codes])

    def held_to(self, rule: Rule) -> NDArray[np.bool_]:
        """Say which documents a rule is held against."""
        if rule.number not in self.numbers:
            return np.zeros(len(self), bool)
        held = np.array([name in rule.sets for name in self.sets.names])[self.sets.codes]
        if rule.script == "any":
            return held
        is_han = self.numbers["han"] > MOSTLY_HAN
        return held & (is_han if rule.script == "han" else ~is_han)

    def broken(self, rules: tuple[Rule, ...]) -> dict[str, NDArray[np.bool_]]:
        """Return for each rule which documents break it, as `rules.broken`."""
        return broken(rules, self.numbers, np.array(self.sets.names)[self.sets.codes])


def _category(column: Any) -> Category:
    import pyarrow

    if isinstance(column, pyarrow.ChunkedArray):  # chunk by chunk each dictionary holds all before
        column = column.combine_chunks()
    encoded = column.dictionary_encode()
    names = [str(name) for name in encoded.dictionary.to_pylist()]
    return Category(names, to_numpy(encoded.indices).astype(np.int64))


def _config_of(settings: dict[str, Any]) -> DataConfig:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    return DataConfig(**values)


def _texts_in(work: Path | None, ids: Any) -> Callable[[int], str | None]:
    """Return what gives texts out of a work folder, if it still holds those documents."""
    if work is None or not (work / "written.json").is_file():
        return lambda number: None
    try:
        keys = json.loads((work / "written.json").read_text(encoding="utf-8"))
        parts = Parts(work, keys)
    except (OSError, ValueError):
        return lambda number: None
    if len(parts) != len(ids):
        return lambda number: None

    def text_of(number: int) -> str | None:
        try:
            document = parts.document(number)
        except (OSError, ValueError):
            return None
        return document.text if document.id == ids[number].as_py() else None

    return text_of
