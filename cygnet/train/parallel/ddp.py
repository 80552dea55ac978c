"""Every process holds the whole model and takes its share of the rows (torch's DDP).

Gradients are summed while the backward pass goes on, once a step. Muon's work is shared.
"""

from __future__ import annotations

from typing import Any

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
        # Static: the same parameters get gradients in every step.
        self.caller = DistributedDataParallel(self.caller, gradient_as_bucket_view=True)

    def _make_optimizer(self) -> Any:
        return build_optimizer(self.model, self.config, self.muon_dtype, shared(dist.group.WORLD))

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
