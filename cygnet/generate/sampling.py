"""How the next token is chosen from the logits.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cygnet.errors import UserError

if TYPE_CHECKING:
    import torch
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
    presence_penalty: float = 0.0
    """Taken from the logit of each token that the answer holds; -2 to 2."""
    frequency_penalty: float = 0.0
    """Taken from the logit of a token as often as the answer holds it; -2 to 2."""
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
            "presence_penalty": (-2, 2),
            "frequency_penalty": (-2, 2),
            "max_new_tokens": (1, math.inf),
            "seed": (-(2**63), 2**64 - 1),
        }
        above_zero = ("top_p", "repetition_penalty")
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is None:
                continue
            if not (low <= value <= high and math.isfinite(value)) or (
                name in above_zero and value == 0
            ):
                to = "" if high == math.inf else f" and at most {high:g}"
                bound = f"above {low:g}" if name in above_zero else f"at least {low:g}"
                raise UserError(f"{name} is {value}: it must be {bound}{to}")
        if "" in self.stop:
            raise UserError("stop holds an empty text, which would end every answer at once")


class Columns:
    """The settings of a batch's rows side by side.

    Args:
        samplings: one for each row.
        device: of the logits.
    """

    def __init__(self, samplings: Sequence[Sampling], device: torch.device | str = "cpu") -> None:
        import torch

        def column(values: Iterable[float], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor([*values], dtype=dtype, device=device)[:, None]

        self.is_greedy = [s.temperature == 0 for s in samplings]
        self.greedy_B1 = column(self.is_greedy, torch.bool)
        self.temperature_B1 = column(s.temperature or 1.0 for s in samplings)
        self.min_p_B1 = column(s.min_p for s in samplings)
        self.top_p_B1 = column((s.top_p for s in samplings), torch.float64)
        self.top_k_B1 = column((s.top_k for s in samplings), torch.int64)
        self.max_top_k = max(s.top_k for s in samplings)
        self.cuts_tail = any(s.top_p < 1 or s.top_k for s in samplings)
        self.cuts_unlikely = any(s.min_p for s in samplings)
        self.repetition_B1 = column(s.repetition_penalty for s in samplings)
        self.presence_B1 = column(s.presence_penalty for s in samplings)
        self.frequency_B1 = column(s.frequency_penalty for s in samplings)


def penalized(logits_BV: Tensor, columns: Columns, seen_BV: Tensor, counts_BV: Tensor) -> Tensor:
    """Return the logits with the penalties for what occurred.

    Args:
        logits_BV: float32.
        columns: the rows' settings.
        seen_BV: bool, tokens that occurred in the row's prompt or answer, for the repetition
            penalty (Keskar et al. 2019, CTRL, section 4.1).
        counts_BV: how often each occurred in the answer, for OpenAI's presence and frequency.
    """
    factor_B1 = columns.repetition_B1
    repeated_BV = (logits_BV / factor_B1).where(logits_BV > 0, logits_BV * factor_B1)
    logits_BV = repeated_BV.where(seen_BV, logits_BV)
    logits_BV = logits_BV - columns.presence_B1 * (counts_BV > 0)
    return logits_BV - columns.frequency_B1 * counts_BV


def probabilities(logits_BV: Tensor, columns: Columns) -> Tensor:
    """Return the distribution that each row is drawn from, (B, V) float64.

    The order is that of transformers: temperature, top-k, top-p, min-p. A row whose temperature
    is 0 has all on the likeliest token.
    """
    import torch

    # From the highest logit down, so that a temperature near zero cannot overflow.
    scaled_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) / columns.temperature_B1
    probability_BV = scaled_BV.softmax(-1)
    kept_BV = probability_BV.double()
    if columns.cuts_tail or columns.cuts_unlikely:
        kept_BV = kept_BV.where(probability_BV >= _threshold(probability_BV, columns), 0.0)
        kept_BV = kept_BV / kept_BV.sum(-1, keepdim=True)
    if any(columns.is_greedy):
        likeliest = torch.zeros_like(kept_BV).scatter_(1, logits_BV.argmax(-1, keepdim=True), 1.0)
        kept_BV = likeliest.where(columns.greedy_B1, kept_BV)
    return kept_BV


def sample(logits_BV: Tensor, columns: Columns, draws_B: Tensor) -> Tensor:
    """Choose a token for each row: (B,) int64.

    Args:
        logits_BV: float32, with penalties applied.
        columns: the rows' settings.
        draws_B: float64, uniform in [0, 1), one for each row.
    """
    if all(columns.is_greedy):
        return logits_BV.argmax(-1)
    return pick(probabilities(logits_BV, columns), draws_B)


def pick(probability_BV: Tensor, draws_B: Tensor) -> Tensor:
    """Return the token on which each row's draw falls, (B,) int64.

    Tokens lie in the order of the vocabulary, so that ties and other rows decide nothing.
    """
    cumulative_BV = probability_BV.cumsum(-1)
    target_B1 = draws_B[:, None] * cumulative_BV[:, -1:]
    # The first token whose cumulative probability lies above the target has a share itself.
    return (cumulative_BV > target_B1).byte().argmax(-1)


def _threshold(probability_BV: Tensor, columns: Columns) -> Tensor:
    """Return (B, 1): the probability of the unlikeliest token that top-k, top-p, min-p keep."""
    threshold_B1 = probability_BV.amax(-1, keepdim=True) * columns.min_p_B1
    if not columns.cuts_tail:
        return threshold_B1
    vocab_size = probability_BV.shape[1]
    # Ordering the whole vocabulary costs more than a small model, and a few tokens often do.
    look = min(vocab_size, max(FIRST_LOOK, columns.max_top_k))
    first, enough_B = _nucleus(probability_BV, columns.top_p_B1, columns.top_k_B1, look)
    if not bool(enough_B.all()):
        rows = (~enough_B).nonzero().squeeze(1)
        tail = (columns.top_p_B1[rows], columns.top_k_B1[rows])
        first[rows] = _nucleus(probability_BV[rows], *tail, vocab_size)[0]
    return threshold_B1.maximum(first)


def _nucleus(
    probability_BV: Tensor, top_p_B1: Tensor, top_k_B1: Tensor, looked_at: int
) -> tuple[Tensor, Tensor]:
    """Return the smallest probability that top-k and then top-p keep, (B, 1).

    Only the `looked_at` likeliest are ordered, at least `top_k` of them; the second result, (B,),
    says where they are enough. The k likeliest count as the whole.
    """
    import torch

    likeliest = probability_BV.topk(looked_at).values
    cumulative = likeliest.double().cumsum(-1)
    has_k = top_k_B1 > 0
    last_of_k = torch.where(has_k, top_k_B1.clamp(max=looked_at), looked_at) - 1
    whole_B1 = cumulative.gather(-1, last_of_k).where(
        has_k, probability_BV.sum(-1, keepdim=True).double()
    )
    index = torch.arange(looked_at, device=probability_BV.device)
    is_kept = (cumulative - likeliest < top_p_B1 * whole_B1) | (top_p_B1 >= 1)
    is_kept &= index <= last_of_k
    is_kept[:, 0] = True  # top_p can be so small that its product is zero
    smallest = likeliest.gather(-1, is_kept.sum(-1, keepdim=True) - 1)
    keeps_all = ~has_k & (top_p_B1 >= 1)
    enough = ~is_kept[:, -1:] | has_k | keeps_all | (looked_at == probability_BV.shape[1])
    return smallest.masked_fill(keeps_all, 0.0), enough.squeeze(1)


def draw_uniform(seed: int | None, count: int) -> Tensor:
    """Return (count,) float64 in [0, 1); of the same seed, a shorter draw begins a longer one."""
    import torch

    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return torch.rand(count, dtype=torch.float64, generator=generator)
