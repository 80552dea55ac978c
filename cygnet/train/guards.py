"""Checks that stop a run before it can write a bad checkpoint, and name the step and the sample."""

from __future__ import annotations

import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from torch import Tensor

from cygnet.errors import UserError
from cygnet.model.transformer import Transformer
from cygnet.progress import say
from cygnet.text.loader import Batch
from cygnet.train.parallel.group import world
from cygnet.train.stage import Stage


class DivergedError(UserError):
    """The loss or a gradient is not a finite number. Nothing was written after it."""


class RunStopped(UserError):
    """A stage sees no sense in going on; the engine writes a checkpoint first."""


def check_batch(stage: Stage, batch: Batch, step: int, vocab_size: int) -> int:
    """Return the weight of a batch whose ids and labels can be trained on.

    Raises:
        DivergedError: an id lies outside the vocabulary, or nothing in the batch has a label.
    """
    smallest, largest = int(batch.tokens.min()), int(batch.tokens.max())
    if smallest < 0 or largest >= vocab_size:
        wrong = ((batch.tokens < 0) | (batch.tokens >= vocab_size)).any(dim=1).nonzero()[0].item()
        raise DivergedError(
            f"step {step}, row {wrong} of the batch: a token id outside the vocabulary of "
            f"{vocab_size} ({smallest} to {largest}); make the shards again"
        )
    weight = stage.weight(batch)
    if weight == 0:
        raise DivergedError(f"step {step}: no token of the batch has a label; look at the data")
    return weight


def blame(model: Transformer, stage: Stage, batch: Batch, step: int, loss: float) -> DivergedError:
    """Find what made a step not finite: the row of the batch, or else the parameter."""
    from cygnet.text.loader import IGNORE

    with torch.no_grad():
        for row in range(len(batch.tokens)):
            rows = batch.rows(row, row + 1).to(model.output_weight.device)
            if (rows.labels != IGNORE).any():
                total, _ = stage.loss(model, rows)
                if not torch.isfinite(total):
                    return DivergedError(
                        f"step {step}: the loss of row {row} of the batch is {total.item()}; "
                        f"the last checkpoint stands. Lower --learning_rate, or look at the "
                        f"row: {stage.describe(step, row)}"
                    )
    broken = [name for name, p in model.named_parameters() if not _is_finite(p.grad)]
    where = broken[0] if broken else "the norm alone"
    return DivergedError(
        f"step {step}: the loss is {loss:.4g} but the gradient is not finite ({where}); the last "
        "checkpoint stands. Lower --learning_rate"
    )


def _is_finite(gradient: Tensor | None) -> bool:
    return gradient is None or bool(torch.isfinite(gradient).all())


class Interrupt:
    """What signal, if any, has asked the run to stop."""

    signal_number: int | None = None


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Turn SIGINT and SIGTERM into a request that the loop sees at the end of its step.

    A second signal acts at once, as if there were no handler. With several processes only a second
    SIGINT does: a scheduler sends SIGTERM to processes and launcher, which passes it on once more.
    """
    interrupt = Interrupt()
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    may_come_twice = {signal.SIGTERM} if world().size > 1 else set()

    def restore(kept: Collection[int] = ()) -> None:
        for number in previous.keys() - kept:
            signal.signal(number, previous[number])

    def request(number: int, frame: FrameType | None) -> None:
        if interrupt.signal_number is not None:
            return
        interrupt.signal_number = number
        name = signal.Signals(number).name
        again = signal.SIGINT.name if may_come_twice else "once more"
        say(f"{name}: stopping after this step; {again} stops at once")
        restore(kept=may_come_twice)

    for number in previous:
        signal.signal(number, request)
    try:
        yield interrupt
    finally:
        restore()
        if interrupt.signal_number in may_come_twice:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the process is on its way out
