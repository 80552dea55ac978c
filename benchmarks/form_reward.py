"""A reward that is all or nothing, for `grpo_form.py`."""

from __future__ import annotations

from typing import Any

from cygnet.text.forms import is_poem_of_form


def form_kept(answer: str, row: dict[str, Any]) -> float:
    """Return 1 for a poem of the form that was asked for, else 0."""
    return float(is_poem_of_form(answer, row["form"]))
