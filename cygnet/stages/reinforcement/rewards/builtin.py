"""The rewards that come with Cygnet, by name, and how a name on the command line is resolved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cygnet.errors import UserError, nearest
from cygnet.stages.reinforcement.functions import absolute, is_file_reference

BUILTIN = {
    "poem_form": "verse",
    "rhyme": "verse",
    "recipe": "recipes",
    "arithmetic": "exact",
    "spelling": "exact",
    "json_schema": "exact",
    "tool_use": "tool_use",
    "length": "penalties",
    "repetition": "penalties",
}
"""Name of the function, and its file in this folder."""
FOR_ALL = ("length", "repetition")
"""These count for every row; the others where a row that names its rewards names them."""
BESIDE = {"rhyme": "poem_form"}
"""The first counts for a row that names the second, too."""


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward that counts."""

    name: str
    """As typed, without the weight."""
    reference: str
    """What the process that calls it loads: see `cygnet.stages.reinforcement.functions`."""
    weight: float

    def counts_for(self, wanted: Sequence[str] | None) -> bool:
        """Return whether it counts for a row with these `rewards` (none: all count).

        A person's own function is left out only where the row names another of their own.
        """
        if wanted is None or self.name in wanted or self.name in FOR_ALL:
            return True
        if BESIDE.get(self.name) in wanted:
            return True
        return is_file_reference(self.name) and not any(map(is_file_reference, wanted))


def reward_name(text: str) -> str:
    """Return `NAME` or `FILE.py:NAME` of a reward as it is typed, with a weight or without."""
    name, _, last = text.strip().rpartition("=")
    return name or last


def find_reward(text: str) -> Reward:
    """Return the reward that `NAME`, `FILE.py:NAME` or either with `=WEIGHT` behind it names.

    Raises:
        UserError: no such name or file, or a weight that is no finite number.
    """
    name = reward_name(text)
    behind = text.strip()[len(name) :]
    written = behind[1:] if behind else "1"
    try:
        weight = float(written)
    except ValueError:
        raise UserError(f"reward {text!r}: {written!r} is no weight; write NAME=NUMBER") from None
    if not math.isfinite(weight):
        raise UserError(f"reward {text!r}: a weight must be a finite number")
    if is_file_reference(name):
        return Reward(name, absolute(name, "reward"), weight)
    if name not in BUILTIN:
        raise UserError(
            f"reward {name!r}: not built in{nearest(name, BUILTIN)}; there are "
            f"{', '.join(BUILTIN)}, and FILE.py:NAME for one of your own"
        )
    return Reward(name, f"cygnet.stages.reinforcement.rewards.{BUILTIN[name]}:{name}", weight)
