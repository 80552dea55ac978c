"""How far a student's distribution of the next token is from its teacher's.

Forward KL (Hinton et al. 2015), reverse KL (Gu et al. 2024, "MiniLLM") and the generalised
Jensen-Shannon divergence (Agarwal et al. 2024, "On-Policy Distillation of Language Models",
equation 1), at a temperature, over the whole vocabulary or over the teacher's likeliest tokens.

Shapes: M positions, D hidden width of the student, E of the teacher, V vocabulary, C outcomes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from cygnet.errors import UserError, nearest
from cygnet.model.loss import CHUNK_POSITIONS
from cygnet.text.loader import IGNORE

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]
DISTILLED_POSITIONS = CHUNK_POSITIONS // 2
"""Positions whose logits are in memory at a time: those of two models."""


@dataclass(frozen=True, kw_only=True)
class DistillLossConfig:
    """The loss of a student.

    Raises:
        UserError: a value is out of its range.
    """

    divergence: Divergence = "forward_kl"
    """forward_kl, KL(teacher || student), covers all that the teacher holds possible; reverse_kl,
    KL(student || teacher), avoids what it holds impossible; jsd lies between."""
    jsd_beta: float = 0.5
    """Weight of the teacher in the mixture of jsd: near 0 it is like forward, near 1 like reverse
    KL."""
    temperature: float = 1.0
    """Divides both models' logits in the divergence, which is then multiplied by its square."""
    top_k: int = 0
    """Compare this many of the teacher's likeliest tokens and all others together as one outcome;
    0 compares the whole vocabulary."""
    alpha: float = 0.0
    """Share of the cross-entropy with the text itself; the rest is the divergence."""

    def __post_init__(self) -> None:
        kinds = get_args(Divergence)
        if self.divergence not in kinds:
            raise UserError(
                f"divergence {self.divergence!r}: use one of {', '.join(kinds)}"
                f"{nearest(str(self.divergence), kinds)}"
            )
        if not 0 < self.jsd_beta < 1:
            raise UserError(
                f"jsd_beta is {self.jsd_beta}: it must lie between 0 and 1; at the ends the "
                "divergence is zero, and forward_kl and reverse_kl are what it goes towards"
            )
        if not 0 < self.temperature < math.inf or self.top_k < 0 or not 0 <= self.alpha <= 1:
            raise UserError(
                f"temperature {self.temperature} must be above zero, top_k {self.top_k} not below "
                f"zero, alpha {self.alpha} in [0, 1]"
            )


def divergence(
    teacher_MC: Tensor, student_MC: Tensor, config: DistillLossConfig
) -> tuple[Tensor, Tensor]:
    """Return the divergence of each position, (M,), and q dD/dq for each outcome, (M, C).

    Args:
        teacher_MC: log p, log-probabilities of the outcomes.
        student_MC: log q.
        config: which divergence.
    """
    p, q = teacher_MC.exp(), student_MC.exp()
    if config.divergence == "forward_kl":
        return (p * (teacher_MC - student_MC)).sum(-1), -p
    if config.divergence == "reverse_kl":
        # The 1 that d(q log q) leaves is a constant over the outcomes, and falls out below.
        slope = q * (student_MC - teacher_MC)
        return slope.sum(-1), slope
    beta = config.jsd_beta
    mixture_MC = torch.logaddexp(teacher_MC + math.log(beta), student_MC + math.log1p(-beta))
    slope = (1 - beta) * q * (student_MC - mixture_MC)
    return beta * (p * (teacher_MC - mixture_MC)).sum(-1) + slope.sum(-1), slope


def divergence_gradient(
    teacher_MV: Tensor, student_MV: Tensor, config: DistillLossConfig
) -> tuple[Tensor, Tensor]:
    """Return T^2 times the divergence at temperature T, (M,), and its gradient, (M, V).

    T^2 keeps the gradient's size as the temperature changes (Hinton et al. 2015, section 2.1).

    Args:
        teacher_MV, student_MV: logits; the gradient is with respect to the latter.
        config: which divergence.
    """
    scale = config.temperature
    if scale != 1:
        teacher_MV, student_MV = teacher_MV / scale, student_MV / scale
    log_p, log_q = teacher_MV.log_softmax(-1), student_MV.log_softmax(-1)
    if not 0 < config.top_k < teacher_MV.shape[1] - 1:
        losses, slope = divergence(log_p, log_q, config)
        gradient = slope
    else:
        top_MK = log_p.topk(config.top_k, sorted=False).indices
        outcomes = with_rest(log_q, top_MK)
        losses, slope = divergence(with_rest(log_p, top_MK), outcomes, config)
        # Within the rest, what its outcome gets is shared as the student's own probabilities are.
        gradient = torch.exp(log_q - outcomes[:, -1:]) * slope[:, -1:]
        gradient = gradient.scatter(1, top_MK, slope[:, :-1])
    gradient = torch.addcmul(gradient, log_q.exp(), slope.sum(-1, keepdim=True), value=-1)
    return scale**2 * losses, gradient if scale == 1 else scale * gradient


