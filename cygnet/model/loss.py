"""Losses over a large vocabulary without a large logits tensor.

Shapes: M positions, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cygnet.text.loader import IGNORE

CHUNK_POSITIONS = 2048
Kernel = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def softmax_gradient(logits_MV: Tensor, labels_M: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy (float32) and its gradient in the type of the logits."""
    logits = logits_MV.float()
    log_normaliser = logits.logsumexp(-1, keepdim=True)
    counted = labels_M != IGNORE
    target = labels_M.clamp(min=0)[:, None]
    losses = (log_normaliser - logits.gather(1, target)).squeeze(1)
    probability = torch.exp(logits - log_normaliser)
    is_target = torch.arange(logits.shape[1], device=logits.device) == target
    gradient = torch.where(counted[:, None], probability - is_target.float(), 0.0)
    return torch.where(counted, losses, 0.0).sum(), gradient.to(logits_MV.dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradients chunk by chunk in the forward pass, while the logits are at hand.

    The logits of a chunk are needed once, so nothing of size M x V outlives it. The idea is that
    of Hsu et al. 2024 (Liger Kernel), section 3.2.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, labels_M: Tensor, kernel: Kernel
    ) -> Tensor:
        weight = weight_VD.to(hidden_MD.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden_MD.device)
        hidden_gradient = torch.empty_like(hidden_MD)
        weight_gradient = torch.zeros_like(weight_VD, dtype=torch.float32)
        for start in range(0, hidden_MD.shape[0], CHUNK_POSITIONS):
            rows = slice(start, start + CHUNK_POSITIONS)
            loss, logit_gradient = kernel(F.linear(hidden_MD[rows], weight), labels_M[rows])
            total += loss
            torch.mm(logit_gradient, weight, out=hidden_gradient[rows])
            weight_gradient += logit_gradient.T @ hidden_MD[rows]
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return (
            hidden_gradient * grad.to(hidden_gradient.dtype),
            weight_gradient * grad,
            None,
            None,
        )


def linear_cross_entropy(
    hidden_MD: Tensor, weight_VD: Tensor, labels_M: Tensor, kernel: Kernel = softmax_gradient
) -> Tensor:
    """Return the summed cross-entropy of `hidden @ weight.T` against `labels`, a float32 scalar.

    Args:
        hidden_MD: (M, D) hidden states in the compute dtype.
        weight_VD: (V, D) output matrix.
        labels_M: (M,) int64 token ids; IGNORE asks for no loss.
        kernel: `softmax_gradient`, or that function compiled; not used where no gradient is wanted.
    """
    if torch.is_grad_enabled():
        return _LinearCrossEntropy.apply(hidden_MD, weight_VD, labels_M, kernel)
    weight = weight_VD.to(hidden_MD.dtype)
    chunks = zip(hidden_MD.split(CHUNK_POSITIONS), labels_M.split(CHUNK_POSITIONS), strict=True)
    total = torch.zeros((), dtype=torch.float32, device=hidden_MD.device)
    for hidden, labels in chunks:
        total -= token_log_probs(F.linear(hidden, weight).float(), labels).sum()
    return total


def token_log_probs(logits_MV: Tensor, labels_M: Tensor) -> Tensor:
    """Return log p(label), (M,) float32, and zero where the label is IGNORE."""
    chosen = logits_MV.gather(-1, labels_M.clamp(min=0)[:, None]).squeeze(-1)
    return torch.where(labels_M != IGNORE, chosen - logits_MV.logsumexp(-1), 0.0)


def chunked_log_probs(
    logits: Callable[[Tensor], Tensor],
    hidden_MD: Tensor,
    labels_M: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """Return log p(label), (M,) float32; only the logits of one chunk are in memory at a time.

    Their gradient needs that of the whole loss, so the backward pass computes them again.

    Args:
        logits: maps hidden states (m, D) to logits (m, V), as `Transformer.logits` does.
        hidden_MD: (M, D).
        labels_M: (M,) int64.
        temperature: divides the logits.
    """

    def one(hidden: Tensor, labels: Tensor) -> Tensor:
        return token_log_probs(logits(hidden) / temperature, labels)

    chunks = zip(hidden_MD.split(CHUNK_POSITIONS), labels_M.split(CHUNK_POSITIONS), strict=True)
    return torch.cat([checkpoint(one, *chunk, use_reentrant=False) for chunk in chunks])


def chunked_entropy(
    logits: Callable[[Tensor], Tensor], hidden_MD: Tensor, temperature: float = 1.0
) -> Tensor:
    """Return the entropy in nats of each position's distribution, (M,) float32.

    Args: as those of `chunked_log_probs`.
    """

    def one(hidden: Tensor) -> Tensor:
        log_probs = (logits(hidden) / temperature).log_softmax(-1)
        return -(log_probs.exp() * log_probs).sum(-1)

    chunks = hidden_MD.split(CHUNK_POSITIONS)
    return torch.cat([checkpoint(one, hidden, use_reentrant=False) for hidden in chunks])
