"""Signs that a policy earns its reward by a trick, or has stopped trying anything new.

Each figure of a rollout is compared with that of the first one; what is out of bounds is said once,
in plain words and with the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from cygnet.progress import say

LENGTH_FACTOR = 1.5
MORE_REPETITION = 0.1
LEAST_ENTROPY_SHARE = 0.2
REWARD_MOVE = 0.1


class Tricks:
    """Remembers the first rollout's figures, and what was said.

    Attributes:
        start: the figures of the first rollout that was looked at; part of a checkpoint.
    """

    NAMES: ClassVar = ("reward", "judge_reward", "answer_tokens", "repetition", "answer_entropy")
    SIGNS: ClassVar = ("length", "repetition", "judge", "entropy")

    def __init__(self) -> None:
        self.start: dict[str, float] = {}
        self.said: set[str] = set()

    def look(self, step: int, figures: Mapping[str, float]) -> bool:
        """Compare a rollout's figures with the first one's, and warn.

        Returns whether the entropy has collapsed for the first time: worth keeping the checkpoint.

        Args:
            step: optimizer steps done.
            figures: some of `NAMES`; means over the rollout.
        """
        if not self.start:
            self.start = {name: figures[name] for name in self.NAMES if name in figures}
            return False
        found = {name: (self.start[name], figures[name]) for name in self.start if name in figures}
        fresh = {sign: text for sign, text in signs(found).items() if sign not in self.said}
        for text in fresh.values():
            say(f"step {step}: {text}")
        self.said |= fresh.keys()
        return "entropy" in fresh

    def state(self) -> Tensor:
        """Return all of it as float64."""
        start = [self.start.get(name, math.nan) for name in self.NAMES]
        said = [float(sign in self.said) for sign in self.SIGNS]
        return torch.tensor([*start, *said], dtype=torch.float64)

    def load_state(self, state: Tensor) -> None:
        """Take what `state` gave."""
        numbers = state.tolist()
        start = zip(self.NAMES, numbers, strict=False)
        self.start = {name: value for name, value in start if not math.isnan(value)}
        said = zip(self.SIGNS, numbers[len(self.NAMES) :], strict=True)
        self.said = {sign for sign, value in said if value}


def signs(found: Mapping[str, tuple[float, float]]) -> dict[str, str]:
    """Return what is out of bounds: the sign's name, and the words for a person.

    Args:
        found: name of a figure to its first and its present value.
    """
    said = {}
    before, now = found["answer_tokens"]
    if not before / LENGTH_FACTOR <= now <= before * LENGTH_FACTOR:
        change = "longer" if now > before else "shorter"
        said["length"] = (
            f"answers have become much {change} ({before:.0f} tokens at the start, {now:.0f} now); "
            f"see if they are better, or if the reward is for being {change}: read some, raise "
            "--kl_coef, or balance the lengths of the pairs that the reward model learns from"
        )
    before, now = found["repetition"]
    if now > before + MORE_REPETITION:
        said["repetition"] = (
            f"answers repeat themselves more ({before:.2f} of their 4-grams at the start, "
            f"{now:.2f} now), which the reward model does not see: raise --kl_coef, or add pairs "
            "that reject it"
        )
    if "judge_reward" in found:
        moved, judged = found["reward"][1] - found["reward"][0], found["judge_reward"]
        if moved > REWARD_MOVE and judged[1] < judged[0] - REWARD_MOVE:
            said["judge"] = (
                f"the reward has risen by {moved:.2f}, and the judge's has fallen "
                f"({judged[0]:.2f} at the start, {judged[1]:.2f} now): the policy has found what "
                "its reward model alone likes; raise --kl_coef or stop here"
            )
    before, now = found["answer_entropy"]
    if now < before * LEAST_ENTROPY_SHARE:
        said["entropy"] = (
            f"the entropy has collapsed ({before:.2f} nats a token at the start, {now:.2f} now): "
            "answers hardly vary, and little is left to learn from. This step's checkpoint is "
            "kept; raise --kl_coef or --entropy_coef, or lower --learning_rate"
        )
    return said
