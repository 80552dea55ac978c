"""Keys and values of the tokens that a model has read, so that decoding reads each only once."""

from __future__ import annotations

import torch
from torch import Tensor

from cygnet.config import ModelConfig


class KVCache:
    """Preallocated keys and values of a left-padded batch.

    Attributes:
        keys, values: per layer, shape (B, num_kv_heads, max_len, head_size).
        length: positions filled so far, the same for every row.
        start: (B,) int64, the index of each row's first real token; padding lies before it.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (batch_size, config.num_kv_heads, max_len, config.head_size)
        layers = range(config.num_layers)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.length = 0
        self.start = torch.zeros(batch_size, dtype=torch.int64, device=device)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values (B, K, T, H) behind the filled positions.

        Returns views of all keys and values up to and including the new ones. `advance` moves
        `length` once all layers have stored theirs.
        """
        end = self.length + keys.shape[2]
        if end > self.keys[layer].shape[2]:
            raise IndexError(f"the cache holds {self.keys[layer].shape[2]} positions, {end} asked")
        self.keys[layer][:, :, self.length : end] = keys
        self.values[layer][:, :, self.length : end] = values
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def advance(self, num_tokens: int) -> None:
        """Count `num_tokens` more positions as filled."""
        self.length += num_tokens

    def keep_rows(self, rows: Tensor) -> None:
        """Keep only the given rows, (R,) int64 without repeats, in that order."""
        for tensors in (self.keys, self.values):
            for layer, tensor in enumerate(tensors):
                # In place, so that only what is filled is copied and nothing is allocated.
                tensor[: len(rows), :, : self.length] = tensor[rows, :, : self.length]
                tensors[layer] = tensor[: len(rows)]
        self.start = self.start[rows]

    def positions(self, num_tokens: int) -> Tensor:
        """Return (B, num_tokens) position numbers of the next tokens; padding counts as zero."""
        index = torch.arange(self.length, self.length + num_tokens, device=self.start.device)
        return (index - self.start[:, None]).clamp(min=0)

    def mask(self, num_tokens: int) -> Tensor:
        """Return (B, 1, num_tokens, length + num_tokens) bool: True where a query may attend.

        A padding position attends to itself, so that its softmax is finite.
        """
        end = self.length + num_tokens
        query = torch.arange(self.length, end, device=self.start.device)[None, :, None]
        key = torch.arange(end, device=self.start.device)[None, None, :]
        allowed = (key <= query) & (key >= self.start[:, None, None])
        return (allowed | (key == query))[:, None]
