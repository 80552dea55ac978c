"""How the learning rate moves over a run."""

from __future__ import annotations

import math

from cygnet.config import TrainConfig


def rate_scale(step: int, total_steps: int, config: TrainConfig) -> float:
    """Return what the peak learning rate is multiplied by at `step` of `total_steps` (from zero).

    Linear warm-up, then by `config.schedule`: `wsd` stays at one and falls linearly to zero over
    the last `decay_share` of the steps (Hu et al. 2024, MiniCPM, section 4), `cosine` falls to
    zero along half a cosine, `constant` stays.
    """
    warmup_steps = math.ceil(config.warmup_share * total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    left = (total_steps - step) / max(total_steps - warmup_steps, 1)
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "cosine":
        return 0.5 * (1 - math.cos(math.pi * left))
    decay_steps = max(round(config.decay_share * total_steps), 1)
    return min(1.0, (total_steps - step) / decay_steps)
