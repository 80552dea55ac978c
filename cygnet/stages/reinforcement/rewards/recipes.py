"""Is an answer a whole recipe, and of what was asked for."""

from __future__ import annotations

import re

from cygnet.stages.reinforcement.rewards.fields import Row, needed
from cygnet.text.forms import recipe_checks, repetition_rate

_WORD = re.compile(r"[a-z]{3,}")


def recipe(answer: str, row: Row) -> float:
    """Return from 0 to 1 how far the answer is a recipe for `row["subject"]`.

    0.15 each for a list of ingredients and numbered steps, 0.25 for the share of the ingredients
    that the steps name, 0.3 for a recipe that is complete (`recipe_checks`), 0.15 for the subject's
    words; all of it times the share of the text that repeats nothing (`repetition_rate`).

    Raises:
        KeyError: the row has no `subject`.
    """
    checks = recipe_checks(answer)
    whole = (
        0.15 * checks.has_ingredients
        + 0.15 * checks.has_steps
        + 0.25 * checks.steps_use_ingredients
        + 0.3 * checks.complete
        + 0.15 * _names(answer, str(needed(row, "subject", "recipe")))
    )
    return whole * (1 - repetition_rate(answer))


def _names(answer: str, subject: str) -> float:
    """Return the share of the subject's words that the answer holds."""
    words = set(_WORD.findall(subject.lower()))
    return len(words & set(_WORD.findall(answer.lower()))) / len(words) if words else 1.0
