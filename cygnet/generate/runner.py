"""A model laid out for inference, with the slots of its cache: tokens in, logits out.

Shapes: R rows, T tokens, S segments, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cygnet.generate.quantize import Weights, quantize
from cygnet.model.kv_cache import KVCache, Rows, Segment, Segments
from cygnet.model.transformer import Transformer


class Part(NamedTuple):
    """Tokens that one slot reads next."""

    slot: int
    start: int
    token_ids: Sequence[int]


class Runner:
    """Runs a model over slots.

    Args:
        model: copied where that makes it faster (see `laid_out`); later changes of its weights
            do not show.
        num_slots: sequences that it holds.
        max_len: positions of each.
        weights: "int8" or "int4" keep the matrices so (`cygnet.generate.quantize`).
        compile: compile both kinds of step now, for about a minute, and seconds where torch has
            it from an earlier time; worth it for many requests.
    """

    def __init__(
        self,
        model: Transformer,
        num_slots: int,
        max_len: int,
        compile: bool = False,
        weights: Weights = "float",
    ) -> None:
        self.model = laid_out(model)
        if weights != "float":
            quantize(self.model, weights)
        self.device = model.output_weight.device
        self.cache = KVCache(model.config, num_slots, max_len, model.compute_dtype, self.device)
        self._hidden_compiled: Callable[[Tensor, Segments], Tensor] | None = None
        if compile:
            self._compile()

    def prefill(self, parts: Sequence[Part]) -> Tensor:
        """Let slots read their next tokens; return the logits behind each part, (S, V) float32."""
        segments = [Segment(part.slot, part.start, len(part.token_ids)) for part in parts]
        view = Segments(self.cache, segments, self.device)
        tokens = torch.tensor([[i for part in parts for i in part.token_ids]], device=self.device)
        # One token alone would be compiled anew, for a time at which others wait.
        run = self._hidden_compiled if tokens.shape[1] > 1 else None
        hidden = (run or self._hidden)(tokens, view)
        return self.model.logits(hidden[0, view.last])

    def decode(self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
        """Let the first R slots read T tokens each; return the logits behind each, (R, T, V).

        Args:
            token_ids: R rows of T.
            starts: the position of each row's first token.
        """
        tokens_RT = torch.tensor(token_ids, device=self.device)
        T = tokens_RT.shape[1]
        starts_R1 = torch.tensor(starts, device=self.device)[:, None]
        positions_RT = starts_R1 + torch.arange(T, device=self.device)
        return self._decode(tokens_RT, positions_RT, max(starts) + T)

    def _compile(self) -> None:
        """Compile for one row, for several and for prompts, each for any length."""
        import torch._dynamo.config
        import torch._inductor.config

        decode, hidden = self._decode, self._hidden
        with (
            # Weights become constants, laid out for the processor's matrix instructions.
            torch._inductor.config.patch(freezing=True),
            # Several models of one process are several compilations of the same function.
            torch._dynamo.config.patch(recompile_limit=64),
            torch.inference_mode(),
        ):
            self._decode = torch.compile(decode, dynamic=True)  # type: ignore[method-assign]
            self._hidden_compiled = torch.compile(hidden, dynamic=True)
            for num_rows in (1, 2)[: self.cache.num_slots]:
                self.decode([[0]] * num_rows, [self.cache.max_len // 2] * num_rows)
            self.prefill([Part(0, 0, [0] * (self.cache.max_len // 2))])

    def _hidden(self, tokens_1M: Tensor, view: Segments) -> Tensor:
        return self.model(tokens_1M, cache=view)

    def _decode(self, tokens_RT: Tensor, positions_RT: Tensor, length: int) -> Tensor:
        view = Rows(self.cache, positions_RT, length)
        return self.model.logits(self.model(tokens_RT, cache=view))


def laid_out(model: Transformer) -> Transformer:
    """Return the model for inference: matrices in the compute dtype, so that no step casts them,
    and those that read the same input joined (`Transformer.join_matrices`)."""
    weights = {
        name: tensor.to(model.compute_dtype) if tensor.ndim == 2 else tensor
        for name, tensor in model.state_dict().items()
    }
    copy = Transformer.from_weights(model.config, weights, model.compute_dtype)
    copy.join_matrices()
    return copy.eval().requires_grad_(False)
