"""The matrices inside each block are cut over processes (torch's tensor parallelism).

Query, key, value, gate and up matrices are cut by output, so that each process has its own heads
and its own part of the feed-forward layer; output and down matrices are cut by input, and their
results summed (Shoeybi et al. 2019, "Megatron-LM", section 3). Embeddings and norms are whole
everywhere. Groups of `model_processes` hold one model; the groups share the rows.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)

from cygnet.model.lora import LORA_A
from cygnet.model.transformer import Transformer
from cygnet.text.loader import Batch
from cygnet.train.optim import build_optimizer
from cygnet.train.parallel.cutting import gathered, groups, sum_gradients, summed
from cygnet.train.parallel.muon import exchanged
from cygnet.train.parallel.single import Single
from cygnet.train.stage import Stage


class _ByOutput(ColwiseParallel):
    """Cuts a matrix by output; of its adapter B too, and A is whole everywhere."""

    def _partition_linear_fn(self, name: str, module: nn.Module, device_mesh: DeviceMesh) -> None:
        for part, parameter in list(module.named_parameters(recurse=False)):
            placement = Replicate() if part == LORA_A else Shard(0)
            _cut(module, part, parameter, device_mesh, placement)


class _ByInput(RowwiseParallel):
    """Cuts a matrix by input; of its adapter A too, and all else is whole everywhere."""

    def _partition_linear_fn(self, name: str, module: nn.Module, device_mesh: DeviceMesh) -> None:
        for part, parameter in list(module.named_parameters(recurse=False)):
            placement = Shard(1) if part in ("weight", LORA_A) else Replicate()
            _cut(module, part, parameter, device_mesh, placement)


def _cut(
    module: nn.Module, name: str, parameter: nn.Parameter, mesh: DeviceMesh, placement: Any
) -> None:
    cut = distribute_tensor(parameter, mesh, [placement])
    module.register_parameter(name, nn.Parameter(cut, requires_grad=parameter.requires_grad))


def _is_partial(gradient: Tensor | None) -> bool:
    """Say whether a gradient is this process's part of a sum."""
    return isinstance(gradient, DTensor) and gradient.placements[0].is_partial()


class TensorParallel(Single):
    """Tensor parallelism, and data parallelism between the groups."""

    def _spread(self) -> None:
        each = self.config.model_processes or self.world.size
        self.tensor_group, self.data_group, lines = groups(each, self.config.timeout_s)
        mesh = DeviceMesh.from_group(
            self.tensor_group, self.hardware.device.type, lines[self.world.rank // each]
        )
        self.data_rank, self.data_size = self.world.rank // each, self.world.size // each
        by_output, by_input = _ByOutput(), _ByInput()
        # Marked once for all matrices that read it: their gradients are then summed in one go.
        of_attention, of_mlp = (Replicate(), None, None, None), (Replicate(),)
        cut = {
            "self_attn": PrepareModuleInput(
                input_layouts=of_attention, desired_input_layouts=of_attention
            ),
            "mlp": PrepareModuleInput(input_layouts=of_mlp, desired_input_layouts=of_mlp),
            "self_attn.q_proj": by_output, "self_attn.k_proj": by_output,
            "self_attn.v_proj": by_output, "self_attn.o_proj": by_input,
            "mlp.gate_proj": by_output, "mlp.up_proj": by_output, "mlp.down_proj": by_input,
        }  # fmt: skip
        for block in self.model.model.layers:
            parallelize_module(block, mesh, cut)

    def _make_optimizer(self) -> Any:
        run = exchanged(self.tensor_group)
        return build_optimizer(self.model, self.config, self.muon_dtype, run)

    def accumulate(self, stage: Stage, rows: Batch, weight: int) -> dict[str, Tensor]:
        """Add the gradient of the rows' loss / weight; return summed loss and stage metrics."""
        sums = super().accumulate(stage, rows, weight)
        named = list(self.model.named_parameters())
        # Each process has seen its own heads alone.
        of_heads = [p for name, p in named if "q_norm" in name or "k_norm" in name]
        of_parts = [p for _, p in named if _is_partial(p.grad)]
        sum_gradients([*of_heads, *of_parts], self.tensor_group)
        sum_gradients([p for _, p in named], self.data_group)
        return sums

    def whole(self) -> Transformer:
        """Return the model with every weight gathered."""
        return self._built(gathered(self.model))

    def _loss_scale(self, weight: int) -> float:
        return 1 / weight

    def total(self, sums: dict[str, float]) -> dict[str, float]:
        """Return each value summed over the groups."""
        return summed(sums, self.data_group)

    def _is_cut(self, parameter: Tensor) -> bool:
        return isinstance(parameter, DTensor) and parameter.placements[0].is_shard()

    def _sum_of_parts(self, value: Tensor) -> Tensor:
        dist.all_reduce(value, group=self.tensor_group)
        return value

    def _writes(self, number: int, parameter: Tensor) -> bool:
        if self.data_rank:
            return False
        if self._is_cut(parameter):
            return True
        size = dist.get_world_size(self.tensor_group)
        return number % size == dist.get_rank(self.tensor_group)
