"""The formulas of PPO with a learnt reward: rewards of tokens, advantages, losses, the KL's weight.

Plain functions of tensors, any float type, on any device. Sources:
[O] Ouyang et al. 2022, "Training language models to follow instructions with human feedback".
[Z] Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences".
[G] Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage
    Estimation".
[P] Schulman et al. 2017, "Proximal Policy Optimization Algorithms".

Shapes: N answers, A tokens of the longest, M tokens of all.
"""

from __future__ import annotations

import torch
from torch import Tensor

KL_GAIN = 0.1
KL_LARGEST_ERROR = 0.2
VARIANCE_FLOOR = 1e-8


def token_rewards(
    scores_N: Tensor,
    log_probs_NA: Tensor,
    reference_NA: Tensor,
    is_token_NA: Tensor,
    kl_coef: float,
) -> Tensor:
    """Return the reward of each token, (N, A), zero behind an answer's end.

    Each token costs `kl_coef` times its log-ratio to the reference, and the last one also earns
    the answer's score: [Z] equation 2, [O] equation 2 (without pretraining data).

    Args:
        scores_N: what the reward model gives each answer, (N,).
        log_probs_NA, reference_NA: of the tokens, under the policy that drew them and under the
            reference, (N, A).
        is_token_NA: true for the tokens of an answer, which stand first in its row, (N, A).
        kl_coef: beta of both papers.
    """
    rewards_NA = torch.where(is_token_NA, -kl_coef * (log_probs_NA - reference_NA), 0.0)
    last_N1 = is_token_NA.sum(1, keepdim=True) - 1
    return rewards_NA.scatter_add(1, last_N1, scores_N[:, None].to(rewards_NA.dtype))


def generalized_advantages(
    rewards_NA: Tensor, values_NA: Tensor, is_token_NA: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Return advantages and returns, (N, A) each, zero behind an answer's end.

    [G] equation 16, from the last token to the first; the value behind the last token is zero.
    A token's return is its advantage plus its value, the target of the value function.

    Args:
        rewards_NA: of each token, (N, A).
        values_NA: what was expected before each token, (N, A).
        is_token_NA: see `token_rewards`.
        gamma: discount of a later reward.
        gae_lambda: trust in what came against what the values had foretold, 0 to 1.
    """
    advantages_NA = torch.zeros_like(rewards_NA)
    next_value_N = next_advantage_N = torch.zeros_like(rewards_NA[:, 0])
    for at in range(rewards_NA.shape[1] - 1, -1, -1):
        surprise_N = rewards_NA[:, at] + gamma * next_value_N - values_NA[:, at]
        advantage_N = surprise_N + gamma * gae_lambda * next_advantage_N
        is_token_N = is_token_NA[:, at]
        next_advantage_N = advantages_NA[:, at] = torch.where(is_token_N, advantage_N, 0.0)
        next_value_N = torch.where(is_token_N, values_NA[:, at], 0.0)
    return advantages_NA, torch.where(is_token_NA, advantages_NA + values_NA, 0.0)


def whitened(values_M: Tensor) -> Tensor:
    """Return values shifted to mean 0 and scaled to variance 1, (M,); equal ones become 0."""
    centred_M = values_M - values_M.mean()
    return centred_M * torch.rsqrt(centred_M.square().mean() + VARIANCE_FLOOR)


def clipped_surrogate(
    log_probs_M: Tensor, old_log_probs_M: Tensor, advantages_M: Tensor, clip_range: float
) -> tuple[Tensor, Tensor]:
    """Return the policy's loss for each token, and whether clipping took its gradient, (M,) each.

    [P] equation 7, negated.

    Args:
        log_probs_M: of the tokens, under the policy that learns.
        old_log_probs_M: under the policy that drew them.
        advantages_M: of the tokens.
        clip_range: epsilon; beyond a ratio of 1 +- epsilon a token earns no more.
    """
    ratio_M = torch.exp(log_probs_M - old_log_probs_M)
    free_M = -advantages_M * ratio_M
    held_M = -advantages_M * ratio_M.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(free_M, held_M), held_M > free_M


def clipped_value_loss(
    values_M: Tensor, old_values_M: Tensor, returns_M: Tensor, clip_range: float
) -> tuple[Tensor, Tensor]:
    """Return the value function's loss for each token, and whether it was clipped, (M,) each.

    Half the squared error, or that of the value moved by at most `clip_range` where it is larger:
    the rule of the code that [P] came with (OpenAI Baselines, `ppo2`), and of [Z]'s.
    """
    held_M = old_values_M + (values_M - old_values_M).clamp(-clip_range, clip_range)
    free_loss_M = (values_M - returns_M).square()
    held_loss_M = (held_M - returns_M).square()
    return 0.5 * torch.maximum(free_loss_M, held_loss_M), held_loss_M > free_loss_M


def next_kl_coef(kl_coef: float, kl: float, target_kl: float) -> float:
    """Return the weight of the KL for the next rollout: [Z] section 2.2.

    Args:
        kl_coef: the weight of this rollout.
        kl: mean over answers of the summed log-ratio to the reference.
        target_kl: where it is steered to, in the same unit.
    """
    error = min(max(kl / target_kl - 1, -KL_LARGEST_ERROR), KL_LARGEST_ERROR)
    return kl_coef * (1 + KL_GAIN * error)


def explained_variance(values_M: Tensor, returns_M: Tensor) -> float:
    """Return 1 - Var(returns - values) / Var(returns); 0 where all returns are equal.

    1 is a perfect forecast, 0 one no better than a constant, below 0 a worse one.
    """
    spread = returns_M.var(correction=0)
    left = (returns_M - values_M).var(correction=0)
    return 1 - float(left / spread) if spread > 0 else 0.0
