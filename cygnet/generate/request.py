"""What is asked of the engine, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from cygnet.generate.sampling import Sampling

if TYPE_CHECKING:
    from cygnet.generate.constrained import Grammar

FinishReason = Literal["stop", "length", "cancelled"]


class QueueFull(Exception):
    """As many requests wait as the engine lets wait; try again later."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """One answer that is wanted."""

    prompt: Sequence[int]
    """Token ids, at least one, fewer than the engine's `max_len`."""
    sampling: Sampling = Sampling()
    """How it is drawn; `sampling.seed` is this answer's own."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these ids."""
    logprobs: int | None = None
    """With each token, log-probabilities: its own and those of this many likeliest tokens."""
    at_temperature: bool = False
    """Whether those are of the logits divided by the sampling's temperature."""
    grammar: Grammar | None = None
    """What the answer must look like (`Grammars.json_schema`, `Grammars.regex`)."""
    ignore_end: bool = False
    """Go on where the model would end, to the longest length; for measuring."""
    keep_special: bool = False
    """Leave control tokens such as `<think>` and `<tool_call>` in the text."""
    mark_special: bool = False
    """Leave them in the text, and marked, so that they can be told from the same text spelt
    (`cygnet.generate.text.CONTROL_MARK`)."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability under the model itself, before penalties and, unless asked for
    (`Request.at_temperature`), temperature."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens and their log-probabilities, likeliest first."""


@dataclass(slots=True)
class Usage:
    """Counts of tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Of the answer, without the token that ended it."""
    cached_tokens: int = 0
    """Of the prompt, those whose keys and values were there already."""


@dataclass(eq=False)
class Answer:
    """The handle of a request, filled as the engine steps.

    Attributes:
        token_ids: the answer's, without the token that ended it; a stop text's are among them.
        text: without stop text and, unless asked for, control tokens.
        finish_reason: none while it is not finished.
        logprobs: one for each token where asked for.
        logprob_sum: their sum, to rank answers by (best-of); 0 where not asked for.
        end_id: the token that the model ended with, where it did.
        end_logprob: that token's log-probability, where asked for.
    """

    request: Request
    usage: Usage
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    logprob_sum: float = 0.0
    end_id: int | None = None
    end_logprob: float | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """What one step brought for one request."""

    answer: Answer
    token_ids: tuple[int, ...]
    """New ones; empty where the answer ended without another token."""
    text: str
    """New text; empty while half a character or the beginning of a stop text is held back."""
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason | None


def best_of(answers: Sequence[Answer], n: int) -> list[Answer]:
    """Return the `n` answers with the highest mean log-probability, best first.

    They need `Request.logprobs`.
    """
    return sorted(answers, key=lambda a: -a.logprob_sum / max(len(a.token_ids), 1))[:n]
