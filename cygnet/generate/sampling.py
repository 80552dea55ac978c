"""How the next token is chosen from the logits.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cygnet.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

FIRST_LOOK = 256


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an answer is drawn.

    Raises:
        UserError: a value is out of its range.
    """

    temperature: float = 0.8
    """Divides the logits; 0 always takes the likeliest token."""
    top_p: float = 0.95
    """Keep the likeliest tokens that together have this probability; 1 keeps all."""
    top_k: int = 0
    """Keep this many of the likeliest tokens; 0 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this times as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that occurred before become less likely."""
    max_new_tokens: int = 512
    """Longest answer in tokens; the context's end also ends it."""
    seed: int | None = 0
    """The same seed gives the same answer; none draws a fresh one each time."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer."""

    def __post_init__(self) -> None:
        ranges: dict[str, tuple[float, float]] = {
            "temperature": (0, math.inf),
            "top_p": (0, 1),
            "top_k": (0, math.inf),
            "min_p": (0, 1),
            "repetition_penalty": (0, math.inf),
            "max_new_tokens": (1, math.inf),
        }
        above_zero = ("top_p", "repetition_penalty")
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not (low <= value <= high and math.isfinite(value)) or (
                name in above_zero and value == 0
            ):
                to = "" if high == math.inf else f" and at most {high:g}"
                bound = f"above {low:g}" if name in above_zero else f"at least {low:g}"
                raise UserError(f"{name} is {value}: it must be {bound}{to}")
        if "" in self.stop:
            raise UserError("stop holds an empty text, which would end every answer at once")


def sample(
    logits_BV: Tensor, sampling: Sampling, draws_B: Tensor, seen_BV: Tensor | None = None
) -> Tensor:
    """Choose a token for each row: (B,) int64.

    The order is that of transformers: repetition penalty, temperature, top-k, top-p, min-p. The
    row's draw then falls on a token in the order of the vocabulary, so that ties and the company
    of other rows decide nothing.

    Args:
        logits_BV: float32.
        sampling: one for all rows.
        draws_B: float64, uniform in [0, 1), one for each row.
        seen_BV: bool, tokens that occurred in the row's prompt and answer; for the penalty
            (Keskar et al. 2019, CTRL, section 4.1).
    """
    if seen_BV is not None and sampling.repetition_penalty != 1:
        penalty = sampling.repetition_penalty
        penalized = (logits_BV / penalty).where(logits_BV > 0, logits_BV * penalty)
        logits_BV = penalized.where(seen_BV, logits_BV)
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    # From the highest logit down, so that a temperature near zero cannot overflow.
    scaled_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) / sampling.temperature
    probability_BV = scaled_BV.softmax(-1)
    threshold_B1 = _threshold(probability_BV, sampling)
    kept_BV = probability_BV.double().where(probability_BV >= threshold_B1, 0.0)
    cumulative_BV = kept_BV.cumsum(-1)
    target_B1 = draws_B[:, None] * cumulative_BV[:, -1:]
    # The first token whose cumulative probability lies above the target has a share itself.
    return (cumulative_BV > target_B1).byte().argmax(-1)


def _threshold(probability_BV: Tensor, sampling: Sampling) -> Tensor:
    """Return (B, 1): the probability of the unlikeliest token that top-k, top-p, min-p keep."""
    vocab_size = probability_BV.shape[1]
    k = min(sampling.top_k or vocab_size, vocab_size)
    threshold_B1 = probability_BV.amax(-1, keepdim=True) * sampling.min_p
    if sampling.top_p < 1:
        # Ordering the whole vocabulary costs more than a small model, and a few tokens often do.
        first, enough_B = _nucleus(probability_BV, sampling.top_p, k, min(k, FIRST_LOOK))
        if not bool(enough_B.all()):
            rows = (~enough_B).nonzero().squeeze(1)
            first[rows] = _nucleus(probability_BV[rows], sampling.top_p, k, k)[0]
        threshold_B1 = threshold_B1.maximum(first)
    elif k < vocab_size:
        threshold_B1 = threshold_B1.maximum(probability_BV.topk(k).values[:, -1:])
    return threshold_B1


def _nucleus(probability_BV: Tensor, top_p: float, k: int, looked_at: int) -> tuple[Tensor, Tensor]:
    """Return the smallest probability that top-p keeps of the k likeliest tokens, (B, 1).

    Only the `looked_at` likeliest are ordered; the second result, (B,), says where they are enough.
    The k likeliest count as the whole, as if top-k had come first.
    """
    likeliest = probability_BV.topk(looked_at).values
    whole_B1 = probability_BV.sum(-1, keepdim=True)
    if k < probability_BV.shape[1]:
        whole_B1 = probability_BV.topk(k).values.sum(-1, keepdim=True)
    before = likeliest.double().cumsum(-1) - likeliest
    is_kept = before < top_p * whole_B1
    smallest = likeliest.gather(-1, is_kept.sum(-1, keepdim=True) - 1)
    return smallest, ~is_kept[:, -1] | (looked_at == k)


def draw_uniform(seed: int | None, count: int) -> Tensor:
    """Return (count,) float64 in [0, 1); of the same seed, a shorter draw begins a longer one."""
    import torch

    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return torch.rand(count, dtype=torch.float64, generator=generator)