def with_rest(log_probs_MV: Tensor, top_MK: Tensor) -> Tensor:
    """Return the log-probabilities of some tokens and of all others together, (M, K + 1).

    So both models' outcomes have all of the mass: the divergence over them is zero for equal
    models alone as far as these tokens go, and never above that over the whole vocabulary.
    """
    rest = log_probs_MV.scatter(1, top_MK, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_probs_MV.gather(1, top_MK), rest], dim=1)


def distillation_gradient(
    teacher_MV: Tensor,
    student_MV: Tensor,
    labels_M: Tensor,
    alpha_M: Tensor,
    config: DistillLossConfig,
) -> tuple[Tensor, Tensor]:
    """Return the sums (loss, divergence, cross-entropy), (3,), and the gradient of the first.

    The loss of a position is alpha cross-entropy + (1 - alpha) T^2 divergence.

    Args:
        teacher_MV, student_MV: logits in the compute type; the gradient has the latter's.
        labels_M: int64; IGNORE asks for no loss.
        alpha_M: share of the cross-entropy at each position, `config.alpha` or zero.
        config: which divergence.
    """
    exact = torch.promote_types(student_MV.dtype, torch.float32)
    student, counted = student_MV.to(exact), labels_M != IGNORE
    apart, gradient = divergence_gradient(teacher_MV.to(exact), student, config)
    target = labels_M.clamp(min=0)[:, None]
    normaliser = student.logsumexp(-1, keepdim=True)
    cross_entropy = (normaliser - student.gather(1, target)).squeeze(1)
    of_text, of_teacher = (
        torch.where(counted, share, 0.0)[:, None] for share in (alpha_M, 1 - alpha_M)
    )
    gradient = gradient * of_teacher
    if config.alpha:
        gradient = torch.addcmul(gradient, torch.exp(student - normaliser), of_text)
        gradient = gradient.scatter_add(1, target, -of_text)
    loss = alpha_M * cross_entropy + (1 - alpha_M) * apart
    sums = torch.where(counted, torch.stack([loss, apart, cross_entropy]), 0.0).sum(1)
    return sums, gradient.to(student_MV.dtype)


DistillKernel = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""`distillation_gradient` with its config, perhaps compiled."""


class _LinearDistillation(torch.autograd.Function):
    """Loss and gradients chunk by chunk in the forward pass, as `model.loss` has it: of the logits
    of both models nothing of size M x V outlives a chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        teacher_hidden_ME: Tensor,
        teacher_weight_VE: Tensor,
        labels_M: Tensor,
        alpha_M: Tensor,
        kernel: DistillKernel,
    ) -> tuple[Tensor, Tensor]:
        weight = weight_VD.to(hidden_MD.dtype)
        teacher_weight = teacher_weight_VE.to(teacher_hidden_ME.dtype)
        exact = torch.promote_types(hidden_MD.dtype, torch.float32)
        sums = torch.zeros(3, dtype=exact, device=hidden_MD.device)
        hidden_gradient = torch.empty_like(hidden_MD)
        weight_gradient = torch.zeros_like(weight_VD, dtype=exact)
        for start in range(0, hidden_MD.shape[0], DISTILLED_POSITIONS):
            rows = slice(start, start + DISTILLED_POSITIONS)
            found, logit_gradient = kernel(
                F.linear(teacher_hidden_ME[rows], teacher_weight),
                F.linear(hidden_MD[rows], weight),
                labels_M[rows],
                alpha_M[rows],
            )
            sums += found
            torch.mm(logit_gradient, weight, out=hidden_gradient[rows])
            weight_gradient += logit_gradient.T @ hidden_MD[rows]
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        loss, others = sums[0].clone(), sums[1:].clone()
        ctx.mark_non_differentiable(others)
        return loss, others

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        by_hidden = hidden_gradient * grad.to(hidden_gradient.dtype)
        return by_hidden, weight_gradient * grad, None, None, None, None, None


def linear_distillation(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    teacher_hidden_ME: Tensor,
    teacher_weight_VE: Tensor,
    labels_M: Tensor,
    alpha_M: Tensor,
    kernel: DistillKernel,
) -> tuple[Tensor, Tensor]:
    """Return the summed loss, a scalar to differentiate, and summed (divergence, cross-entropy).

    Args:
        hidden_MD, weight_VD: hidden states and output matrix of the student.
        teacher_hidden_ME, teacher_weight_VE: the same of the teacher; they get no gradient.
        labels_M: (M,) int64 token ids; IGNORE asks for no loss.
        alpha_M: (M,) share of the cross-entropy at each position.
        kernel: `distillation_gradient` with its config.
    """
    found: tuple[Tensor, Tensor] = _LinearDistillation.apply(
        hidden_MD, weight_VD, teacher_hidden_ME, teacher_weight_VE, labels_M, alpha_M, kernel
    )
    return found
