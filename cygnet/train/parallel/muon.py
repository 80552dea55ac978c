"""Muon's orthogonalization when matrices or the work on them are spread over processes.

It needs whole matrices. Each process takes whole some of those of a shape, so that the work is
shared, and every process has the results it needs afterwards.

Shapes: n matrices of R rows and C columns, W processes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from cygnet.train.optim import Orthogonalize, orthogonalize


def shared(group: Any) -> Orthogonalize:
    """Return a function for matrices that every process of the group holds whole."""
    size, rank = dist.get_world_size(group), dist.get_rank(group)

    def run(matrices_nRC: Tensor, whole: torch.Size, dim: int) -> Tensor:
        n = len(matrices_nRC)
        each = -(-n // size)
        padded = F.pad(matrices_nRC, (0, 0, 0, 0, 0, each * size - n))
        own = orthogonalize(padded[rank * each : (rank + 1) * each]).contiguous()
        everything = own.new_empty(each * size, *own.shape[1:])
        dist.all_gather_single(everything, own, group=group)
        return everything[:n]

    return run


def exchanged(group: Any) -> Orthogonalize:
    """Return a function for matrices of which every process of the group holds a slice.

    The slices are those of `torch.chunk` in dimension `dim`.
    """
    size = dist.get_world_size(group)

    def run(slices: Tensor, whole: torch.Size, dim: int) -> Tensor:
        # With the cut dimension as rows; orthogonalizing commutes with transposing.
        rows_nrC = slices if dim == 0 else slices.mT
        n, own_rows, columns = rows_nrC.shape
        num_rows = whole[dim]
        each, most = -(-n // size), -(-num_rows // size)
        padded = F.pad(rows_nrC, (0, 0, 0, most - own_rows, 0, each * size - n)).contiguous()
        # Block w of the first dimension goes to process w, which gets `most` rows from each.
        received = torch.empty_like(padded)
        dist.all_to_all_single(received, padded, group=group)
        parts = received.view(size, each, most, columns).transpose(0, 1)
        matrices = parts.reshape(each, size * most, columns)[:, :num_rows]
        result = F.pad(orthogonalize(matrices), (0, 0, 0, size * most - num_rows))
        back = result.view(each, size, most, columns).transpose(0, 1).contiguous()
        returned = torch.empty_like(back)
        dist.all_to_all_single(returned, back, group=group)
        own = returned.reshape(each * size, most, columns)[:n, :own_rows]
        return own if dim == 0 else own.mT

    return run
