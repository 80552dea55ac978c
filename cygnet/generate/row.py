"""A request while it runs, and how the next tokens of several such rows are chosen together.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cygnet.generate.constrained import Matcher
from cygnet.generate.native import Chooser, library
from cygnet.generate.request import Answer, TokenLogprob
from cygnet.generate.sampling import Columns, draw_uniform, penalized, sample
from cygnet.generate.slots import Slot
from cygnet.generate.text import TextStream
from cygnet.text.tokenizer import Tokenizer


class Row:
    """The state of one request that has a slot.

    Args:
        answer: what is being filled.
        slot: where its keys and values stand.
        room: the most tokens that the answer may have.
        tokenizer: of the ids.
        draws_per_token: how many random numbers each token takes.

    Attributes:
        tokens: prompt and answer.
        draws: uniform random numbers, `draws_per_token` for each token of the answer.
        matcher: what its grammar allows next.
    """

    def __init__(
        self, answer: Answer, slot: Slot, room: int, tokenizer: Tokenizer, draws_per_token: int = 1
    ) -> None:
        request, sampling = answer.request, answer.request.sampling
        self.answer = answer
        self.slot = slot
        self.room = room
        self.draws_per_token = draws_per_token
        self.tokens = list(request.prompt)
        self.text = TextStream(tokenizer, sampling.stop, request.keep_special, request.mark_special)
        self.draws: list[float] = draw_uniform(sampling.seed, draws_per_token * room).tolist()
        self.matcher: Matcher | None = request.grammar.matcher() if request.grammar else None
        self.seen_V: Tensor | None = None
        self.counts_V: Tensor | None = None
        if sampling.repetition_penalty != 1 or sampling.presence_penalty != 0 or (
            sampling.frequency_penalty != 0
        ):  # fmt: skip
            self.seen_V = torch.zeros(tokenizer.vocab_size, dtype=torch.bool)
            self.seen_V[list(request.prompt)] = True
            self.counts_V = torch.zeros(tokenizer.vocab_size)

    @property
    def is_plain(self) -> bool:
        """Whether its distribution depends on the logits and its sampling settings alone."""
        bias = self.answer.request.logit_bias
        return self.seen_V is None and self.matcher is None and not bias

    @property
    def speculates(self) -> bool:
        """Whether a draft model may propose its tokens."""
        return self.is_plain and self.answer.request.logprobs is None

    @property
    def next_draw(self) -> float:
        """The first random number of the next token."""
        return self.draws[self.draws_per_token * len(self.answer.token_ids)]

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return len(self.answer.request.prompt)

    def note(self, token: int) -> None:
        """Take a token of the answer in."""
        self.tokens.append(token)
        self.answer.token_ids.append(token)
        self.answer.usage.completion_tokens += 1
        if self.seen_V is not None and self.counts_V is not None:
            self.seen_V[token] = True
            self.counts_V[token] += 1


class Batch:
    """Rows whose next tokens are chosen together; their settings are laid out once."""

    def __init__(self, rows: Sequence[Row], device: torch.device) -> None:
        self.rows = list(rows)
        self.device = device
        samplings = [row.answer.request.sampling for row in rows]
        self.columns = Columns(samplings, device)
        compiled = library() if device.type == "cpu" else None
        self._chooser = Chooser(samplings, compiled) if compiled else None
        self.is_plain = all(row.is_plain for row in rows)
        self.has_penalties = any(row.seen_V is not None for row in rows)
        self.bias = self._bias()

    def choose(self, logits_RV: Tensor, draws_R: Sequence[float]) -> list[int]:
        """Return the next token of each row; the logits are float32, a draw for each row."""
        adjusted_RV = logits_RV if self.is_plain else self._adjusted(logits_RV)
        if self._chooser is not None:
            return self._chooser(adjusted_RV, draws_R)
        draws = torch.tensor(draws_R, dtype=torch.float64, device=self.device)
        return sample(adjusted_RV, self.columns, draws).tolist()

    def _adjusted(self, logits_RV: Tensor) -> Tensor:
        """Return the logits with penalties, biases and grammars applied."""
        logits_RV = logits_RV.clone()
        if self.has_penalties:
            nothing_V = torch.zeros(logits_RV.shape[1])
            seen = [row.seen_V if row.seen_V is not None else nothing_V.bool() for row in self.rows]
            counts = [row.counts_V if row.counts_V is not None else nothing_V for row in self.rows]
            logits_RV = penalized(
                logits_RV,
                self.columns,
                torch.stack(seen).to(self.device),
                torch.stack(counts).to(self.device),
            )
        if self.bias is not None:
            where, values = self.bias
            logits_RV = logits_RV.index_put(where, values, accumulate=True)
        for index, row in enumerate(self.rows):
            if row.matcher is not None:
                allowed_V = row.matcher.allowed().to(self.device)
                logits_RV[index] = logits_RV[index].masked_fill(~allowed_V, float("-inf"))
        return logits_RV

    def _bias(self) -> tuple[tuple[Tensor, Tensor], Tensor] | None:
        found = [
            (index, token, value)
            for index, row in enumerate(self.rows)
            for token, value in row.answer.request.logit_bias.items()
        ]
        if not found:
            return None
        rows, tokens, values = zip(*found, strict=True)
        where = (torch.tensor(rows, device=self.device), torch.tensor(tokens, device=self.device))
        return where, torch.tensor(values, dtype=torch.float32, device=self.device)

    def logprobs(self, logits_RV: Tensor, tokens: Sequence[int]) -> list[TokenLogprob | None]:
        """Return what each row's request asks for about its token, from the model's own logits."""
        requests = [row.answer.request for row in self.rows]
        wanted = [request.logprobs for request in requests]
        found: list[TokenLogprob | None] = [None] * len(wanted)
        asking = [index for index, count in enumerate(wanted) if count is not None]
        if not asking:
            return found
        if len(asking) < len(wanted):
            logits_RV = logits_RV[asking]
        if any(requests[index].at_temperature for index in asking):
            is_raw = [not requests[index].at_temperature for index in asking]
            divisor_R1 = self.columns.temperature_B1[asking].clone()
            divisor_R1[is_raw] = 1.0
            logits_RV = logits_RV / divisor_R1
        logprobs_RV = logits_RV.log_softmax(-1)
        token_ids = torch.tensor([tokens[index] for index in asking], device=self.device)
        chosen = logprobs_RV.gather(1, token_ids[:, None]).squeeze(1).tolist()
        most = max(count for count in wanted if count is not None)
        likeliest: list[list[tuple[int, float]]] = [[] for _ in asking]
        if most:
            top = logprobs_RV.topk(most)
            pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            likeliest = [list(zip(*pair, strict=True)) for pair in pairs]
        for place, index in enumerate(asking):
            own = tuple(likeliest[place][: wanted[index]])
            found[index] = TokenLogprob(tokens[index], chosen[place], own)
        return found
