"""Matrices in 8 or 4 bits, for inference: less memory to read for every token.

Only weights are quantized; `cpp/forward.cpp` unpacks them as it multiplies.

int8: one scale for each output, w = code * scale, code in -127..127.
int4: groups of 32 inputs of each output, w = code * scale + zero, code in 0..15, where
scale = (max - min) / 15 and zero = min.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cygnet.errors import UserError
from cygnet.model.transformer import Attention, FeedForward, Linear, Transformer

Weights = Literal["float", "int8", "int4"]
GROUP = 32


class QuantizedLinear(nn.Module):
    """A linear layer that keeps its matrix in 8 or 4 bits.

    Args:
        linear: the layer it stands for.
        weights: how its matrix is kept.

    Attributes:
        codes: int8 (out, in), or uint8 (out, in / 2): in each 16 bytes a group's first 16 codes
            in the low halves, the others in the high ones.
        scale: float32, (out,) or (out, in / 32).
        zero: float32 (out, in / 32), of int4 alone.

    Raises:
        UserError: int4, and the layer's input does not divide into groups.
    """

    def __init__(self, linear: Linear, weights: Weights) -> None:
        super().__init__()
        self.bias = linear.bias
        self.weights = weights
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight_OI = linear.weight.detach().float()
        self.zero: Tensor | None
        if weights == "int8":
            self.scale = nn.Buffer(weight_OI.abs().amax(1).clamp(min=1e-12).div(127))
            codes = (weight_OI / self.scale[:, None]).round().clamp(-127, 127)
            self.codes = nn.Buffer(codes.to(torch.int8))
            self.zero = None
            return
        if self.in_features % GROUP:
            raise UserError(
                f"int4 needs widths that {GROUP} divides, and one is {self.in_features}"
            )
        groups = weight_OI.view(self.out_features, -1, GROUP)
        low, high = groups.amin(2), groups.amax(2)
        self.scale = nn.Buffer(((high - low) / 15).clamp(min=1e-12))
        self.zero = nn.Buffer(low)
        codes = ((groups - low[..., None]) / self.scale[..., None]).round().clamp(0, 15)
        first, second = codes.to(torch.uint8).chunk(2, dim=2)
        self.codes = nn.Buffer((first | second << 4).view(self.out_features, -1))

    @property
    def weight(self) -> Tensor:
        """The matrix that the codes stand for, (out, in) float32."""
        if self.zero is None:
            return self.codes.float() * self.scale[:, None]
        packed = self.codes.view(self.out_features, -1, GROUP // 2)
        groups = torch.cat((packed & 15, packed >> 4), dim=2).float()
        return (groups * self.scale[..., None] + self.zero[..., None]).view(self.out_features, -1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features); unpacks the whole matrix."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


def quantize(model: Transformer, weights: Weights) -> None:
    """Replace the matrices of a model's blocks; embedding and output stay as they are.

    Raises:
        UserError: the model is not on the CPU, or see `QuantizedLinear`.
    """
    if model.output_weight.device.type != "cpu":
        raise UserError(f"{weights} weights are for the CPU; leave them float on a GPU")
    for module in model.modules():
        if isinstance(module, Attention | FeedForward):
            for name, child in list(module.named_children()):
                if isinstance(child, Linear):
                    setattr(module, name, QuantizedLinear(child, weights))
