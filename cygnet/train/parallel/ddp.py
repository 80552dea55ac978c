"""Every process holds the whole model and takes its share of the rows (torch's DDP).

Gradients are summed while the backward pass goes on, once a step. Muon's work is shared.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from cygnet.text.loader import Batch
from cygnet.train.optim import build_optimizer
from cygnet.train.parallel.cutting import summed
from cygnet.train.parallel.muon import shared
from cygnet.train.parallel.single import Single
from cygnet.train.stage import Stage


class Ddp(Single):
    """Distributed data parallelism."""

    def _spread(self) -> None:
        self.data_rank, self.data_size = self.world.rank, self.world.size
        self.has_settled = False
        # The only buffer is a table that no step changes.
        self.caller = DistributedDataParallel(
            self.caller, gradient_as_bucket_view=True, forward_sync_buffers=False
        )

    def _make_optimizer(self) -> Any:
        return build_optimizer(self.model, self.config, self.muon_dtype, shared(dist.group.WORLD))

    def accumulate(self, stage: Stage, rows: Batch, weight: int) -> dict[str, Tensor]:
        """Add the gradient of the rows' loss / weight; return summed loss and stage metrics."""
        if not self.has_settled:
            # DDP packs its messages anew after the first backward pass, and where a gradient lies
            # in a message decides in which order three or more processes sum it. So a first pass
            # goes to waste, or a resumed run would not be an uninterrupted one bit for bit.
            first = rows.rows(0, self.config.micro_batch or 1).to(self.hardware.device)
            with torch.random.fork_rng():  # of dropout
                self._forward_backward(stage, first, weight, is_last=True)
            self.optimizer.zero_grad(set_to_none=True)
            self.has_settled = True
        return super().accumulate(stage, rows, weight)

    def _forward_backward(
        self, stage: Stage, part: Batch, weight: int, is_last: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.caller.require_backward_grad_sync = is_last
        return super()._forward_backward(stage, part, weight, is_last)

    def total(self, sums: dict[str, float]) -> dict[str, float]:
        """Return each value summed over all processes."""
        return summed(sums, dist.group.WORLD)

    def _writes(self, number: int, parameter: Tensor) -> bool:
        return number % self.world.size == self.world.rank
