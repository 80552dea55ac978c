"""Does a poem keep its form: lines, characters in a line, rhyme."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Any

from cygnet.errors import require
from cygnet.han import POEM_FORMS
from cygnet.stages.reinforcement.rewards.fields import Row, needed
from cygnet.text.forms import is_poem_of_form, poem_lines

SHARE_SHAPE, SHARE_KEPT = 0.3, 0.7
"""Of the form's reward: partial credit for lines and characters, and the whole form kept."""

_RHYMES = (
    ("a", "ia", "ua"), ("o", "e", "uo", "ie", "ve", "ue"), ("ai", "uai"), ("ei", "uei", "ui"),
    ("ao", "iao"), ("ou", "iou", "iu"), ("an", "ian", "uan", "van"),
    ("en", "in", "uen", "un", "vn"), ("ang", "iang", "uang"),
    ("eng", "ing", "ueng", "ong", "iong"), ("i", "er", "v"), ("-i",), ("u",),
)  # fmt: skip
_RHYME_OF = {final: number for number, finals in enumerate(_RHYMES) for final in finals}
_APICAL = {"z", "c", "s", "zh", "ch", "sh", "r"}
"""After these initials pinyin's `i` is another vowel."""


def poem_form(answer: str, row: Row) -> float:
    """Return from 0 to 1 how far the answer is a poem of the form `row["form"]`.

    0.3 for lines and characters in part, nothing where other words stand between, and 0.7 for a
    form that is kept whole; times the share of lines that differ from those before.

    Raises:
        KeyError: the row names no form, or one that is not in `POEM_FORMS`.
    """
    form = _form(row, "poem_form")
    kept = is_poem_of_form(answer, form)
    return SHARE_SHAPE * _distinct_shape(answer, form) + SHARE_KEPT * kept * _distinct(answer)


def rhyme(answer: str, row: Row) -> float:
    """Return from 0 to 1 how many of the even lines rhyme, as far as `row["form"]` is there.

    `rhyme_rate` times what `poem_form` gives for the shape (its share taken as 1).

    Raises:
        KeyError: as `poem_form`.
    """
    return rhyme_rate(poem_lines(answer)) * _distinct_shape(answer, _form(row, "rhyme"))


def rhyme_rate(lines: list[str]) -> float:
    """Return how many of the even lines rhyme with each other, from 0 (no two) to 1 (all).

    Modern Mandarin's rhymes after 中华新韵, tones aside; a character rhymes with itself not.
    """
    ends = [line[-1] for line in lines[1::2]]
    if len(ends) < 2:
        return 0.0
    rhymes = Counter(rhyme_of(end) for end in set(ends))
    return (max(rhymes.values()) - 1) / (len(ends) - 1)


@lru_cache(maxsize=20_000)
def rhyme_of(character: str) -> str:
    """Return a name for the rhyme that a Han character has in its commonest reading."""
    pypinyin: Any = require("pypinyin", "rl")
    style = pypinyin.Style
    final = pypinyin.lazy_pinyin(character, style=style.FINALS, strict=True)[0]
    initial = pypinyin.lazy_pinyin(character, style=style.INITIALS, strict=True)[0]
    if final == "i" and initial in _APICAL:
        final = "-i"
    return str(_RHYME_OF.get(final, final))


def _form(row: Row, reward: str) -> str:
    form = needed(row, "form", reward)
    if form not in POEM_FORMS:
        raise KeyError(f"the form {form!r} is none of {', '.join(POEM_FORMS)}")
    return str(form)


def _distinct(answer: str) -> float:
    lines = poem_lines(answer)
    return len(set(lines)) / len(lines) if lines else 0.0


def _distinct_shape(answer: str, form: str) -> float:
    return _shape(poem_lines(answer), *POEM_FORMS[form]) * _distinct(answer)


def _shape(lines: list[str], num_lines: int, num_characters: int) -> float:
    """Return the mean of how near the number of lines is, and the length of each line."""
    if not lines:
        return 0.0
    near = max(0.0, 1 - abs(len(lines) - num_lines) / num_lines)
    lengths = [max(0.0, 1 - abs(len(line) - num_characters) / num_characters) for line in lines]
    return (near + sum(lengths) / max(len(lines), num_lines)) / 2
