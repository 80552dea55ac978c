"""Losses that learn from preferences, each a plain function of log-probabilities.

Shapes: P pairs, N answers. A log-probability of an answer is the sum over its tokens, and a mean
one that sum over their number. Results are in the type of what is given.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return the loss of each pair and its margin, both (P,).

    Equation 7 of Rafailov et al. 2023; with label smoothing it is cDPO, equation 3 of Mitchell
    2023. Of mean log-probabilities it is the length-normalised DPO of Lambert et al. 2024 (Tulu 3,
    equation 6), and with zeros for the reference the one without a reference.

    Args:
        policy_chosen, policy_rejected: log-probabilities of the answers, (P,).
        reference_chosen, reference_rejected: the same under the reference.
        beta: scale of the implicit reward.
        label_smoothing: probability that a preference is the wrong way round.
    """
    margin = beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected))
    loss = -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)
    return loss, margin


def ipo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """Return the loss of each pair and its margin, both (P,).

    Equation 17 of Azar et al. 2023, whose tau is `beta`: the log-ratio is to become 1 / (2 tau)
    and no more, however sure a preference is.

    Args:
        policy_chosen, policy_rejected: log-probabilities of the answers, (P,), or mean ones.
        reference_chosen, reference_rejected: the same under the reference.
        beta: tau.
    """
    ratio = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    return (ratio - 1 / (2 * beta)).square(), beta * ratio


def simpo_loss(
    chosen_mean: Tensor, rejected_mean: Tensor, beta: float, gamma: float
) -> tuple[Tensor, Tensor]:
    """Return the loss of each pair and its margin, both (P,).

    Equation 6 of Meng et al. 2024.

    Args:
        chosen_mean, rejected_mean: mean log-probabilities of the answers, (P,).
        beta: scale of the reward.
        gamma: by how much the chosen answer's reward is to be the larger.
    """
    margin = beta * (chosen_mean - rejected_mean)
    return -F.logsigmoid(margin - gamma), margin


def orpo_loss(chosen_mean: Tensor, rejected_mean: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return the weighted loss of each pair's odds and the log of their ratio, both (P,).

    The second term of equation 6 of Hong et al. 2024, lambda L_OR, with L_OR of equation 7 and the
    odds P / (1 - P) of equation 4; its first term is the chosen answer's own loss.

    Args:
        chosen_mean, rejected_mean: mean log-probabilities of the answers, (P,), below zero.
        beta: lambda.
    """
    log_odds = (chosen_mean - _log_complement(chosen_mean)) - (
        rejected_mean - _log_complement(rejected_mean)
    )
    return -beta * F.logsigmoid(log_odds), log_odds


def _log_complement(log_probs: Tensor) -> Tensor:
    """Return log(1 - exp(x)) for x < 0, right to rounding at both ends (Mächler 2012)."""
    # An answer that is certain, to rounding, has odds without end.
    log_probs = log_probs.clamp(max=-torch.finfo(log_probs.dtype).tiny)
    near_zero = log_probs > -math.log(2)
    # Near zero the second form is log(0), whose gradient is no number even where it is not taken.
    large = torch.where(near_zero, -1.0, log_probs)
    return torch.where(
        near_zero, torch.log(-torch.expm1(log_probs)), torch.log1p(-torch.exp(large))
    )


def kto_loss(
    policy: Tensor,
    reference: Tensor,
    is_desirable: Tensor,
    baseline: Tensor,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return the loss of each answer and its reward over the baseline's, both (N,).

    Equation 7 of Ethayarajh et al. 2024, lambda_y - v(x, y).

    Args:
        policy, reference: log-probabilities of the answers, (N,).
        is_desirable: (N,) bool.
        baseline: z_0 of `kto_baseline`, a number or (N,); no gradient goes through it.
        beta: how fast the value of an answer levels off.
        desirable_weight, undesirable_weight: lambda_D and lambda_U.
    """
    reward = beta * (policy - reference - baseline.detach())
    weight = torch.where(is_desirable, desirable_weight, undesirable_weight).to(reward.dtype)
    return weight * (1 - torch.sigmoid(torch.where(is_desirable, reward, -reward))), reward


def kto_baseline(sum_of_ratios: float, count: int) -> float:
    """Return z_0, the KL divergence from the reference that a batch's answers are seen against.

    The estimate of Ethayarajh et al. 2024, section 4.1: the mean of log(policy / reference) over
    answers to other prompts than their own, no less than zero.

    Args:
        sum_of_ratios: over such answers.
        count: of them; without any the baseline is zero.
    """
    return max(sum_of_ratios / count, 0.0) if count else 0.0
