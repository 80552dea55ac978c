"""Batches of packed rows: batch number to exactly which tokens, with no state between calls."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from cygnet.errors import UserError
from cygnet.hashing import mixed
from cygnet.text.packing import Int64, cached_plan
from cygnet.text.shards import Shard, ShardReader

IGNORE = -100
"""A label that asks for no loss."""
PADDING = -1
"""The document of a position without a token."""
_FEISTEL_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of packed documents; all tensors are (B, T)."""

    tokens: Tensor
    """int64 ids; 0 at padding."""
    labels: Tensor
    """int64: the next token of the same document, or -100 where nothing is learnt."""
    document_ids: Tensor
    """int32: 0, 1, 2... within a row; -1 at padding."""
    positions: Tensor
    """int64: from 0 in each document (or piece of a long one); 0 at padding."""
    BLANK: ClassVar[dict[str, float]] = {
        "tokens": 0, "labels": IGNORE, "document_ids": PADDING, "positions": 0,
    }  # fmt: skip
    """What each tensor holds where there is no token."""

    @property
    def num_labels(self) -> int:
        """Tokens that the loss is over."""
        return int((self.labels != IGNORE).sum())

    @property
    def num_tokens(self) -> int:
        """Tokens that are no padding."""
        return int((self.document_ids != PADDING).sum())

    def rows(self, start: int, stop: int) -> Self:
        """Return some rows as a batch, without a copy."""
        return type(self)(*(getattr(self, field.name)[start:stop] for field in fields(self)))

    def take(self, places: Tensor) -> Self:
        """Return the rows at `places`, (R,) int64, in that order."""
        return type(self)(*(getattr(self, field.name)[places] for field in fields(self)))

    def padded(self, num_rows: int) -> Self:
        """Return the batch with rows without tokens behind it, until there are `num_rows`."""
        extra = num_rows - len(self.tokens)
        if not extra:
            return self
        return type(self)(
            *(
                torch.cat([tensor, tensor.new_full((extra, *tensor.shape[1:]), self.BLANK[name])])
                for name, tensor in ((f.name, getattr(self, f.name)) for f in fields(self))
            )
        )

    def to(self, device: torch.device | str) -> Self:
        """Return the batch on a device."""
        moved = (getattr(self, field.name).to(device, non_blocking=True) for field in fields(self))
        return type(self)(*moved)


