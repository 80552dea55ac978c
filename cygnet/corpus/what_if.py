"""What other thresholds would do, from the numbers of a run, in seconds and without a text.

Which rules a document breaks is exact, for a rule is a threshold on a number that was kept. What is
not known without the texts is who is a duplicate of a document that comes back: so much is said
where it is told.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cygnet.corpus import dedup, facts
from cygnet.corpus.clean.rules import BY_NAME, Rule, first_broken
from cygnet.corpus.decide import CONVERSATION_THRESHOLD
from cygnet.corpus.report import shortened
from cygnet.corpus.settings import DataConfig
from cygnet.corpus.split import heldout_limit
from cygnet.corpus.table import KEPT, LAST_RULE, DocumentTable
from cygnet.errors import UserError

NEAR = "near_duplicate_threshold"
FIRST_RULES = frozenset(BY_NAME) - {LAST_RULE}
"""Those that are tried before the search for duplicates."""
MAX_SAMPLES, MAX_ROWS, SAMPLE_CHARS = 3, 30, 160


@dataclass(frozen=True)
class WhatIf:
    """What becomes of each document under other thresholds."""

    table: DocumentTable
    config: DataConfig
    """The settings with the changes in them."""
    after: NDArray[Any]
    """(documents), as `DocumentTable.outcome`."""
    is_certain: NDArray[np.bool_]
    """(documents): a full run would say the same, but that one which stays here may be found to be
    a duplicate of one that comes back."""

    @property
    def comes_back(self) -> NDArray[np.int64]:
        """The numbers of documents that go now and would stay."""
        return np.flatnonzero(~self.table.is_kept & _is_kept(self.after))

    @property
    def goes(self) -> NDArray[np.int64]:
        """The numbers of documents that stay now and would go."""
        return np.flatnonzero(self.table.is_kept & ~_is_kept(self.after))

    def lines(self, data: Sequence[str], out: Path) -> Iterator[str]:
        """Yield what is told to the person.

        Args:
            data: the paths of the run, if they are known.
            out: its folder.
        """
        yield from self._by_outcome()
        yield ""
        yield from self._by_domain()
        yield from self._samples("would come back", self.comes_back)
        yield from self._samples("would go", self.goes)
        yield ""
        yield from self._doubts()
        yield "To make it so:"
        yield f"  {command(self.config, data, out)}"

    def _by_outcome(self) -> Iterator[str]:
        order = ("train", "heldout", *facts.REASON_NAMES)
        before, after = self.table.outcome, self.after
        rows = []
        for name in order:
            sides = [words == name for words in (before, after)]
            if name in KEPT or (sides[0] != sides[1]).any():
                rows.append([name, *self._counts(*sides)])
        yield from aligned(["outcome", *_HEADINGS], rows)

    def _by_domain(self) -> Iterator[str]:
        domain, kept = self.table.category("domain"), (self.table.is_kept, _is_kept(self.after))
        changed = domain.counts(kept[0] != kept[1])
        if not changed.any():
            yield "No document would come back or go."
            return
        weights = np.ones(len(self.table)), self.table.bytes
        sums = [domain.counts(weight, side) for weight in weights for side in kept]
        order = [i for i in np.argsort(-changed, kind="stable").tolist() if changed[i]]
        rows = [
            [shortened(domain.names[i], 40), *_cells([int(column[i]) for column in sums])]
            for i in order[:MAX_ROWS]
        ]
        rows.append(["all", *self._counts(*kept)])
        yield from aligned(["kept, by domain", *_HEADINGS], rows)
        if len(order) > MAX_ROWS:
            yield f"(the {MAX_ROWS} domains that change most, of {len(order):,})"

    def _counts(self, before: NDArray[np.bool_], after: NDArray[np.bool_]) -> list[str]:
        num_bytes = self.table.bytes
        documents = [int(before.sum()), int(after.sum())]
        return _cells([*documents, int(num_bytes[before].sum()), int(num_bytes[after].sum())])

    def _samples(self, title: str, numbers: NDArray[np.int64]) -> Iterator[str]:
        if not len(numbers):
            return
        yield ""
        yield f"{len(numbers):,} {title}, such as:"
        steps = np.linspace(0, len(numbers) - 1, min(MAX_SAMPLES, len(numbers)))
        for number in numbers[steps.astype(np.int64)].tolist():
            yield f"- {self.table.word('source', number)}: {self._told(number)}"
            text = self.table.excerpt(number)
            yield f"    {'(its text is no longer at hand)' if text is None else shortened(text)}"

    def _told(self, number: int) -> str:
        before, after = str(self.table.outcome[number]), str(self.after[number])
        named = before if before in BY_NAME else after
        if named not in BY_NAME:
            return f"{before}, then {after}"
        rule = BY_NAME[named]
        value = self.table.numbers[rule.number][number]
        return f"{before}, then {after} ({rule.number} is {value:.4g})"

    def _doubts(self) -> Iterator[str]:
        yield "Which rules a document breaks is exact."
        sides = [words == "heldout" for words in (self.table.outcome, self.after)]
        if (sides[0] != sides[1]).any():
            yield (
                "Approximate: training text that repeats held-out text is not looked for again "
                f"(documents that enter or leave that side: {int((sides[0] != sides[1]).sum()):,})."
            )
        doubtful = int((~self.is_certain).sum())
        if doubtful:
            yield (
                "Approximate: documents that come back, or lose the one that they repeat "
                f"({doubtful:,}), are not compared with others, but for equal texts; of several "
                "copies of one that goes, one is taken to come back."
            )
        if self.config.near_duplicate_threshold != self.table.config.near_duplicate_threshold:
            yield (
                "Under a higher threshold at most so many come back: less like the document that "
                "each was found like, it may be more like another."
            )


def _cells(counts: Sequence[int]) -> list[str]:
    """Return cells of documents before and after, and of bytes."""
    pairs = (counts[:2], counts[2:])
    return [cell for old, new in pairs for cell in (f"{old:,}", f"{new:,}", f"{new - old:+,}")]


_HEADINGS = ("documents", "then", "change", "bytes", "then", "change")


def what_if(table: DocumentTable, changes: Sequence[str]) -> WhatIf:
    """Say what some changed thresholds would do.

    Args:
        table: of a run.
        changes: `NAME=NUMBER` or `NAME=off` of a rule, or `near_duplicate_threshold=NUMBER`.

    Raises:
        UserError: there is no such rule; or what it would do cannot be known from the numbers.
    """
    config = _changed(table.config, changes)
    rules = config.rules_in_force()
    reason = first_broken(
        table.broken(tuple(rule for rule in rules if rule.name in FIRST_RULES)), len(table)
    )
    _check(table, rules, changes)
    was_rule = np.isin(table.outcome.astype(str), list(FIRST_RULES))
    after = table.outcome.copy()
    after[reason != ""] = reason[reason != ""]
    back = was_rule & (reason == "")
    is_drawn = table.column("copies") > 0
    after[back] = np.where(is_drawn[back], "train", "not_drawn")
    left = _left_alone(table, config, reason)
    after[left & _first_of_cluster(table, left)] = "train"
    raised = _unlike(table, config) & (reason == "")
    after[raised] = "train"
    back &= is_drawn
    copies = _equal_texts(table, back, _is_kept(after) & ~back)
    after[copies] = "exact_duplicate"
    _hold_out(table, config, after, reason == "")
    _try_last_rule(table, rules, after, ~back & ~left & ~raised)
    return WhatIf(table, config, after, ~(back | left | raised))


_SETTINGS = frozenset(field.name for field in dataclasses.fields(DataConfig))


def _changed(config: DataConfig, changes: Sequence[str]) -> DataConfig:
    thresholds = {change.partition("=")[0]: change for change in config.thresholds}
    for change in changes:
        name, equals, value = change.partition("=")
        if name == NEAR:
            config = _with_near_threshold(config, value)
            continue
        if not equals or (name in _SETTINGS and name not in BY_NAME):
            raise UserError(
                f"--what-if {change}: it takes rules, as NAME=NUMBER or NAME=off; "
                "`cygnet data --rules` lists them, and any other setting needs a run"
            )
        thresholds[name] = change
    return dataclasses.replace(config, thresholds=tuple(thresholds.values()))


def _with_near_threshold(config: DataConfig, value: str) -> DataConfig:
    try:
        changed = dataclasses.replace(config, **{NEAR: float(value)})  # type: ignore[arg-type]
    except ValueError:
        raise UserError(f"--what-if {NEAR}={value}: give a number from 0.3 to 1") from None
    if changed.near_duplicate_threshold < config.near_duplicate_threshold:
        raise UserError(
            f"--what-if {NEAR}={value}: documents less alike than "
            f"{config.near_duplicate_threshold:g}, the threshold of the run, were not compared; "
            f"run with --corpus.{NEAR.replace('_', '-')} {value}: it reads no file again"
        )
    return changed


def _check(table: DocumentTable, rules: Sequence[Rule], changes: Sequence[str]) -> None:
    """Refuse a rule that is not in force, and one whose number was not taken."""
    in_force = {rule.name for rule in rules}
    for change in changes:
        name, _, value = change.partition("=")
        rule = BY_NAME.get(name)
        if rule is not None and name not in in_force and value != "off":
            raise UserError(
                f"--what-if {change}: this rule is in force with --corpus.privacy drop alone; "
                "run with that"
            )
        if rule is not None and rule.number not in table.numbers:
            raise UserError(
                f"--what-if {change}: the run did not take the number {rule.number!r}; set what "
                "it needs (--corpus.languages, --corpus.quality-filter, --corpus.evaluation) and "
                "run again"
            )


def _left_alone(table: DocumentTable, config: DataConfig, reason: NDArray[Any]) -> Any:
    """Say which duplicates break no rule, while the document that they repeat now does."""
    is_copy = np.isin(table.outcome.astype(str), list(dedup.REASONS)) & (table.duplicate_of >= 0)
    goes = reason != ""
    return is_copy & ~goes & goes[np.maximum(table.duplicate_of, 0)]


def _first_of_cluster(table: DocumentTable, among: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Say which of some duplicates would be taken first among those of the same document."""
    numbers = np.flatnonzero(among)
    ids = np.array(table.table.column("id").take(numbers).to_pylist(), "S16")
    order = numbers[np.lexsort((ids, table.column("position")[numbers]))]
    _, first = np.unique(table.duplicate_of[order], return_index=True)
    found = np.zeros(len(table), bool)
    found[order[first]] = True
    return found


