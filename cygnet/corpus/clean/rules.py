"""Named rules that drop a document: each a threshold on one number of `measure.STATISTICS`.

The first rule that a document breaks is the reason it goes. Since the numbers are kept, another
threshold is tried without reading a text again (`cygnet data --what-if`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cygnet.corpus.clean.measure import MOSTLY_HAN
from cygnet.errors import UserError, nearest

RuleSet = Literal["basic", "web", "code", "none"]
RULE_SETS: tuple[RuleSet, ...] = ("basic", "web", "code", "none")
SET_OF_KIND: dict[str, RuleSet] = {"warc": "web", "code": "code"}
"""Which rules a kind of file is held to where the person names none; all others: `basic`."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Drops a document whose number lies below or above a threshold; one equal to it stays."""

    name: str
    number: str
    """A key of `measure.STATISTICS`, or one that the pipeline adds (`ADDED`)."""
    side: Literal["below", "above"]
    threshold: float
    why: str
    sets: tuple[RuleSet, ...]
    script: Literal["any", "spaced", "han"] = "any"
    """`han`: only documents mostly of Han characters and kana; `spaced`: only others."""

    def breaks(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Say which of some values break the rule; a missing one (NaN) does not."""
        return values < self.threshold if self.side == "below" else values > self.threshold

    @property
    def told(self) -> str:
        """The rule in words, with its threshold."""
        sign = "<" if self.side == "below" else ">"
        return f"{self.why} ({self.number} {sign} {self.threshold:g})"


ADDED = {
    "wanted_language": "1 where the document is in a language that was asked for, else 0",
    "harmful": "share of words that stand in a list of slurs and explicit words",
    "quality": "the quality filter's probability that the document is good",
    "contaminated": "runs of words that stand in an evaluation set",
    "heldout_overlap": "share of sampled runs of words that stand in held-out documents",
    "private": "private data found: addresses, numbers, keys",
}
"""Numbers that the pipeline adds to `measure.STATISTICS`, each where it is asked for."""

_ALL: tuple[RuleSet, ...] = ("basic", "web", "code")
_EVER: tuple[RuleSet, ...] = RULE_SETS
"""What a person asked for by itself, and what keeps held-out text apart."""
_PROSE: tuple[RuleSet, ...] = ("basic", "web")
_WEB: tuple[RuleSet, ...] = ("web",)
_CODE: tuple[RuleSet, ...] = ("code",)


def _gopher_repeats() -> list[Rule]:
    rules = []
    for n, most in ((2, 0.20), (3, 0.18), (4, 0.16)):
        why = f"one run of {n} words makes up much of the text"
        rules.append(Rule(f"gopher_top_{n}", f"top_{n}", "above", most, why, _WEB))
    for n, most in zip(range(5, 11), (0.15, 0.14, 0.13, 0.12, 0.11, 0.10), strict=True):
        why = f"runs of {n} words that came before make up much of the text"
        rules.append(Rule(f"gopher_dup_{n}", f"dup_{n}", "above", most, why, _WEB))
    return rules


RULES: tuple[Rule, ...] = (
    Rule("too_short", "chars", "below", 20, "fewer characters than min_chars", _ALL),
    Rule("unreadable", "unreadable", "above", 0.01, "many characters are lost (U+FFFD)", _ALL),
    Rule("symbols", "letters", "below", 0.4, "few letters and digits", _PROSE),
    Rule("character_runs", "runs", "above", 0.2, "long runs of one character", _ALL),
    Rule("repeated_lines", "repeated_lines", "above", 0.3, "lines that came before", _PROSE),
    Rule("repeated_phrases", "repeated_phrases", "above", 0.3, "phrases that came before", _PROSE),
    Rule("other_language", "wanted_language", "below", 1, "not in a language asked for", _EVER),
    Rule("gopher_min_words", "words", "below", 50, "few words", _WEB, "spaced"),
    Rule("gopher_min_han", "words", "below", 75, "few characters", _WEB, "han"),
    Rule("gopher_max_words", "words", "above", 100_000, "very many words", _WEB),
    Rule("gopher_short_words", "mean_word_length", "below", 3, "short words", _WEB, "spaced"),
    Rule("gopher_long_words", "mean_word_length", "above", 10, "long words", _WEB, "spaced"),
    Rule("gopher_hashes", "hashes", "above", 0.1, "many # signs", _WEB),
    Rule("gopher_ellipses", "ellipses", "above", 0.1, "many ellipses", _WEB),
    Rule("gopher_bullets", "bullets", "above", 0.9, "nearly all lines are bullets", _WEB),
    Rule("gopher_ellipsis_lines", "ellipsis_lines", "above", 0.3, "lines end with ...", _WEB),
    Rule("gopher_alpha_words", "alpha_words", "below", 0.8, "words without a letter", _WEB,
         "spaced"),
    Rule("gopher_alpha_han", "alpha_words", "below", 0.7, "characters that are no letters", _WEB,
         "han"),
    Rule("gopher_stop_words", "stop_words", "below", 2, "hardly a stop word of its language", _WEB),
    Rule("gopher_dup_paragraphs", "dup_paragraphs", "above", 0.3, "paragraphs came before", _WEB),
    Rule("gopher_dup_paragraph_chars", "dup_paragraph_chars", "above", 0.2,
         "paragraphs that came before make up much of the text", _WEB),
    Rule("gopher_dup_lines", "dup_lines", "above", 0.3, "lines came before", _WEB),
    Rule("gopher_dup_line_chars", "dup_line_chars", "above", 0.2,
         "lines that came before make up much of the text", _WEB),
    *_gopher_repeats(),
    Rule("c4_lorem_ipsum", "lorem_ipsum", "above", 0, "placeholder text", _WEB),
    Rule("c4_curly_bracket", "curly_brackets", "above", 0, "has a {, so likely code", _WEB),
    Rule("c4_sentences", "sentences", "below", 5, "fewer than five sentences", _WEB),
    Rule("fineweb_punctuated_lines", "punctuated_lines", "below", 0.12,
         "few lines end as sentences do", _WEB),
    Rule("fineweb_short_lines", "short_lines", "above", 0.67, "mostly short lines", _WEB, "spaced"),
    Rule("fineweb_dup_chars", "dup_chars", "above", 0.1, "lines that came before", _WEB),
    Rule("fineweb_newlines", "newlines", "above", 0.3, "many line ends for its words", _WEB,
         "spaced"),
    Rule("code_mean_line", "mean_line_length", "above", 100, "long lines, so likely data", _CODE),
    Rule("code_max_line", "max_line_length", "above", 1000, "a very long line: data or minified",
         _CODE),
    Rule("code_letters", "letters", "below", 0.25, "few letters and digits, so likely data", _CODE),
    Rule("harmful", "harmful", "above", 0.02, "slurs and explicit words", _ALL),
    Rule("low_quality", "quality", "below", 0.5, "the quality filter finds it poor", _EVER),
    Rule("private", "private", "above", 0, "holds private data", _EVER),
    Rule("contaminated", "contaminated", "above", 0, "holds text of an evaluation set", _EVER),
    Rule("heldout_overlap", "heldout_overlap", "above", 0.05, "holds held-out passages", _EVER),
)  # fmt: skip
"""In the order in which they are tried."""

BY_NAME = {rule.name: rule for rule in RULES}


def rules_with(changes: Sequence[str], min_chars: int | None = None) -> tuple[Rule, ...]:
    """Return all rules, some with other thresholds or left out.

    Args:
        changes: `NAME=NUMBER`, or `NAME=off`.
        min_chars: the threshold of `too_short`.

    Raises:
        UserError: there is no such rule, or no such number.
    """
    changed = dict(BY_NAME)
    if min_chars is not None:
        changed["too_short"] = replace(changed["too_short"], threshold=min_chars)
    for change in changes:
        name, _, value = change.partition("=")
        if name not in BY_NAME:
            raise UserError(
                f"{change}: no rule {name!r}{nearest(name, list(BY_NAME))}; "
                "`cygnet data --rules` lists them"
            )
        if value == "off":
            del changed[name]
            continue
        try:
            threshold = float(value)
        except ValueError:
            threshold = math.nan
        if not 0 <= threshold < math.inf:
            raise UserError(
                f"{change}: {value!r} is no threshold; give a number from 0 on, such as "
                f"{name}={BY_NAME[name].threshold:g}, or {name}=off"
            )
        changed[name] = replace(BY_NAME[name], threshold=threshold)
    return tuple(changed.values())


def broken(
    rules: Sequence[Rule], numbers: Mapping[str, NDArray[Any]], sets: NDArray[Any]
) -> dict[str, NDArray[np.bool_]]:
    """Return for each rule which documents break it, each rule by itself.

    Args:
        rules: as `rules_with` gives them.
        numbers: (documents) each; a rule whose number is not there breaks nowhere.
        sets: (documents) of str, the `RuleSet` that each is held to.
    """
    is_han = numbers["han"] > MOSTLY_HAN
    found = {}
    for rule in rules:
        if rule.number not in numbers:
            continue
        applies = np.isin(sets, rule.sets)
        if rule.script != "any":
            applies &= is_han if rule.script == "han" else ~is_han
        found[rule.name] = applies & rule.breaks(numbers[rule.number])
    return found


def first_broken(found: Mapping[str, NDArray[np.bool_]], count: int) -> NDArray[Any]:
    """Return the name of the first rule that each document breaks, or an empty string."""
    reasons = np.full(count, "", dtype=object)
    for name in reversed(list(found)):
        reasons[found[name]] = name
    return reasons


def rule_table(sets: Collection[str] = RULE_SETS) -> list[tuple[str, str, str]]:
    """Return (name, what it drops, sets) of the rules of some sets, for people."""
    return [
        (rule.name, rule.told, ", ".join(rule.sets)) for rule in RULES if set(rule.sets) & set(sets)
    ]