class PackedLoader:
    """The rows of a corpus, each once an epoch, in an order of their own in every epoch.

    `batch(n)` is a pure function of (corpus, seed, n), so resuming is asking for the next number.
    A batch may hold the end of one epoch and the beginning of the next. Rows n k to (n + 1) k - 1
    of the endless row order are batch n of k rows, so two batches of k rows are one of 2 k.

    Args:
        reader: the corpus.
        rows_per_batch: B.
        seq_len: T, positions in a row.
        seed: of the row order.

    Attributes:
        num_rows: rows of one epoch.
        batches_per_epoch: `num_rows / rows_per_batch`.

    Raises:
        UserError: the corpus has no document of two tokens, or a conversation longer than a row.
    """

    def __init__(self, reader: ShardReader, rows_per_batch: int, seq_len: int, seed: int) -> None:
        if rows_per_batch < 1 or seq_len < 1:
            raise UserError(f"a batch of {rows_per_batch} rows of {seq_len}: give 1 or more each")
        self.reader, self.seed = reader, seed
        self.rows_per_batch, self.seq_len = rows_per_batch, seq_len
        self._plans = [cached_plan(shard, seq_len) for shard in reader.shards]
        self._first_row = np.cumsum([0, *(plan.num_rows for plan in self._plans)])
        self.num_rows = int(self._first_row[-1])
        if not self.num_rows:
            raise UserError(f"{reader.folder}: holds no document of two tokens; give more text")
        self.batches_per_epoch = self.num_rows / rows_per_batch

    def batch(self, number: int) -> Batch:
        """Return batch `number`, counted from 0 over all epochs."""
        return self.take(number * self.rows_per_batch, self.rows_per_batch)

    def take(self, first: int, count: int) -> Batch:
        """Return rows `first` to `first + count - 1` of the endless row order."""
        shape = (count, self.seq_len)
        tokens = np.zeros(shape, np.int64)
        labels = np.full(shape, IGNORE, np.int64)
        document_ids = np.full(shape, PADDING, np.int32)
        positions = np.zeros(shape, np.int64)
        for shard, piece, at in self._filled(first, count):
            position = _ranges(piece.lengths)
            source = np.repeat(piece.starts, piece.lengths) + position
            following = shard.tokens[source + 1].astype(np.int64)
            if shard.labels is not None:
                following[shard.labels[source + 1] == 0] = IGNORE
            tokens.flat[at] = shard.tokens[source]
            labels.flat[at] = following
            document_ids.flat[at] = np.repeat(piece.document, piece.lengths)
            positions.flat[at] = position
        return Batch(*map(torch.from_numpy, (tokens, labels, document_ids, positions)))

    def kinds(self, first: int, count: int) -> Tensor:
        """Return of which kind each position of the rows that `take` gives is: (count, T) int64.

        An index into the reader's `kinds`; 0 where kinds are not told apart; -1 at padding.
        """
        kinds = np.full((count, self.seq_len), PADDING, np.int64)
        for shard, piece, at in self._filled(first, count):
            of_piece = 0 if shard.kinds is None else shard.kinds[_documents(shard, piece)]
            kinds.flat[at] = np.repeat(np.broadcast_to(of_piece, len(piece.lengths)), piece.lengths)
        return torch.from_numpy(kinds)

    def describe(self, number: int, row: int) -> str:
        """Name the documents of a row of batch `number`, for a person who has to find them."""
        shard, piece, _ = next(self._filled(number * self.rows_per_batch + row, 1))
        return f"{shard.path}, documents {', '.join(map(str, _documents(shard, piece).tolist()))}"

    def _filled(self, first: int, count: int) -> Iterator[tuple[Shard, _Pieces, Int64]]:
        """Yield for each shard its pieces in some rows, and which positions their tokens fill."""
        places = self._places(first, count)
        shard_of = self._shard_of(places)
        for number in np.unique(shard_of).tolist():
            rows = np.flatnonzero(shard_of == number)
            piece = self._pieces(number, places[rows] - self._first_row[number])
            begins = rows[piece.row] * self.seq_len + piece.column
            at = np.repeat(begins, piece.lengths) + _ranges(piece.lengths)
            yield self.reader.shards[number], piece, at

    def _places(self, first: int, count: int) -> Int64:
        """Return where rows of the endless order lie among the rows of all shards."""
        return endless_order(first, count, self.num_rows, self.seed)

    def _shard_of(self, places: Int64) -> Int64:
        return np.searchsorted(self._first_row, places, side="right") - 1

    def _pieces(self, shard: int, rows: Int64) -> _Pieces:
        """Return the pieces of some rows of a shard, in order."""
        plan = self._plans[shard]
        first = plan.row_offsets[rows]
        counts = plan.row_offsets[rows + 1] - first
        document = _ranges(counts)
        number = np.repeat(first, counts) + document
        lengths = plan.lengths[number]
        before = np.cumsum(lengths) - lengths
        row_begins = before[np.cumsum(counts) - counts]
        return _Pieces(
            row=np.repeat(np.arange(len(rows)), counts),
            document=document,
            column=before - np.repeat(row_begins, counts),
            starts=plan.starts[number],
            lengths=lengths,
        )


@dataclass(frozen=True, slots=True)
class _Pieces:
    """One entry a piece: its row (index into those asked for), place in it, tokens."""

    row: Int64
    document: Int64
    column: Int64
    starts: Int64
    lengths: Int64


def _documents(shard: Shard, piece: _Pieces) -> Int64:
    """Return which document of the shard each piece is of."""
    return np.searchsorted(shard.offsets, piece.starts.astype(np.uint64), side="right") - 1


def endless_order(first: int, count: int, size: int, seed: int) -> Int64:
    """Return entries `first` to `first + count - 1` of 0 to size - 1, again and again, in an order
    of its own in every epoch."""
    epochs, ranks = np.divmod(np.arange(first, first + count, dtype=np.int64), size)
    places = np.empty(count, np.int64)
    for epoch in np.unique(epochs).tolist():
        of_epoch = epochs == epoch
        places[of_epoch] = permute(ranks[of_epoch], size, seed, epoch)
    return places


def permute(ranks: Int64, size: int, seed: int, epoch: int) -> Int64:
    """Return where a permutation of 0 to size - 1, drawn by seed and epoch, puts each rank.

    A Feistel network over the next power of four, walked until it lands inside (Black and
    Rogaway 2002, "Ciphers with Arbitrary Finite Domains", section 3.3): no table in memory.
    """
    half_bits = max((max(size - 1, 1).bit_length() + 1) // 2, 1)
    half_mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    keys = np.frombuffer(digest, "<u8", _FEISTEL_ROUNDS)
    values = ranks.astype(np.uint64)
    outside = np.ones(len(values), bool)
    while outside.any():
        left, right = values[outside] >> shift, values[outside] & half_mask
        for key in keys:
            left, right = right, left ^ (mixed(right + key) & half_mask)
        values[outside] = (left << shift) | right
        outside = values >= size
    return values.astype(np.int64)


def _ranges(counts: Int64) -> Int64:
    """Return 0 to counts[0] - 1, then 0 to counts[1] - 1, and so on."""
    return np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
