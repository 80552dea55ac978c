"""What a stage tells the engine: its batches and its loss. The engine owns everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from cygnet.model.transformer import Transformer
from cygnet.text.loader import Batch

Call = Callable[..., Any]
"""`call(function, *arguments)` returns `function(model, *arguments)`, whole in every process."""


class Stage(Protocol):
    """A stage of training.

    Attributes:
        name: `pretrain`, `sft`, `dpo`, ...
        batches_per_epoch: optimizer steps in one pass over the data, at least one.
    """

    name: str
    batches_per_epoch: float

    def compile(self) -> None:
        """Compile what the stage computes outside the model's blocks."""
        ...

    def batch(self, number: int) -> Batch:
        """Return the whole batch of one optimizer step: a pure function of the number."""
        ...

    def weight(self, batch: Batch) -> int:
        """Return what the summed loss of the whole batch is divided by: label tokens, or pairs."""
        ...

    def loss(self, model: Transformer, rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss of some rows of a batch, and summed metrics of the same weight.

        The loss is a float32 scalar to differentiate; the metrics are detached. Each sum over the
        parts of a batch, divided by the weight of the whole, is the mean that is logged.
        """
        ...

    def describe(self, number: int, row: int) -> str:
        """Say where a row of a batch comes from, for a person who has to find it."""
        ...

    def heldout(self, model: Transformer) -> dict[str, float]:
        """Return metrics on held-out data, such as `heldout_loss`."""
        ...

    def samples(self, call: Call) -> list[dict[str, Any]]:
        """Return answers to a few fixed prompts, a row with `prompt` and `answer` for each.

        Every process asks, and asks alike. No random number may be drawn from torch's generator.
        """
        ...