def _unlike(table: DocumentTable, config: DataConfig) -> NDArray[np.bool_]:
    """Say which duplicates are less like what they repeat than a raised threshold asks for."""
    threshold = config.near_duplicate_threshold
    if threshold == table.config.near_duplicate_threshold:
        return np.zeros(len(table), bool)
    is_talk = table.column("is_conversation")
    needed = [
        np.where(is_talk, max(value, CONVERSATION_THRESHOLD), value).astype(np.float32)
        for value in (table.config.near_duplicate_threshold, threshold)
    ]
    is_copy = np.isin(table.outcome.astype(str), list(dedup.REASONS))
    # One below the old threshold was found by its edits, and still would be.
    return is_copy & (table.similarity >= needed[0]) & (table.similarity < needed[1])


def _equal_texts(
    table: DocumentTable, back: NDArray[np.bool_], kept: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return those of the documents that come back that have the text of one that stays."""
    numbers = np.flatnonzero(back)
    if not len(numbers):
        return numbers
    ids = np.array(table.table.column("id").to_pylist(), "S16")
    _, first = np.unique(ids[numbers], return_index=True)
    is_first = np.zeros(len(numbers), bool)
    is_first[first] = True
    return numbers[~is_first | np.isin(ids[numbers], ids[kept])]


def _hold_out(
    table: DocumentTable, config: DataConfig, after: NDArray[Any], passes: NDArray[np.bool_]
) -> None:
    """Part what stays into the two sides, as a run does."""
    positions = table.column("position")
    drawn = positions[passes & (table.column("copies") > 0)].tolist()
    limit = heldout_limit(drawn, config.heldout_share) if drawn else 0.0
    after[_is_kept(after)] = "train"
    after[(after == "train") & (positions < limit)] = "heldout"


def _try_last_rule(
    table: DocumentTable, rules: Sequence[Rule], after: NDArray[Any], known: NDArray[np.bool_]
) -> None:
    """Hold the last rule against the documents whose number for it is known."""
    rule = next((rule for rule in rules if rule.name == LAST_RULE), None)
    tried = known & np.isin(after.astype(str), ("train", LAST_RULE))
    after[tried] = "train"
    if rule is not None and rule.number in table.numbers:
        after[tried & rule.breaks(table.numbers[rule.number])] = LAST_RULE


def _is_kept(outcome: NDArray[Any]) -> NDArray[np.bool_]:
    return (outcome == "train") | (outcome == "heldout")


def command(config: DataConfig, data: Sequence[str], out: Path) -> str:
    """Return the command that makes a data folder with some settings.

    Args:
        config: the settings.
        data: its paths; none for those that the run had, which are not known.
        out: the folder.
    """
    words = ["cygnet", "data", *(["--data", *data] if data else []), "--out", str(out)]
    usual = DataConfig()
    for field in dataclasses.fields(DataConfig):
        value = getattr(config, field.name)
        if field.name == "paths" or value == getattr(usual, field.name):
            continue
        flag = f"--corpus.{field.name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--corpus.", "--corpus.no-"))
        elif isinstance(value, tuple):
            words += [flag, *map(str, value)]
        else:
            words += [flag, f"{value}"]
    return shlex.join(words)


def aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table for a terminal: words to the left, all else to the right."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for first, *cells in (headings, *rows):
        line = [first.ljust(widths[0])]
        line += [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        yield "  ".join(line).rstrip()
