"""Keys and values of the tokens that a model has read, so that decoding reads each only once.

Each sequence has a slot of `max_len` positions. A forward pass gets one of two views of the slots,
which stores the new keys and values and lets the queries attend: `Rows` (the same number of tokens
for each of the first slots: decoding) and `Segments` (stretches of any length, packed one behind
the other: prefill).

Shapes: R rows, T tokens, M packed tokens, N query heads, K key/value heads, H head width, L
positions that are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cygnet.config import ModelConfig
from cygnet.model.attention import masked_attention


class KVCache:
    """Preallocated slots.

    Attributes:
        keys, values: per layer, shape (num_slots, num_kv_heads, max_len, head_size).
        num_slots, max_len: their sizes.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_slots: int,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (num_slots, config.num_kv_heads, max_len, config.head_size)
        layers = range(config.num_layers)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.num_slots = num_slots
        self.max_len = max_len

    @staticmethod
    def token_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
        """Return the bytes that one position of one slot takes."""
        return 2 * config.num_layers * config.num_kv_heads * config.head_size * dtype.itemsize

    def swap(self, a: int, b: int, num_tokens: int) -> None:
        """Exchange the first `num_tokens` positions of two slots."""
        for tensor in (*self.keys, *self.values):
            held = tensor[a, :, :num_tokens].clone()
            tensor[a, :, :num_tokens] = tensor[b, :, :num_tokens]
            tensor[b, :, :num_tokens] = held

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first `num_tokens` positions of one slot to another."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :num_tokens] = tensor[source, :, :num_tokens]


class CacheView(Protocol):
    """Where the tokens of one forward pass stand, and how they attend."""

    positions: Tensor

    def attend(self, layer: int, q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor) -> Tensor:
        """Store new keys and values and return what the queries read, (B, N, T, H)."""


class Rows:
    """The next tokens of the first R slots.

    Args:
        cache: the slots.
        positions_RT: (R, T) int64, ascending in each row; earlier positions must be filled.
        length: positions that are read, more than the highest of `positions_RT`.
    """

    def __init__(self, cache: KVCache, positions_RT: Tensor, length: int) -> None:
        self.cache = cache
        self.positions = positions_RT
        self.length = length
        self.rows = torch.arange(len(positions_RT), device=positions_RT.device)[:, None]
        index_L = torch.arange(length, device=positions_RT.device)
        self.mask = (index_L <= positions_RT[..., None])[:, None]

    def attend(self, layer: int, q_RNTH: Tensor, k_RKTH: Tensor, v_RKTH: Tensor) -> Tensor:
        """Store new keys and values and return what the queries read, (R, N, T, H)."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.rows, :, self.positions] = k_RKTH.transpose(1, 2)
        values[self.rows, :, self.positions] = v_RKTH.transpose(1, 2)
        num_rows = len(q_RNTH)
        read = (slice(0, num_rows), slice(None), slice(0, self.length))
        return masked_attention(q_RNTH, keys[read], values[read], self.mask)


class Segment(NamedTuple):
    """A stretch of new tokens for one slot."""

    slot: int
    start: int
    """The position of its first token; those before it are filled."""
    num_tokens: int


class Segments:
    """New tokens of several slots, packed in one row of M tokens.

    Raises:
        IndexError: a slot has no room for its tokens.
    """

    def __init__(self, cache: KVCache, segments: Sequence[Segment], device: torch.device) -> None:
        for _, start, num_tokens in segments:
            if start + num_tokens > cache.max_len:
                raise IndexError(
                    f"a slot holds {cache.max_len} positions, {start + num_tokens} asked"
                )
        self.cache = cache
        self.segments = segments
        positions = [torch.arange(s.start, s.start + s.num_tokens) for s in segments]
        self.positions = torch.cat(positions)[None].to(device)

    @property
    def last(self) -> list[int]:
        """Where in the packed row each segment's last token stands."""
        return [end - 1 for end in accumulate(s.num_tokens for s in self.segments)]

    def attend(self, layer: int, q_1NMH: Tensor, k_1KMH: Tensor, v_1KMH: Tensor) -> Tensor:
        """Store new keys and values and return what the queries read, (1, N, M, H)."""
        outputs, begin = [], 0
        for slot, start, num_tokens in self.segments:
            packed, end = slice(begin, begin + num_tokens), start + num_tokens
            keys = self.cache.keys[layer][slot : slot + 1]
            values = self.cache.values[layer][slot : slot + 1]
            keys[:, :, start:end] = k_1KMH[:, :, packed]
            values[:, :, start:end] = v_1KMH[:, :, packed]
            keys_1KLH, values_1KLH = keys[:, :, :end], values[:, :, :end]
            q_1NTH = q_1NMH[:, :, packed]
            if start == 0:  # without a mask, what lies above the diagonal is not computed
                out = F.scaled_dot_product_attention(
                    q_1NTH, keys_1KLH, values_1KLH, is_causal=True, enable_gqa=True
                )
            else:
                index = torch.arange(end, device=q_1NMH.device)
                mask = (index <= index[start:, None])[None, None]
                out = masked_attention(q_1NTH, keys_1KLH, values_1KLH, mask)
            outputs.append(out)
            begin += num_tokens
        return torch.cat(outputs, dim=2)
