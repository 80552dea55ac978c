"""The settings of an evaluation, and its result as it is kept in eval.json."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cygnet.errors import UserError
from cygnet.evals.bootstrap import Estimate
from cygnet.files import write_json

DOMAIN_METRIC = "bits_per_byte/"
POEM, RECIPE, OPENING = "poem", "recipe", "opening"


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What is measured after each stage.

    Raises:
        UserError: a number is out of its range.
    """

    num_poems: int = 96
    """Held-out poem prompts that are answered, to check the form."""
    num_recipes: int = 40
    """Held-out recipe prompts that are answered, to check that the recipe is complete."""
    num_others: int = 4
    """Held-out prompts answered of each other kind, and openings gone on from in each domain."""
    max_documents_per_domain: int = 1000
    """Held-out documents of a domain that bits per byte are measured on."""
    max_instructions: int = 1000
    """Held-out conversations that the likelihood of answers is measured on."""
    max_pairs: int = 500
    """Held-out pairs that preference is measured on."""
    context: int | None = None
    """Tokens that a document is read in at once; none takes the model's longest context."""
    temperature: float = 0.8
    """Of the sampled answers; zero takes the likeliest token always."""
    top_p: float = 0.95
    """Sample among the likeliest tokens that hold this share of the probability."""
    max_new_tokens: int = 384
    """Longest answer."""
    bootstrap_resamples: int = 1000
    """Resamples behind each interval."""
    seed: int = 0
    """Seed of the samples and of the intervals."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "bootstrap_resamples", "context"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"eval.{name} is {value}: it must be above zero")
        for name in (
            "num_poems", "num_recipes", "num_others",
            "max_documents_per_domain", "max_instructions", "max_pairs",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise UserError(f"eval.{name} is {getattr(self, name)}: it must not be negative")


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer. `passed` is the verdict of the kind's checkable rule, none where it has none."""

    kind: str
    prompt: str
    answer: str
    reference: str = ""
    form: str | None = None
    passed: bool | None = None


@dataclass(frozen=True, slots=True)
class StageResult:
    """What `evaluate` found.

    Attributes:
        metrics: each metric with its 95 % interval.
        samples: answers, the same prompts after every stage.
        yardsticks: {domain or `all`: {"xz", "zstd": bits per byte, "num_bytes"}}.
        items: {metric: what it was measured on (a hash) and each item's share in it}; two stages
            measured on the same items can be compared item by item.
    """

    metrics: dict[str, Estimate] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    yardsticks: dict[str, dict[str, float]] = field(default_factory=dict)
    items: dict[str, dict[str, Any]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values: {"metrics": {name: {value, low, high, count}}, ...}."""
        return dataclasses.asdict(self)

    def save(self, path: Path) -> None:
        """Write it as JSON, atomically."""
        write_json(path, self.as_dict())

    @staticmethod
    def load(path: Path) -> StageResult:
        """Read what `save` wrote.

        Raises:
            UserError: the file is no result of an evaluation.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return StageResult(
                metrics={name: Estimate(**value) for name, value in values["metrics"].items()},
                samples=[Sample(**sample) for sample in values["samples"]],
                yardsticks=values.get("yardsticks", {}),
                items=values.get("items", {}),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: not a result of `cygnet eval` ({error}); run the evaluation again"
            ) from error
