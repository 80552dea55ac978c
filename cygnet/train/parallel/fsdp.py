"""Every process holds its slice of each weight (torch's fully_shard), gathered block by block.

Weights, gradients and optimizer state are cut by rows over all processes; the weights of a block
are whole only while it computes, or where memory is plentiful from the first micro-batch of a step
to the last, so that they are gathered once a step. With bf16 the blocks are gathered in bf16 and
gradients summed in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from cygnet.model.transformer import Transformer
from cygnet.text.loader import Batch
from cygnet.train.checkpoint import Piece
from cygnet.train.held import keeps_whole
from cygnet.train.optim import build_optimizer
from cygnet.train.parallel.cutting import gathered, summed
from cygnet.train.parallel.group import on_rank_zero
from cygnet.train.parallel.muon import exchanged
from cygnet.train.parallel.single import Single
from cygnet.train.stage import Stage


class Fsdp(Single):
    """Fully sharded data parallelism."""

    def _spread(self) -> None:
        self.data_rank, self.data_size = self.world.rank, self.world.size
        compute = self.hardware.dtype
        # The same in every process, whatever each has measured: all must gather alike.
        self.keeps_whole = on_rank_zero(
            lambda: keeps_whole(self.model.config, compute, self.hardware.memory.free_bytes)
        )
        policy = MixedPrecisionPolicy(
            param_dtype=compute if compute is torch.bfloat16 else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
        for block in self.model.model.layers:
            fully_shard(block, mp_policy=policy, reshard_after_forward=not self.keeps_whole)
        # The output matrix is used in float32 sums, so what is outside the blocks stays float32.
        fully_shard(self.caller, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))

    def _make_optimizer(self) -> Any:
        run = exchanged(dist.group.WORLD)
        return build_optimizer(self.model, self.config, self.muon_dtype, run)

    def _forward_backward(
        self, stage: Stage, part: Batch, weight: int, is_last: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.caller.set_requires_gradient_sync(is_last)
        self.caller.set_reshard_after_backward(is_last or not self.keeps_whole)
        return super()._forward_backward(stage, part, weight, is_last)

    def total(self, sums: dict[str, float]) -> dict[str, float]:
        """Return each value summed over all processes."""
        return summed(sums, dist.group.WORLD)

    def whole(self) -> Transformer:
        """Return the model with every weight gathered."""
        self._reshard()
        return self._built(gathered(self.model))

    def pieces(self) -> Iterator[Piece]:
        """Yield this process's slices."""
        self._reshard()
        yield from super().pieces()

    def _reshard(self) -> None:
        # After a forward pass without a backward pass, weights may still be whole.
        for module in (self.caller, *self.model.model.layers):
            module.reshard()

    def _is_cut(self, parameter: Tensor) -> bool:
        return isinstance(parameter, DTensor)

    def _sum_of_parts(self, value: Tensor) -> Tensor:
        dist.all_reduce(value)
        return value
