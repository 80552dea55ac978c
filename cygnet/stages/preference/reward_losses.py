"""What a reward model is trained by: comparisons, or ratings on a scale.

Shapes: P pairs, D conversations, K levels of a scale.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, margin: Tensor | None = None, center_coef: float = 0.0
) -> Tensor:
    """Return -log sigmoid(chosen - rejected - margin) + center_coef (chosen + rejected)^2, (P,).

    The model of Bradley and Terry 1952 as a loss: equation 1 of Ouyang et al. 2022
    (arXiv 2203.02155); with a margin, equation 2 of Touvron et al. 2023 (Llama 2, arXiv
    2307.09288); the second term, which keeps the scores around zero where comparisons alone leave
    them free to drift, is equation 2 of Eisenstein et al. 2023 (arXiv 2312.09244).

    Args:
        chosen, rejected: scores of the two sides, (P,).
        margin: by how much the chosen side should lead, (P,); none is zero.
        center_coef: weight of the second term.
    """
    lead = chosen - rejected if margin is None else chosen - rejected - margin
    return -F.logsigmoid(lead) + center_coef * (chosen + rejected).square()


def ordinal_loss(scores: Tensor, levels: Tensor, thresholds: Tensor) -> Tensor:
    """Return -log p(level | score), (D,): the proportional-odds model (McCullagh 1980, section 2).

    p(level <= k) = sigmoid(threshold_k - score). Only the order of the ratings counts, not how
    far they lie apart, and a scale whose raters crowd at one value does no harm.

    Args:
        scores: (D,).
        levels: (D,) int64, 0 to K - 1.
        thresholds: (K - 1,) increasing; see `scale_thresholds`.
    """
    edge = thresholds.new_full((1,), torch.inf)
    edges = torch.cat([-edge, thresholds, edge])
    lower, upper = edges[levels], edges[levels + 1]
    # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), which cancels nothing.
    spacing = torch.log(-torch.expm1(lower - upper))
    return -F.logsigmoid(upper - scores) - F.logsigmoid(scores - lower) - spacing


def scale_thresholds(levels: Tensor, num_levels: int) -> Tensor:
    """Return the (K - 1,) float64 thresholds at which a score of zero gives the levels' shares.

    They are fixed, not learnt: one number a conversation is all that a sequence classifier of one
    label holds. Every level must occur.
    """
    shares = torch.bincount(levels, minlength=num_levels).double() / len(levels)
    return torch.logit(shares.cumsum(0)[:-1])


def level_shares(scores: Tensor, thresholds: Tensor) -> Tensor:
    """Return p(level | score), (D, K) float64."""
    below = torch.sigmoid(thresholds.double() - scores.double()[:, None])
    ones = below.new_ones(len(scores), 1)
    return torch.cat([below, ones], 1) - torch.cat([0 * ones, below], 1)


def preference_share(better: Tensor, worse: Tensor, thresholds: Tensor | None = None) -> Tensor:
    """Return how sure the model is that the first of two is better, (P,) float64.

    Of comparisons: sigmoid of the difference. Of ratings: the probability that the first gets the
    higher level, given that they get different ones.

    Args:
        better, worse: scores, (P,).
        thresholds: of the scale, for a model of ratings.
    """
    if thresholds is None:
        return torch.sigmoid(better.double() - worse.double())
    first, second = level_shares(better, thresholds), level_shares(worse, thresholds)
    above = (first * (second.cumsum(1) - second)).sum(1)
    below = (second * (first.cumsum(1) - first)).sum(1)
    return above / (above + below)
