"""A model laid out for inference, with the slots of its cache: tokens in, logits out.

On a processor the forward pass is ours (`native.py`); elsewhere, and where it cannot be compiled
or the model computes in float16, it is torch's.

Shapes: R rows, T tokens, S segments, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from cygnet.generate.native import NativeForward, library
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
        model: its weights must not change afterwards (see `laid_out`).
        num_slots: sequences that it holds.
        max_len: positions of each.
        weights: "int8" or "int4" keep the matrices so (`cygnet.generate.quantize`).
        is_native: whether `cpp/forward.cpp` may be used.
    """

    def __init__(
        self,
        model: Transformer,
        num_slots: int,
        max_len: int,
        weights: Weights = "float",
        is_native: bool = True,
    ) -> None:
        self.model = laid_out(model)
        if weights != "float":
            quantize(self.model, weights)
        self.device = model.output_weight.device
        dtype = model.compute_dtype
        self.cache = KVCache(model.config, num_slots, max_len, dtype, self.device)
        self._native: NativeForward | None = None
        if is_native and self.device.type == "cpu" and dtype in (torch.bfloat16, torch.float32):
            compiled = library()
            if compiled is not None:
                self._native = NativeForward(self.model, self.cache, compiled)

    def prefill(self, parts: Sequence[Part]) -> Tensor:
        """Let slots read their next tokens; return the logits behind each part, (S, V) float32."""
        segments = [Segment(part.slot, part.start, len(part.token_ids)) for part in parts]
        if self._native is not None:
            ends = accumulate(segment.num_tokens for segment in segments)
            return self._run_native(parts, [end - 1 for end in ends])
        view = Segments(self.cache, segments, self.device)
        tokens = torch.tensor([[i for part in parts for i in part.token_ids]], device=self.device)
        hidden = self.model(tokens, cache=view)
        return self.model.logits(hidden[0, view.last])

    def decode(self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
        """Let the first R slots read T tokens each; return the logits behind each, (R, T, V).

        Args:
            token_ids: R rows of T.
            starts: the position of each row's first token.
        """
        R, T = len(token_ids), len(token_ids[0])
        if self._native is not None:
            parts = [Part(slot, starts[slot], token_ids[slot]) for slot in range(R)]
            return self._run_native(parts, range(R * T)).view(R, T, -1)
        tokens_RT = torch.tensor(token_ids, device=self.device)
        starts_R1 = torch.tensor(starts, device=self.device)[:, None]
        positions_RT = starts_R1 + torch.arange(T, device=self.device)
        view = Rows(self.cache, positions_RT, max(starts) + T)
        return self.model.logits(self.model(tokens_RT, cache=view))

    def _run_native(self, parts: Sequence[Part], wanted: Sequence[int]) -> Tensor:
        assert self._native is not None
        return self._native(
            [token for part in parts for token in part.token_ids],
            [part.slot for part in parts for _ in part.token_ids],
            [p for part in parts for p in range(part.start, part.start + len(part.token_ids))],
            wanted,
        )


def laid_out(model: Transformer) -> Transformer:
    """Return the model for inference: matrices in the compute dtype, so that no step casts them,
    and those that read the same input joined (`Transformer.join_matrices`).

    What needs no change is shared with the model, not copied.
    """
    weights = {
        name: tensor.to(model.compute_dtype) if tensor.ndim == 2 else tensor
        for name, tensor in model.state_dict().items()
    }
    copy = Transformer.from_weights(model.config, weights, model.compute_dtype)
    copy.join_matrices()
    return copy.eval().requires_grad_(False)
