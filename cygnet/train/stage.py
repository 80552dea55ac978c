"""What a stage tells the engine: its batches and its loss. The engine owns everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from cygnet.model.transformer import Transformer
from cygnet.text.loader import Batch

Call = Callable[..., Any]
"""`call(function, *arguments)` returns `function(model, *arguments)`, whole in every process."""
Policy = Callable[[], Transformer]
"""Gives the model as it is now, whole in every process; all of them must ask alike.

An adapter is not merged: without gradients the model computes exactly what the loss begins with.
"""


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


@runtime_checkable
class OnlineStage(Stage, Protocol):
    """A stage whose batches come from what the model itself answers.

    Every process calls these alike, and the processes share the work of answering; what comes of it
    must be the same in all of them. No random number may be drawn from torch's generator.

    Attributes:
        must_keep: set by the stage where the checkpoint of this step must stay for a person to look
            at; the engine writes it and clears the mark.
    """

    must_keep: bool

    def collect(self, number: int, policy: Policy) -> dict[str, float]:
        """Make ready for `batch(number)`: let the model answer where new answers are due.

        Returns metrics for the log: some where new answers came, none where nothing was due.

        Raises:
            RunStopped: it makes no sense to go on; in every process alike.
        """
        ...

    def judge(self, policy: Policy) -> dict[str, float]:
        """Return held-out metrics that need answers, such as `heldout_reward`."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return what later batches still need of what was collected; part of each checkpoint."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take what `state` gave; nothing where the run begins, which forgets all that came before,
        marks included."""
        ...


@runtime_checkable
class WatchedStage(Protocol):
    """A stage that looks at its own metrics, to say what has left its healthy range."""

    def watch(self, step: int, metrics: dict[str, float]) -> None:
        """See a line that is logged; called on rank 0 alone."""
        ...

    def watch_state(self) -> Any:
        """Return what was seen and told, as JSON; part of each checkpoint."""
        ...

    def load_watch_state(self, state: Any) -> None:
        """Take what `watch_state` gave."""
        ...
