"""Matrices in 8 or 4 bits, for inference: less memory to read for every token.

Only weights are quantized, activations stay in bfloat16; torch's own kernels read the packed form.

int8: one scale for each output, w = q * scale, q in -127..127.
int4: groups of 32 inputs of each output, w = (q - 8) * scale + zero, q in 0..15, where
scale = (max - min) / 15 and zero = min + 8 * scale; both are kept in bfloat16.
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
FEW_ROWS = 32
"""For more rows than this the products are bound by arithmetic, and bfloat16 is faster."""


class QuantizedLinear(nn.Module):
    """A linear layer that keeps its matrix in 8 or 4 bits.

    Args:
        linear: the layer it stands for.
        weights: how its matrix is kept.

    Raises:
        UserError: int4, and the layer's input does not divide into groups.
    """

    def __init__(self, linear: Linear, weights: Weights) -> None:
        super().__init__()
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.is_int4 = weights == "int4"
        weight_OI = linear.weight.detach().float()
        if not self.is_int4:
            scale_O = weight_OI.abs().amax(1).clamp(min=1e-12).div(127).bfloat16()
            codes = (weight_OI / scale_O.float()[:, None]).round().clamp(-127, 127)
            self.codes = nn.Buffer(codes.to(torch.int8))
            self.scale = nn.Buffer(scale_O)
            return
        if self.in_features % GROUP:
            raise UserError(
                f"int4 needs widths that {GROUP} divides, and one is {self.in_features}"
            )
        groups = weight_OI.view(self.out_features, -1, GROUP)
        low, high = groups.amin(2), groups.amax(2)
        scale = ((high - low) / 15).clamp(min=1e-8).bfloat16().float()
        zero = (low + 8 * scale).bfloat16().float()
        codes = ((groups - zero[..., None]) / scale[..., None] + 8).round().clamp(0, 15)
        self.unpacked = nn.Buffer(codes.view_as(weight_OI).to(torch.uint8), persistent=False)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(self.unpacked.int(), 1)
        self.codes = nn.Buffer(packed)
        self.scale = nn.Buffer(
            torch.stack([scale, zero], 2).transpose(0, 1).bfloat16().contiguous()
        )

    @property
    def weight(self) -> Tensor:
        """The matrix that the codes stand for, (out, in) float32."""
        if not self.is_int4:
            return self.codes.float() * self.scale.float()[:, None]
        scale, zero = self.scale.float().transpose(0, 1)[..., None].unbind(2)
        groups = self.unpacked.view(self.out_features, -1, GROUP).float()
        return ((groups - 8) * scale + zero).view(self.out_features, -1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features), bfloat16."""
        rows = x.reshape(-1, self.in_features)
        if len(rows) > FEW_ROWS:
            y = F.linear(rows, self.weight.to(x.dtype))
        elif self.is_int4:
            y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.codes, GROUP, self.scale)
        else:
            y = torch._weight_int8pack_mm(rows, self.codes, self.scale)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.view(*x.shape[:-1], self.out_features)


def quantize(model: Transformer, weights: Weights) -> None:
    """Replace the matrices of a bfloat16 model's blocks; embedding and output stay as they are.

    Raises:
        UserError: the model does not compute in bfloat16, or is not on the CPU.
    """
    if model.compute_dtype != torch.bfloat16 or model.output_weight.device.type != "cpu":
        raise UserError(f"{weights} weights need a model that computes in bfloat16 on the CPU")
    for module in model.modules():
        if isinstance(module, Attention | FeedForward):
            for name, child in list(module.named_children()):
                if isinstance(child, Linear):
                    setattr(module, name, QuantizedLinear(child, weights))
