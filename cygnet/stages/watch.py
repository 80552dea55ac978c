"""Watching a run's metrics: what leaves its healthy range is told once, in plain words.

A stage that is to be watched has a `watch(step, metrics)`, which the engine calls on rank 0 with
every line that it logs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cygnet.progress import say

Metrics = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A healthy range, and what to say of a run that leaves it."""

    metric: str | Callable[[Metrics], float]
    """A name, or what is computed from several; a line that lacks one says nothing."""
    low: float = -math.inf
    """Smallest healthy value."""
    high: float = math.inf
    """Largest healthy value."""
    since_first: bool = False
    """Whether the range is of the change since the first line, rather than of the value."""
    patience: int = 0
    """For how many steps the value may be outside."""
    sentence: str | Callable[[Metrics], str]
    """What is wrong, why, and what to do: a text with places for {value}, {first} and {steps} (for
    how many it has been so), or what makes one of the line that was the last straw."""


@dataclass
class _Seen:
    """What a rule has seen."""

    first: float | None = None
    outside_since: int | None = None
    is_told: bool = False


@dataclass
class Watch:
    """Rules over the metrics of one run.

    Attributes:
        told: (step, sentence) of every warning given.
    """

    name: str
    rules: Sequence[Rule]
    told: list[tuple[int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._seen = [_Seen() for _ in self.rules]

    def __call__(self, step: int, metrics: Metrics) -> None:
        """Look at a line that is logged, and say what has been out of its range for too long."""
        for rule, seen in zip(self.rules, self._seen, strict=True):
            value = _value(rule, metrics)
            if value is None or seen.is_told:
                continue
            if seen.first is None:
                seen.first = value
            judged = value - seen.first if rule.since_first else value
            if rule.low <= judged <= rule.high:
                seen.outside_since = None
                continue
            if seen.outside_since is None:
                seen.outside_since = step
            steps = step - seen.outside_since
            if steps >= rule.patience:
                seen.is_told = True
                sentence = (
                    rule.sentence if isinstance(rule.sentence, str) else rule.sentence(metrics)
                )
                said = sentence.format(value=value, first=seen.first, steps=steps)
                self.told.append((step, said))
                say(f"{self.name}: warning at step {step}: {said}")

    def state(self) -> list[dict[str, Any]]:
        """Return what each rule has seen, as JSON; part of each checkpoint."""
        return [asdict(seen) for seen in self._seen]

    def load_state(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Take what `state` gave; of another number of rules nothing is known."""
        if len(state) == len(self.rules):
            self._seen = [_Seen(**seen) for seen in state]


def _value(rule: Rule, metrics: Metrics) -> float | None:
    """Return what a rule looks at; none where the line lacks it, or it is no number."""
    try:
        value = metrics[rule.metric] if isinstance(rule.metric, str) else rule.metric(metrics)
    except (KeyError, ZeroDivisionError):
        return None
    return value if math.isfinite(value) else None
