"""Watching a run's metrics: what leaves its healthy range is told once, in plain words.

A stage that is to be watched has a `watch(step, metrics)`, which the engine calls on rank 0 with
every line that it logs; one whose model answers before it learns looks at each of its rollouts
itself, on every rank.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from cygnet.progress import say

Metrics = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A healthy range, and what to say of a run that leaves it."""

    metric: str | Callable[[Metrics, Metrics], float]
    """A name, or what is computed from a line and from the first values of those in `compares`; a
    line that lacks one says nothing."""
    compares: tuple[str, ...] = ()
    """Names of the metrics whose first values the computation needs."""
    low: float = -math.inf
    """Smallest healthy value."""
    high: float = math.inf
    """Largest healthy value."""
    range_of: Literal["value", "change", "share"] = "value"
    """Whether the range is of the value, of its change since the first line, or of its share of the
    first; the latter two are for a metric that is a name."""
    patience: int = 0
    """For how many steps the value may be outside."""
    keeps_checkpoint: bool = False
    """Whether the checkpoint of the step is worth a look."""
    sentence: str | Callable[[Metrics], str]
    """What is wrong, why, and what to do: a text with places for {value}, {first} and {steps} (for
    how many it has been so), or what makes one of the line that was the last straw."""

    def __post_init__(self) -> None:
        assert isinstance(self.metric, str) or self.range_of == "value"


@dataclass
class _Seen:
    """What a rule has seen."""

    outside_since: int | None = None
    is_told: bool = False


@dataclass
class Watch:
    """Rules over the metrics of one run.

    Attributes:
        told: (step, sentence) of every warning given.
        first: the first value of every metric that a rule names.
    """

    name: str
    rules: Sequence[Rule]
    told: list[tuple[int, str]] = field(default_factory=list)
    first: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._seen = [_Seen() for _ in self.rules]
        named = {rule.metric for rule in self.rules if isinstance(rule.metric, str)}
        self._compared = sorted(named.union(*(rule.compares for rule in self.rules)))

    def __call__(self, step: int, metrics: Metrics) -> bool:
        """Look at a line, and say what has been out of its range for too long.

        Returns whether any of it is worth keeping the step's checkpoint.
        """
        for name in self._compared:
            if math.isfinite(metrics.get(name, math.nan)):
                self.first.setdefault(name, metrics[name])
        is_kept = False
        for rule, seen in zip(self.rules, self._seen, strict=True):
            judged = self._judged(rule, metrics)
            if judged is None or seen.is_told:
                continue
            if rule.low <= judged <= rule.high:
                seen.outside_since = None
                continue
            if seen.outside_since is None:
                seen.outside_since = step
            if step - seen.outside_since >= rule.patience:
                seen.is_told = True
                is_kept |= rule.keeps_checkpoint
                self._tell(rule, step, step - seen.outside_since, metrics, judged)
        return is_kept

    def _judged(self, rule: Rule, metrics: Metrics) -> float | None:
        """Return what a rule looks at; none where the line lacks it, or it is no number."""
        try:
            if not isinstance(rule.metric, str):
                value = rule.metric(metrics, self.first)
            elif rule.range_of == "value":
                value = metrics[rule.metric]
            elif rule.range_of == "change":
                value = metrics[rule.metric] - self.first[rule.metric]
            else:
                value = metrics[rule.metric] / self.first[rule.metric]
        except (KeyError, ZeroDivisionError):
            return None
        return value if math.isfinite(value) else None

    def _tell(self, rule: Rule, step: int, steps: int, metrics: Metrics, judged: float) -> None:
        sentence = rule.sentence if isinstance(rule.sentence, str) else rule.sentence(metrics)
        value, first = judged, None
        if isinstance(rule.metric, str):
            value, first = metrics[rule.metric], self.first[rule.metric]
        said = sentence.format(value=value, first=first, steps=steps)
        self.told.append((step, said))
        say(f"{self.name}: warning at step {step}: {said}")

    def state(self) -> dict[str, Any]:
        """Return what was seen, as JSON; part of each checkpoint."""
        return {"first": self.first, "rules": [asdict(seen) for seen in self._seen]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave; where that was for other rules nothing is known."""
        if isinstance(state, Mapping) and len(state.get("rules", ())) == len(self.rules):
            self.first = dict(state["first"])
            self._seen = [_Seen(**seen) for seen in state["rules"]]

    def tensor(self) -> Tensor:
        """Return `state` as uint8, where a checkpoint holds tensors alone."""
        return torch.tensor(list(json.dumps(self.state()).encode()), dtype=torch.uint8)

    def load_tensor(self, state: Tensor) -> None:
        """Take what `tensor` gave."""
        self.load_state(json.loads(bytes(state.tolist())))
