"""Calling rewards so that none can stop, hang or poison a training run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cygnet.errors import UserError
from cygnet.stages.reinforcement.rewards.builtin import Reward, find_reward
from cygnet.stages.reinforcement.rewards.fields import Row
from cygnet.stages.reinforcement.sandbox import START_S, CallFailed, Limits, Sandbox

SHOWN_CHARS = 80
MEMORY_BYTES = 8 << 30
"""Address space of the rewards' process; a library such as torch needs some of it for itself."""
CHECK = "cygnet.stages.reinforcement.functions:check_takes"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer is worth."""

    total: float
    """The weighted sum; NaN after a failure."""
    parts: dict[str, float] = field(default_factory=dict)
    """Each reward that counts for the row, before its weight."""
    failure: str | None = None
    """One line: which reward could not judge which prompt, and why. Such an episode is dropped."""


class Judge:
    """Rewards with weights, called in a process of their own (`Sandbox`).

    Close it, or use it in a `with`.

    Args:
        rewards: `NAME`, `FILE.py:NAME`, with `=WEIGHT` behind; weights are 1 else.
        timeout_s: longest time of one call; the process is ended then, and started again.
        memory_bytes: address space of the process.

    Attributes:
        num_failures: answers that could not be judged so far.
        first_failure: the line of the first.

    Raises:
        UserError: a name, a file, a signature or a weight is wrong.
    """

    def __init__(
        self, rewards: Sequence[str], timeout_s: float = 5.0, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        if not rewards:
            raise UserError("reward: none given; name at least one, as --reward poem_form")
        if not timeout_s > 0:
            raise UserError(f"reward_timeout_s: {timeout_s} is not above zero")
        self.rewards = [find_reward(text) for text in rewards]
        names = [reward.name for reward in self.rewards]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"reward {twice!r}: named twice; give it one weight")
        self.num_failures = 0
        self.first_failure: str | None = None
        self._sandbox = Sandbox(Limits(timeout_s=timeout_s, memory_bytes=memory_bytes))
        for reward in self.rewards:
            self._check(reward)

    def judge(
        self, answer: str, row: Row, messages: Sequence[dict[str, Any]] | None = None
    ) -> Verdict:
        """Return what an answer is worth; nothing that a reward does is raised.

        Args:
            answer: the text of the last answer.
            row: of the prompt. Where it has `rewards`, a list of names, these count
                (`Reward.counts_for`).
            messages: the whole conversation; rewards find it in `row["messages"]`.
        """
        wanted = row.get("rewards")
        chosen = [each for each in self.rewards if each.counts_for(wanted)]
        if not chosen:
            return self._failed(f"none of the row's rewards {wanted} was asked for", row)
        seen = dict(row) if messages is None else {**row, "messages": list(messages)}
        parts = {}
        for reward in chosen:
            try:
                value = self._sandbox.call(reward.reference, [answer, seen])
            except CallFailed as error:
                return self._failed(f"{reward.name}: {error}", row)
            except UserError as error:  # such as an extra that is missing
                return self._failed(f"{reward.name}: {error}", row)
            if isinstance(value, str) or value is None or isinstance(value, list | dict):
                return self._failed(f"{reward.name}: gave {value!r:.40}, no number", row)
            try:
                parts[reward.name] = float(value)
            except OverflowError:  # of an int
                return self._failed(f"{reward.name}: gave a number that is too large", row)
            if not math.isfinite(value):
                return self._failed(f"{reward.name}: gave {value}", row)
        total = sum(each.weight * parts[each.name] for each in chosen)
        if not math.isfinite(total):
            return self._failed(f"{' + '.join(parts)}: come to {total}", row)
        return Verdict(total, parts)

    def close(self) -> None:
        """End the process."""
        self._sandbox.close()

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, reward: Reward) -> None:
        try:
            self._sandbox.call(CHECK, [reward.reference, 2], timeout_s=START_S)
        except UserError as error:
            raise UserError(
                f"reward {reward.name}: {error}; it is called with (answer, row)"
            ) from error
        except CallFailed as error:
            raise UserError(f"reward {reward.name}: its file {error}") from error
        self._sandbox.references.append(reward.reference)

    def _failed(self, why: str, row: Row) -> Verdict:
        failure = f"reward {why}; prompt: {shown(row)}"
        self.num_failures += 1
        self.first_failure = self.first_failure or failure
        return Verdict(math.nan, {}, failure)


def check_failures(num_failures: int, limit: int, first: str | None) -> None:
    """Stop a run in which too many answers could not be judged; all processes must call it alike.

    Raises:
        RunStopped: more than `limit`. The engine writes a checkpoint and ends with the line.
    """
    # Only training has the guards (and torch) to load; the rewards' own process has not.
    from cygnet.train.guards import RunStopped

    if num_failures > limit:
        raise RunStopped(
            f"{num_failures} answers could not be judged, {limit} are allowed "
            f"(--max_reward_failures). The first: {first}"
        )


def shown(row: Row) -> str:
    """Return the beginning of a row's prompt, for a message."""
    prompt = row.get("prompt")
    if isinstance(prompt, list) and prompt:
        prompt = prompt[-1].get("content") if isinstance(prompt[-1], dict) else prompt[-1]
    text = json.dumps(prompt, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."
