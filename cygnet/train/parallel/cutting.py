"""How models are cut over processes: groups, the part that is here, and sums."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard


def groups(each: int, timeout_s: float) -> tuple[Any, Any, list[list[int]]]:
    """Make the groups of models that `each` processes hold together; all processes must call it.

    Returns:
        The group that holds one model with this process; the group of those that hold the same
        part of it; and the ranks of each model's processes.
    """
    size = dist.get_world_size()
    lines = [list(range(i, i + each)) for i in range(0, size, each)]
    same = [list(range(i, size, each)) for i in range(each)]
    return subgroup(lines, timeout_s), subgroup(same, timeout_s), lines


def subgroup(ranks: list[list[int]], timeout_s: float) -> Any:
    """Make a group of each list of ranks, and return that of this process."""
    # Groups do not take over how long the group of all processes waits.
    group, _ = dist.new_subgroups_by_enumeration(ranks, timeout=timedelta(seconds=timeout_s))
    return group


def place(parameter: Tensor) -> tuple[int, int, int]:
    """Return (dimension that is cut, where this process's part begins in it, size of the whole).

    The parts are those of `torch.chunk`.
    """
    if not isinstance(parameter, DTensor):
        return 0, 0, parameter.shape[0]
    (placement,) = parameter.placements
    if not isinstance(placement, Shard):
        return 0, 0, parameter.shape[0]
    size = parameter.shape[placement.dim]
    each = -(-size // parameter.device_mesh.size())
    return placement.dim, min(each * parameter.device_mesh.get_local_rank(), size), size


@torch.no_grad()
def gathered(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict with every tensor that is cut made whole, in every process."""
    return {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()
        for name, tensor in model.state_dict().items()
    }


def summed(values: dict[str, float], group: dist.ProcessGroup | None) -> dict[str, float]:
    """Return each value summed over the processes of a group, which all have the same names."""
    tensor = torch.tensor(list(values.values()), dtype=torch.float64)
    dist.all_reduce(tensor, group=group)
    return dict(zip(values, tensor.tolist(), strict=True))


def sum_gradients(parameters: Iterable[Tensor], group: dist.ProcessGroup | None) -> None:
    """Sum the gradients over the processes of a group, in place, as one message."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    parts = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    if not parts or dist.get_world_size(group) == 1:
        return
    flat = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(flat, group=group)
    for part, total in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
        part.copy_(total.view_as(part))
