"""The losses of reinforcement learning from groups of answers, as plain functions.

GRPO (Shao et al. 2024, "DeepSeekMath", arXiv 2402.03300), Dr. GRPO (Liu et al. 2025,
"Understanding R1-Zero-Like Training", 2503.20783), DAPO (Yu et al. 2025, 2503.14476), CISPO
(MiniMax 2025, "MiniMax-M1", 2506.13585), GSPO (Zheng et al. 2025, 2507.18071). All take the
advantage of an answer over its group; they differ in what is clipped, and in how tokens are
averaged.

Shapes: M tokens that the model drew, E episodes, G answers of a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LossName = Literal["grpo", "dr_grpo", "dapo", "cispo", "gspo"]
STD_FLOOR = 1e-4
"""Added to a group's deviation before it divides."""


@dataclass(frozen=True, slots=True)
class LossKind:
    """What tells one loss from another."""

    clip_range: float
    """Default: how far below 1 a ratio counts."""
    clip_range_high: float
    """Default: how far above 1 it counts."""
    by_std: bool = True
    """Advantages are divided by their group's deviation."""
    mean: Literal["episode", "token", "constant"] = "episode"
    """Tokens are averaged in each episode and then over episodes, all alike, or summed and divided
    by the longest answer's length."""
    ratio: Literal["token", "sequence"] = "token"
    """Whose probability is compared."""
    clips: Literal["objective", "weight"] = "objective"
    """Clipped is the objective, whose gradient then vanishes, or the weight of the gradient."""


KINDS: dict[LossName, LossKind] = {
    "grpo": LossKind(0.2, 0.2),
    "dr_grpo": LossKind(0.2, 0.2, by_std=False, mean="constant"),
    "dapo": LossKind(0.2, 0.28, mean="token"),
    # The paper tunes the upper bound alone: a lower bound of 1 - 1 is none.
    "cispo": LossKind(1.0, 4.0, mean="token", clips="weight"),
    "gspo": LossKind(3e-4, 4e-4, ratio="sequence"),
}


def group_advantages(rewards_G: Tensor, by_std: bool) -> Tensor:
    """Return how much better than its group each answer is, (G,): its reward less the mean.

    Section 4.1.2 of Shao et al. 2024, there divided by the group's standard deviation; equation 3
    of Liu et al. 2025 leaves that out. All zero where all rewards are equal.
    """
    centred_G = rewards_G - rewards_G.mean()
    if rewards_G.max() == rewards_G.min():
        return torch.zeros_like(rewards_G)
    return centred_G / (rewards_G.std() + STD_FLOOR) if by_std else centred_G


def overlong_penalty(num_tokens: int, longest: int, buffer: int) -> float:
    """Return the penalty of a long answer, 0 to -1: equation 13 of Yu et al. 2025.

    Args:
        num_tokens: of the answer.
        longest: at which an answer is cut.
        buffer: over so many tokens before that, the penalty grows from 0 to -1.
    """
    return min(0.0, max(-1.0, (longest - buffer - num_tokens) / buffer)) if buffer else 0.0


def clipped_objective(
    ratio: Tensor, advantages: Tensor, clip_range: float, clip_range_high: float
) -> Tensor:
    """Return -min(r A, clip(r) A): equation 3 of Shao et al. 2024, with both bounds equation 8 of
    Yu et al. 2025."""
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def clipped_weight(
    log_probs: Tensor,
    ratio: Tensor,
    advantages: Tensor,
    clip_range: float,
    clip_range_high: float,
) -> Tensor:
    """Return -sg(clip(r)) A log p: equations 4 and 5 of MiniMax 2025."""
    weight = ratio.detach().clamp(1 - clip_range, 1 + clip_range_high)
    return -weight * advantages * log_probs


def sequence_log_ratio(log_ratio_M: Tensor, document_M: Tensor) -> Tensor:
    """Return the mean log ratio of each token's episode, (M,): equation 7 of Zheng et al. 2025.

    Args:
        log_ratio_M: of each token.
        document_M: int64, which episode it belongs to.
    """
    num = int(document_M.max()) + 1 if len(document_M) else 0
    sums = log_ratio_M.new_zeros(num).index_add(0, document_M, log_ratio_M)
    counts = log_ratio_M.new_zeros(num).index_add(0, document_M, torch.ones_like(log_ratio_M))
    return (sums / counts.clamp(min=1))[document_M]


def k3_kl(log_probs: Tensor, reference: Tensor) -> Tensor:
    """Return the estimate of KL(policy || reference) at each token: equation 4 of Shao et al. 2024
    (k3 of Schulman 2020), unbiased and never below zero."""
    log_ratio = reference - log_probs
    return log_ratio.exp() - log_ratio - 1


def importance_weights(old: Tensor, sampled: Tensor, cap: float) -> Tensor:
    """Return min(p_training / p_sampling, cap): truncated importance sampling, equation 4 of
    Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training".

    Args:
        old: log-probabilities of the tokens when they were drawn, as training computes them.
        sampled: as they were drawn.
        cap: largest weight.
    """
    return (old - sampled).exp().clamp(max=cap).detach()


def policy_losses(
    kind: LossKind,
    log_probs_M: Tensor,
    old_M: Tensor,
    advantages_M: Tensor,
    document_M: Tensor,
    clip_range: float,
    clip_range_high: float,
) -> tuple[Tensor, Tensor]:
    """Return each token's loss and whether clipping holds it, both (M,).

    Args:
        kind: of `KINDS`.
        log_probs_M: of the policy that learns.
        old_M: of the policy that drew, in the same precision.
        advantages_M: of each token's episode.
        document_M: int64, which episode that is.
        clip_range: see `LossKind`.
        clip_range_high: see `LossKind`.
    """
    log_ratio_M = log_probs_M - old_M
    if kind.ratio == "sequence":
        log_ratio_M = sequence_log_ratio(log_ratio_M, document_M)
    ratio_M = log_ratio_M.exp()
    bounds = (clip_range, clip_range_high)
    above, below = ratio_M > 1 + clip_range_high, ratio_M < 1 - clip_range
    if kind.clips == "weight":
        return clipped_weight(log_probs_M, ratio_M, advantages_M, *bounds), above | below
    is_held = (above & (advantages_M > 0)) | (below & (advantages_M < 0))
    return clipped_objective(ratio_M, advantages_M, *bounds), is_held


def token_shares(kind: LossKind, counts_E: Tensor, longest: int) -> Tensor:
    """Return the weight of each token of an episode in the mean over all of a step, (E,) float32.

    Args:
        kind: of `KINDS`.
        counts_E: tokens that the model drew in each episode of the step.
        longest: of an answer.
    """
    counts_E = counts_E.float()
    if kind.mean == "token":
        return (1 / counts_E.sum().clamp(min=1)).expand(len(counts_E))
    if kind.mean == "constant":
        return torch.full_like(counts_E, 1 / (longest * max(len(counts_E), 1)))
    return 1 / (counts_E.clamp(min=1) * max(len(counts_E), 1))
