"""Matrices in the 4 bits of NF4 (Dettmers et al. 2023, "QLoRA", section 3), for a frozen base.

Blocks of 64 weights share the largest magnitude among them; each weight is the nearest of 16
quantiles of a normal distribution times that. bitsandbytes packs and unpacks, on the CPU as on a
GPU.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cygnet.errors import require

BLOCK = 64


def _operations() -> Any:
    # It warns of a faster product for inference that is not there; ours unpacks.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    require("bitsandbytes", "qlora")
    return torch.ops.bitsandbytes


class Nf4Weight(nn.Module):
    """A frozen matrix in 4 bits.

    Args:
        weight_OI: what it keeps, (out, in).

    Attributes:
        codes: uint8, two weights a byte.
        magnitudes: the bytes of a float32 for each block; as bytes, for whoever casts the floats
            of a model must leave them as they are.

    Raises:
        UserError: bitsandbytes is not installed.
    """

    def __init__(self, weight_OI: Tensor) -> None:
        super().__init__()
        self.shape = list(weight_OI.shape)
        weight_OI = weight_OI.detach().float().contiguous()
        codes, magnitudes = _operations().quantize_4bit(weight_OI, BLOCK, "nf4", torch.uint8)
        self.codes = nn.Buffer(codes)
        self.magnitudes = nn.Buffer(magnitudes.float().view(torch.uint8))

    def whole(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the matrix that the codes stand for, (out, in)."""
        return unpacked(self.codes, self.magnitudes, self.shape, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), in the type of x; the backward pass unpacks anew."""
        product: Tensor = _FrozenProduct.apply(x, self.codes, self.magnitudes, self.shape)
        return product


def unpacked(codes: Tensor, magnitudes: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    """Return the matrix, of that shape and type, that the buffers of an `Nf4Weight` stand for."""
    unpack = _operations().dequantize_4bit
    whole: Tensor = unpack(codes, magnitudes.view(torch.float32), BLOCK, "nf4", shape, dtype)
    return whole


class _FrozenProduct(torch.autograd.Function):
    """x W^T that keeps the codes for the backward pass, not the matrix."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, magnitudes: Tensor, shape: list[int]) -> Tensor:
        ctx.save_for_backward(codes, magnitudes)
        ctx.shape = shape
        return F.linear(x, unpacked(codes, magnitudes, shape, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        codes, magnitudes = ctx.saved_tensors
        whole = unpacked(codes, magnitudes, ctx.shape, gradient.dtype)
        return gradient @ whole, None, None, None
