"""What an answer loses for its length and for saying things again; to be added with a weight."""

from __future__ import annotations

from cygnet.stages.reinforcement.rewards.fields import Row
from cygnet.text.forms import repetition_rate

DEFAULT_MAX_CHARS = 400
MARGIN = 0.5


def length(answer: str, row: Row) -> float:
    """Return 0 for at most `row["max_chars"]` (400) characters, falling to -1 at half as many more.

    As the soft overlong punishment of DAPO (Yu et al. 2025, equation 13), in characters.
    """
    most = max(int(row.get("max_chars", DEFAULT_MAX_CHARS)), 1)
    return -min(max(len(answer) - most, 0) / (MARGIN * most), 1.0)


def repetition(answer: str, row: Row) -> float:
    """Return minus the share of 4-grams that occurred before in the answer (`repetition_rate`)."""
    return -repetition_rate(answer)
