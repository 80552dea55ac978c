"""Groups of answers to the same prompt, and what the rewards say of them.

Prompts come in an endless order, each once an epoch; a cursor says how far it has been used. The
processes of a run share the prompts among them and join what they found, so that all hold the
same groups in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from cygnet.files import digest_of, sha256_text
from cygnet.model.transformer import Transformer
from cygnet.stages.reinforcement.grpo_losses import group_advantages
from cygnet.stages.reinforcement.rewards.judge import shown
from cygnet.stages.reinforcement.rollout import Environment, Episode, Roller, Row
from cygnet.text.loader import endless_order
from cygnet.train.parallel.group import gather, world

_SPLIT_PARTS = 10_000


class Verdict(Protocol):
    """What an answer is worth."""

    @property
    def total(self) -> float: ...  # noqa: D102
    @property
    def parts(self) -> dict[str, float]: ...  # noqa: D102
    @property
    def failure(self) -> str | None: ...  # noqa: D102


class Judge(Protocol):
    """Rewards answers, and never raises: `cygnet.stages.reinforcement.rewards.judge.Judge`."""

    def judge(
        self, answer: str, row: Row, messages: Sequence[dict[str, Any]] | None = None
    ) -> Verdict:
        """Return what an answer is worth, with a `failure` where that cannot be said."""
        ...


@dataclass(eq=False)
class Group:
    """Answers to one prompt.

    Attributes:
        episodes: those that could be rewarded.
        rewards: (G,) float32.
        dropped: how many could not.
        failure: why the first of them could not.
    """

    episodes: list[Episode]
    rewards: Tensor
    dropped: int = 0
    failure: str | None = None

    @property
    def has_signal(self) -> bool:
        """Whether any answer is better than another."""
        return len(self.rewards) > 1 and bool(self.rewards.max() > self.rewards.min())

    def advantages(self, by_std: bool) -> Tensor:
        """Return (G,) float32; see `group_advantages`."""
        if not self.has_signal:
            return torch.zeros_like(self.rewards)
        return group_advantages(self.rewards, by_std)


class GroupDrawer:
    """Draws groups for the prompts of the endless order.

    Args:
        rows: the prompts.
        roller: lets the model answer.
        judge: rewards them; none where an environment alone does.
        group_size: answers to a prompt.
        seed: of the order and of the answers.
        environment: see `Roller.roll`.
        penalty: added to what an answer earns, in training alone.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        roller: Roller,
        judge: Judge | None,
        group_size: int,
        seed: int,
        environment: Callable[[], Environment] | None = None,
        penalty: Callable[[Episode], float] | None = None,
    ) -> None:
        self.rows, self.roller, self.judge, self.penalty = rows, roller, judge, penalty
        self.group_size, self.seed, self.environment = group_size, seed, environment

    def draw(self, model: Transformer, first: int, count: int) -> list[Group]:
        """Return the groups of prompts `first` to `first + count - 1` of the endless order."""
        places = endless_order(first, count, len(self.rows), self.seed).tolist()
        mine = range(world().rank, count, world().size)
        rows = [self.rows[places[at]] for at in mine for _ in range(self.group_size)]
        seeds = [
            answer_seed(self.seed, first + at, number)
            for at in mine
            for number in range(self.group_size)
        ]
        episodes = self.roller.roll(model, rows, seeds, self.environment)
        own = [
            rewarded(episodes[start : start + self.group_size], self.judge, self.penalty)
            for start in range(0, len(episodes), self.group_size)
        ]
        return shared(own, count)


def rewarded(
    episodes: Sequence[Episode],
    judge: Judge | None,
    penalty: Callable[[Episode], float] | None = None,
) -> Group:
    """Reward answers: what their environment gave, what the judge says, and a penalty.

    Dropped is an answer whose environment failed, that the judge cannot judge, or whose rewards are
    in all no finite float32.
    """
    kept: list[Episode] = []
    totals: list[float] = []
    failures: list[str] = []
    for episode in episodes:
        total, failure = _worth(episode, judge)
        if failure is not None:
            failures.append(failure)
            continue
        if penalty is not None:
            episode.rewards["penalty"] = penalty(episode)
            total += episode.rewards["penalty"]
        kept.append(episode)
        totals.append(total)
    rewards = torch.tensor(totals, dtype=torch.float32)
    return Group(kept, rewards, len(failures), next(iter(failures), None))


def _worth(episode: Episode, judge: Judge | None) -> tuple[float, str | None]:
    """Return what an answer earns, or why that cannot be said."""
    if episode.failure is not None:
        return math.nan, episode.failure
    total = episode.rewards.get("environment", 0.0)
    if judge is not None:
        verdict = judge.judge(episode.answer, episode.row, episode.messages)
        if verdict.failure is not None:
            return math.nan, verdict.failure
        episode.rewards |= verdict.parts
        total += verdict.total
    if not abs(total) <= torch.finfo(torch.float32).max:
        return math.nan, f"the rewards are {total} in all; prompt: {shown(episode.row)}"
    return total, None


def shared(own: Sequence[Group], count: int) -> list[Group]:
    """Return the groups of all processes, of which this one has each `world().size`-th."""
    found: list[Group] = [Group([], torch.zeros(0))] * count
    for rank, groups in enumerate(gather(list(own))):
        found[rank :: world().size] = groups
    return found


def answer_seed(*numbers: int) -> int:
    """Return a seed for an answer that no other numbers share (but for chance)."""
    return _number(sha256_text("/".join(map(str, numbers))))


def is_held_out(row: Row, share: float) -> bool:
    """Return whether a prompt belongs to those that are only judged: by a hash of its text."""
    return _number(digest_of(row.get("prompt"))) % _SPLIT_PARTS < share * _SPLIT_PARTS


def _number(digest: str) -> int:
    return int.from_bytes(bytes.fromhex(digest)[:7], "little")
