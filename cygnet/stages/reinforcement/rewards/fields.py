"""What a reward reads in its prompt's row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]


def needed(row: Row, name: str, reward: str) -> Any:
    """Return a field of the row.

    Raises:
        KeyError: it is not there; the message is for the person who wrote the prompts.
    """
    if name not in row:
        raise KeyError(f"the reward {reward} needs the field {name!r} in the prompt's row")
    return row[name]
