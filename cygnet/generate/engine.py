"""Prompts to answers: one prefill, then token after token from a cache.

Shapes: B rows, R rows still in the batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from cygnet.errors import UserError
from cygnet.generate.sampling import Sampling, draw_uniform, sample
from cygnet.model.kv_cache import KVCache
from cygnet.model.transformer import Transformer
from cygnet.progress import Advance, progress
from cygnet.text.tokenizer import Tokenizer

MAX_ROWS = 64
MAX_CACHE_BYTES = 512 * 2**20
PREFILL_TOKENS = 256


class Generator:
    """Answers prompts with a model; it always uses the weights that the model has at that time.

    An answer ends before `<|im_end|>` or `<|endoftext|>`, behind a stop text, after
    `max_new_tokens`, or where the context ends.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.context = model.config.max_position
        self._ends = {tokenizer.im_end_id, tokenizer.eos_id}

    def generate(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        title: str | None = None,
    ) -> list[list[int]]:
        """Return the answer's ids to each prompt, without the token that ended it.

        Prompts of similar length go through the model together. An answer depends on its prompt
        and seed; its company changes logits by rounding alone.

        Args:
            prompts: token ids.
            sampling: for all prompts.
            seeds: one for each prompt; left out, they count up from `sampling.seed`.
            title: shows progress under this name.

        Raises:
            UserError: a prompt is empty or fills the context.
        """
        for i, prompt in enumerate(prompts):
            self._check(prompt, f"prompt {i}")
        draws = []
        for i, prompt in enumerate(prompts):
            seed = None if sampling.seed is None else sampling.seed + i
            seed = seed if seeds is None else seeds[i]
            draws.append(draw_uniform(seed, self._room(prompt, sampling)))
        answers: list[list[int]] = [[] for _ in prompts]
        bar: contextlib.AbstractContextManager[Advance] = (
            progress(title, len(prompts)) if title else contextlib.nullcontext(lambda *_: None)
        )
        with bar as advance:
            for batch in self._batches(prompts, sampling):
                steps = self._decode(
                    [prompts[i] for i in batch],
                    [draws[i] for i in batch],
                    [answers[i] for i in batch],
                    sampling,
                )
                for num_finished in steps:
                    advance(num_finished)
        return answers

    def stream(self, prompt: list[int], sampling: Sampling) -> Iterator[int]:
        """Yield the ids that `generate` would return for the one prompt, as they come.

        Raises:
            UserError: the prompt is empty or fills the context.
        """
        self._check(prompt, "the prompt")
        draws = draw_uniform(sampling.seed, self._room(prompt, sampling))
        answer: list[int] = []
        num_given = 0
        for _ in self._decode([prompt], [draws], [answer], sampling):
            yield from answer[num_given:]
            num_given = len(answer)

    def _check(self, prompt: list[int], name: str) -> None:
        if not prompt:
            raise UserError(f"{name} is empty: give at least one token")
        if len(prompt) >= self.context:
            raise UserError(
                f"{name} has {len(prompt)} tokens, and the model's context ends at {self.context}"
            )

    def _room(self, prompt: list[int], sampling: Sampling) -> int:
        return min(sampling.max_new_tokens, self.context - len(prompt))

    def _batches(self, prompts: Sequence[list[int]], sampling: Sampling) -> Iterator[list[int]]:
        """Yield indices of prompts that go together: of similar length, longest first."""
        config = self.model.config
        token_bytes = self.model.compute_dtype.itemsize * 2 * config.num_layers
        token_bytes *= config.num_kv_heads * config.head_size
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        while order:
            longest = len(prompts[order[0]]) + sampling.max_new_tokens
            row_bytes = token_bytes * min(longest, 2 * self.context)
            num_rows = max(1, min(MAX_ROWS, MAX_CACHE_BYTES // row_bytes))
            yield order[:num_rows]
            order = order[num_rows:]

    @torch.inference_mode()
    def _decode(
        self,
        prompts: list[list[int]],
        draws: list[Tensor],
        answers: list[list[int]],
        sampling: Sampling,
    ) -> Iterator[int]:
        """Extend the answers token by token; yield how many of them each step finished."""
        model = _with_cast_weights(self.model)
        device = model.output_weight.device
        tokens_BT, start_B = _left_padded(prompts, self.tokenizer.eos_id, device)
        width, num_steps = tokens_BT.shape[1], max(map(len, draws))
        cache = KVCache(model.config, len(prompts), width + num_steps, model.compute_dtype, device)
        cache.start = start_B
        for begin in range(0, width, PREFILL_TOKENS):
            hidden = model(tokens_BT[:, begin : begin + PREFILL_TOKENS], cache=cache)
        draws_RT = torch.nn.utils.rnn.pad_sequence(draws, batch_first=True).to(device)
        seen_RV = None
        if sampling.repetition_penalty != 1:
            seen_RV = _seen(prompts, self.tokenizer.vocab_size, device)
        slots = list(range(len(prompts)))  # which answer each row of the batch belongs to
        unfinished = set(slots)
        for step in range(num_steps):
            # A model may have more outputs than the tokenizer has entries.
            logits_RV = model.logits(hidden[:, -1])[:, : self.tokenizer.vocab_size]
            next_R = sample(logits_RV, sampling, draws_RT[:, step], seen_RV)
            num_finished = 0
            for slot, token in zip(slots, next_R.tolist(), strict=True):
                if slot in unfinished and self._ends_answer(
                    answers[slot], token, len(draws[slot]), sampling
                ):
                    unfinished.remove(slot)
                    num_finished += 1
            yield num_finished
            if not unfinished:
                return
            if len(unfinished) <= 0.75 * len(slots):
                kept = [row for row, slot in enumerate(slots) if slot in unfinished]
                slots = [slots[row] for row in kept]
                rows = torch.tensor(kept, device=device)
                cache.keep_rows(rows)
                next_R, draws_RT = next_R[rows], draws_RT[rows]
                seen_RV = None if seen_RV is None else seen_RV[rows]
            if seen_RV is not None:
                seen_RV.scatter_(1, next_R[:, None], True)
            hidden = model(next_R[:, None], cache=cache)

    def _ends_answer(
        self, answer: list[int], token: int, max_tokens: int, sampling: Sampling
    ) -> bool:
        """Append a token to an answer unless it is an end; say whether the answer is finished."""
        if token in self._ends:
            return True
        answer.append(token)
        return len(answer) >= max_tokens or any(
            self._contains(answer, stop.encode()) for stop in sampling.stop
        )

    def _contains(self, answer: list[int], stop: bytes) -> bool:
        """Say whether the answer's last token completes the stop text."""
        # A token has at least one byte.
        return stop in b"".join(map(self.tokenizer.token_bytes, answer[-len(stop) :]))


def text_stream(
    tokenizer: Tokenizer, ids: Iterable[int], stop: Sequence[str] = ()
) -> Iterator[str]:
    """Yield the text of ids as they come: never half a character, no control tokens, no stop text.

    Joined, it is `tokenizer.decode(ids, skip_special=True)` up to the first stop text. What may
    be the beginning of a stop text is held back until that is known.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    special = set(tokenizer.special_ids.values())
    held = ""
    for token in ids:
        if token in special:
            continue
        held += decoder.decode(tokenizer.token_bytes(token))
        if found := [at for at in map(held.find, stop) if at >= 0]:
            held = held[: min(found)]
            break
        num_kept = max((_overlap(held, text) for text in stop), default=0)
        given, held = held[: len(held) - num_kept], held[len(held) - num_kept :]
        if given:
            yield given
    else:
        held += decoder.decode(b"", final=True)
    if held:
        yield held


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of the text are the beginning of the stop text."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)


def _with_cast_weights(model: Transformer) -> Transformer:
    """Return the model with its matrices in the compute dtype, so that no step casts them."""
    if model.compute_dtype == torch.float32:
        return model
    weights = {
        name: tensor.to(model.compute_dtype) if tensor.ndim == 2 else tensor
        for name, tensor in model.state_dict().items()
    }
    return Transformer.from_weights(model.config, weights, model.compute_dtype)


def _left_padded(
    prompts: list[list[int]], padding: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the prompts as (B, T) int64 that end together, and where each begins, (B,)."""
    width = max(map(len, prompts))
    rows = [[padding] * (width - len(prompt)) + prompt for prompt in prompts]
    starts = [width - len(prompt) for prompt in prompts]
    return torch.tensor(rows, device=device), torch.tensor(starts, device=device)


def _seen(prompts: list[list[int]], vocab_size: int, device: torch.device) -> Tensor:
    seen_BV = torch.zeros(len(prompts), vocab_size, dtype=torch.bool, device=device)
    for row, prompt in enumerate(prompts):
        seen_BV[row, torch.tensor(prompt, device=device)] = True
    return seen_BV
