"""Rotary position embedding (Su et al. 2021, RoFormer), in the half-split layout of Qwen3.

Shapes: B rows, T tokens, N heads, H head width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rope_frequencies(head_dim: int, theta: float) -> Tensor:
    """Return the inverse frequencies theta^(-2i/H), shape (H/2,), float32, on the CPU."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    return theta**-exponents


def rope_angles(positions_BT: Tensor, inverse_frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of every position's angles, each (B, 1, T, H/2) float32."""
    angles = positions_BT[:, None, :, None].float() * inverse_frequencies
    return angles.cos(), angles.sin()


def apply_rope(x_BNTH: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each head's two halves by its position's angles; shape and dtype stay."""
    a, b = x_BNTH.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x_BNTH.dtype)
