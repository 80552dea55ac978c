"""Rotary position embedding (Su et al. 2021, RoFormer), in the half-split layout of Qwen3.

Shapes: B rows, T tokens, N heads, H head width.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from cygnet.config import ModelConfig
from cygnet.errors import UserError

LLAMA3_FACTORS = (1.0, 4.0)
"""Wavelengths beyond the old context / 1 are stretched, those under the old context / 4 are not."""
YARN_ROTATIONS = (32.0, 1.0)
"""Dimensions that turn more often within the old context than 32 times stay, under once stretch."""


def yarn_config(config: ModelConfig, factor: float) -> ModelConfig:
    """Return the config of the same weights for a context `factor` times as long, by YaRN.

    Raises:
        UserError: the factor is not above 1, or the positions are stretched already.
    """
    if not 1 < factor < math.inf:
        raise UserError(f"yarn_factor is {factor:g}: it must be above 1, such as 4")
    if config.rope_scaling != "none":
        raise UserError(
            f"yarn_factor {factor:g}: this model's positions are stretched already, by "
            f"{config.rope_scaling} {config.rope_factor:g}, to a context of "
            f"{config.max_position:,}; leave yarn_factor out"
        )
    return dataclasses.replace(
        config,
        rope_scaling="yarn",
        rope_factor=factor,
        rope_original_max_position=config.max_position,
        max_position=int(config.max_position * factor),
    )


def rope_frequencies(config: ModelConfig) -> Tensor:
    """Return the inverse frequencies theta^(-2i/H), shape (H/2,), float32, on the CPU.

    Stretched by the config's `rope_scaling`: `linear` divides each by the factor (Chen et al.
    2023, Position Interpolation); `llama3` and `yarn` stretch long wavelengths alone, as the code
    of Llama 3.1 and Peng et al. 2023 (YaRN, section 3.2) do.
    """
    head_dim = config.head_size
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    plain = config.rope_theta**-exponents
    stretched = plain / config.rope_factor
    if config.rope_scaling == "none":
        return plain
    if config.rope_scaling == "linear":
        return stretched
    kept = _llama3_kept(config, plain) if config.rope_scaling == "llama3" else _yarn_kept(config)
    return plain * kept + stretched * (1 - kept)


def rope_score_scale(config: ModelConfig) -> float:
    """Return what YaRN multiplies attention scores with (Peng et al. 2023, equation 15)."""
    if config.rope_scaling != "yarn" or config.rope_factor <= 1:
        return 1.0
    return (0.1 * math.log(config.rope_factor) + 1) ** 2


def _llama3_kept(config: ModelConfig, plain: Tensor) -> Tensor:
    """Return how much of each frequency stays, 0 to 1, shape (H/2,)."""
    assert config.rope_original_max_position is not None
    low, high = LLAMA3_FACTORS
    turns = config.rope_original_max_position * plain / (2 * math.pi)
    return ((turns - low) / (high - low)).clamp(0, 1)


def _yarn_kept(config: ModelConfig) -> Tensor:
    """Return how much of each frequency stays, 0 to 1, shape (H/2,)."""
    assert config.rope_original_max_position is not None
    H, context = config.head_size, config.rope_original_max_position

    def dimension(rotations: float) -> float:
        """Return the pair of dimensions that turns so often within the old context."""
        return H * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    first, last = (dimension(rotations) for rotations in YARN_ROTATIONS)
    begin, end = max(math.floor(first), 0), min(math.ceil(last), H - 1)
    index = torch.arange(H // 2, dtype=torch.float32, device="cpu")
    return 1 - ((index - begin) / max(end - begin, 1e-3)).clamp(0, 1)


def rope_angles(positions_BT: Tensor, inverse_frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of every position's angles, each (B, 1, T, H/2) float32."""
    angles = positions_BT[:, None, :, None].float() * inverse_frequencies
    return angles.cos(), angles.sin()


def apply_rope(x_BNTH: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each head's two halves by its position's angles; shape and dtype stay."""
    a, b = x_BNTH.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x_BNTH.dtype)
