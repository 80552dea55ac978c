"""Which pieces of which documents share a row, so that hardly any position is left empty.

A document of n tokens fills n - 1 positions: at each a token is given and the next one is learnt,
so its last token is given nowhere. Best-fit decreasing: the longest piece first, each into the
fullest row that has room (Ding et al. 2024, "Fewer Truncations Improve Language Modeling",
arXiv 2404.10830), over windows of documents so that memory stays flat.
"""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cygnet.errors import UserError
from cygnet.files import write_atomic
from cygnet.progress import say
from cygnet.text.shards import Shard

WINDOW_DOCUMENTS = 2**16
_VERSION = 1

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PackingPlan:
    """Rows of pieces: piece p gives tokens `starts[p]` to `starts[p] + lengths[p] - 1`.

    The pieces of row r are `row_offsets[r]` to `row_offsets[r + 1] - 1`, in order of their start.
    """

    row_offsets: Int64
    """(R + 1,)"""
    starts: Int64
    """(P,) index into the tokens of the shard."""
    lengths: Int64
    """(P,) positions filled, 1 to the row length."""

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.row_offsets) - 1

    def waste(self, row_length: int) -> float:
        """Return the share of positions that are left empty."""
        return 1 - int(self.lengths.sum()) / max(self.num_rows * row_length, 1)


def packing_plan(
    offsets: NDArray[np.uint64],
    row_length: int,
    may_cut: bool = True,
    window_documents: int = WINDOW_DOCUMENTS,
) -> PackingPlan:
    """Pack documents into rows: a pure function of its arguments.

    Args:
        offsets: (D + 1,) where each document begins in the shard, and the end.
        row_length: positions in a row.
        may_cut: cut documents longer than a row into pieces, which overlap by one token so that
            each token is learnt once; otherwise refuse them.
        window_documents: documents that are packed together.

    Raises:
        UserError: a document is longer than a row and may not be cut.
    """
    edges = offsets.astype(np.int64)
    longest = int(np.diff(edges).max(initial=0))
    if not may_cut and longest - 1 > row_length:
        raise UserError(
            f"a conversation of {longest} tokens does not fit rows of {row_length}; raise "
            f"--max_seq_len to {longest - 1}, or tokenize again with the shorter context"
        )
    rows, starts, lengths, num_rows = [], [], [], 0
    for first in range(0, len(edges) - 1, window_documents):
        window = edges[first : first + window_documents + 1]
        own_starts, own_lengths = _pieces(window, row_length)
        own_rows = _best_fit(own_lengths, row_length)
        order = np.lexsort((own_starts, own_rows))
        rows.append(own_rows[order] + num_rows)
        starts.append(own_starts[order])
        lengths.append(own_lengths[order])
        num_rows += int(own_rows.max(initial=-1)) + 1
    empty = np.zeros(0, np.int64)
    pieces_in_row = np.bincount(np.concatenate([empty, *rows]), minlength=num_rows)
    return PackingPlan(
        row_offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(pieces_in_row)]),
        starts=np.concatenate([empty, *starts]),
        lengths=np.concatenate([empty, *lengths]),
    )


def cached_plan(shard: Shard, row_length: int) -> PackingPlan:
    """Return the plan of a shard from the file beside it, memory-mapped.

    The file is made on first use, and again if it is damaged; where it cannot be written, the
    plan stays in memory.
    """
    path = shard.path.with_suffix(f".rows_{row_length}_v{_VERSION}.npy")
    if plan := _read_plan(path):
        return plan
    if path.is_file():
        say(f"{path}: damaged; packed again")
    plan = packing_plan(shard.offsets, row_length, may_cut=shard.labels is None)
    content = np.concatenate([[plan.num_rows], plan.row_offsets, plan.starts, plan.lengths])
    file = io.BytesIO()
    np.save(file, np.concatenate([[zlib.crc32(content.data)], content]), allow_pickle=False)
    try:
        write_atomic(path, file.getvalue())
    except PermissionError:
        return plan
    return _read_plan(path) or plan


def _read_plan(path: Path) -> PackingPlan | None:
    if not path.is_file():
        return None
    try:
        flat: Int64 = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except (ValueError, EOFError):
        return None
    if len(flat) < 3 or zlib.crc32(flat[1:].data) != flat[0]:
        return None
    num_rows = int(flat[1])
    row_offsets, pieces = flat[2 : num_rows + 3], flat[num_rows + 3 :]
    return PackingPlan(row_offsets, pieces[: len(pieces) // 2], pieces[len(pieces) // 2 :])


def _pieces(edges: Int64, row_length: int) -> tuple[Int64, Int64]:
    """Return starts and lengths of pieces, in order; a document of one token has none."""
    positions = np.maximum(np.diff(edges) - 1, 0)
    num_pieces = -(-positions // row_length)
    document = np.repeat(np.arange(len(positions)), num_pieces)
    place = np.arange(len(document)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    lengths = np.minimum(positions[document] - place * row_length, row_length)
    return edges[document] + place * row_length, lengths


def _best_fit(lengths: Int64, row_length: int) -> Int64:
    """Return the row of each piece.

    `rooms[k]` lists the rows with k free positions and bit k of `open_rooms` says whether it has
    any, so that the fullest row with room is the lowest set bit at or above the length.
    """
    order = np.argsort(-lengths, kind="stable")
    num_full = int((lengths == row_length).sum())
    rows = np.empty(len(lengths), np.int64)
    rows[order[:num_full]] = np.arange(num_full)
    rooms: list[list[int]] = [[] for _ in range(row_length + 1)]
    open_rooms, num_rows = 0, num_full
    placed: list[int] = []
    for length in lengths[order[num_full:]].tolist():
        fitting = open_rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = rooms[room].pop()
            if not rooms[room]:
                open_rooms ^= 1 << room
        else:
            room, row = row_length, num_rows
            num_rows += 1
        left = room - length
        if left:
            rooms[left].append(row)
            open_rooms |= 1 << left
        placed.append(row)
    rows[order[num_full:]] = placed
    return rows
