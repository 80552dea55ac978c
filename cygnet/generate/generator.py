"""Answers to a list of prompts, for the stages and evaluations that need them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from cygnet.errors import UserError
from cygnet.generate.engine import Engine
from cygnet.generate.request import Request
from cygnet.generate.sampling import Sampling
from cygnet.model.kv_cache import KVCache
from cygnet.model.transformer import Transformer
from cygnet.progress import Advance, progress
from cygnet.text.tokenizer import Tokenizer

MAX_ROWS = 64
MAX_CACHE_BYTES = 512 * 2**20


class Generator:
    """Answers prompts with a model; it always uses the weights that the model has at that time.

    How an answer ends is the engine's (`Engine`).
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.context = model.config.max_position

    def generate(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        title: str | None = None,
    ) -> list[list[int]]:
        """Return the answer's ids to each prompt, without the token that ended it.

        An answer depends on its prompt and seed; its company changes logits by rounding alone.

        Args:
            prompts: token ids.
            sampling: for all prompts.
            seeds: one for each prompt; left out, they count up from `sampling.seed`.
            title: shows progress under this name.

        Raises:
            UserError: a prompt is empty or fills the context.
        """
        if not prompts:
            return []
        for i, prompt in enumerate(prompts):
            self._check(prompt, f"prompt {i}")
        engine = self._engine(len(prompts), max(map(len, prompts)), sampling)
        answers = []
        for i, prompt in enumerate(prompts):
            seed = None if sampling.seed is None else sampling.seed + i
            own = replace(sampling, seed=seed if seeds is None else seeds[i])
            answers.append(engine.submit(Request(prompt=prompt, sampling=own)))
        bar: contextlib.AbstractContextManager[Advance] = (
            progress(title, len(prompts)) if title else contextlib.nullcontext(lambda *_: None)
        )
        with bar as advance:
            while not engine.is_idle:
                advance(sum(event.finish_reason is not None for event in engine.step()))
        return [answer.token_ids for answer in answers]

    def stream(self, prompt: list[int], sampling: Sampling) -> Iterator[int]:
        """Yield the ids that `generate` would return for the one prompt, as they come.

        Raises:
            UserError: the prompt is empty or fills the context.
        """
        self._check(prompt, "the prompt")
        engine = self._engine(1, len(prompt), sampling)
        for event in engine.run(Request(prompt=prompt, sampling=sampling)):
            yield from event.token_ids

    def _check(self, prompt: list[int], name: str) -> None:
        if not prompt:
            raise UserError(f"{name} is empty: give at least one token")
        if len(prompt) >= self.context:
            raise UserError(
                f"{name} has {len(prompt)} tokens, and the model's context ends at {self.context}"
            )

    def _engine(self, num_prompts: int, longest: int, sampling: Sampling) -> Engine:
        max_len = min(longest + sampling.max_new_tokens, self.context)
        return sized_engine(self.model, self.tokenizer, num_prompts, max_len)


def sized_engine(
    model: Transformer, tokenizer: Tokenizer, num_requests: int, max_len: int
) -> Engine:
    """Return an engine with slots of `max_len` tokens, and as many as are of use and fit memory."""
    slot_bytes = max_len * KVCache.token_bytes(model.config, model.compute_dtype)
    num_slots = min(num_requests, MAX_ROWS, max(MAX_CACHE_BYTES // slot_bytes, 1))
    return Engine(model, tokenizer, num_slots=num_slots, max_len=max_len)
