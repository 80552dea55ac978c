"""The rewards that come with Cygnet, by name, and how a name on the command line is resolved."""

from __future__ import annotations

from dataclasses import dataclass

from cygnet.errors import UserError, nearest
from cygnet.stages.functions import absolute, is_file_reference

BUILTIN = {
    "poem_form": "verse",
    "recipe": "recipes",
    "arithmetic": "exact",
    "spelling": "exact",
    "json_schema": "exact",
    "tool_use": "tool_use",
    "length": "penalties",
    "repetition": "penalties",
}
"""Name of the function, and its file in this folder."""


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward that counts."""

    name: str
    """As typed, without the weight."""
    reference: str
    """What the process that calls it loads: see `cygnet.stages.functions`."""
    weight: float


def find_reward(text: str) -> Reward:
    """Return the reward that `NAME`, `FILE.py:NAME` or either with `=WEIGHT` behind it names.

    Raises:
        UserError: no such name or file, or a weight that is no number.
    """
    name, equals, written = text.strip().rpartition("=")
    if not equals:
        name, written = written, "1"
    try:
        weight = float(written)
    except ValueError:
        raise UserError(f"reward {text!r}: {written!r} is no weight; write NAME=NUMBER") from None
    if is_file_reference(name):
        return Reward(name, absolute(name, "reward"), weight)
    if name not in BUILTIN:
        raise UserError(
            f"reward {name!r}: not built in{nearest(name, BUILTIN)}; there are "
            f"{', '.join(BUILTIN)}, and FILE.py:NAME for one of your own"
        )
    return Reward(name, f"cygnet.stages.rewards.{BUILTIN[name]}:{name}", weight)
