"""Episodes as packed rows, and what a model says of the tokens in them.

Shapes: B rows, T positions, M labels of all rows in their order, E episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from cygnet.errors import UserError
from cygnet.model.transformer import Transformer
from cygnet.stages.packed import at_labels, label_log_probs, lay_out
from cygnet.stages.reinforcement.rollout import Episode
from cygnet.text.loader import IGNORE, Batch
from cygnet.text.packing import packing_plan

SCORED_ROWS = 8


class EpisodeRows:
    """Episodes packed into rows, each a document; the tokens that the model drew are the labels.

    Args:
        episodes: in any number.
        row_length: T.

    Attributes:
        rows: the batch.
        episodes: as given.
        order: (E,) int64: which episode each document of the rows is, in their order.
        counts: (E,) int64: labels of each document, in that order.

    Raises:
        UserError: an episode is longer than a row.
    """

    def __init__(self, episodes: Sequence[Episode], row_length: int) -> None:
        self.episodes = list(episodes)
        sizes = [len(episode.ids) for episode in episodes]
        longest = max(sizes, default=0)
        if longest - 1 > row_length:
            raise UserError(
                f"an episode of {longest} tokens does not fit rows of {row_length}: raise "
                f"--max_seq_len to {longest - 1}, or lower --max_new_tokens"
            )
        first = np.cumsum([0, *sizes])
        plan = packing_plan(first.astype(np.uint64), row_length, may_cut=False)
        order = np.searchsorted(first, plan.starts)
        documents = [(self.episodes[place].ids, self.episodes[place].is_own) for place in order]
        edges = plan.row_offsets.tolist()
        self.rows = lay_out([documents[a:b] for a, b in pairwise(edges)], row_length)
        self.order = torch.from_numpy(order)
        self.counts = torch.tensor([self.episodes[place].num_own for place in order.tolist()])

    def spread(self, values: Tensor) -> Tensor:
        """Give a value of each episode, (E,), to its labels: (B, T) float32, zero elsewhere."""
        return self.at_labels(values[self.order].repeat_interleave(self.counts))

    def lay(self, values: Sequence[Sequence[float]]) -> Tensor:
        """Put a value of each own token of each episode to its label: (B, T) float32."""
        flat = [value for place in self.order.tolist() for value in values[place]]
        return self.at_labels(torch.tensor(flat))

    def at_labels(self, values_M: Tensor) -> Tensor:
        """Put (M,) values in the order of the labels to them: (B, T) float32, zero elsewhere."""
        return at_labels(self.rows, values_M)

    def per_episode(self, values_BT: Tensor) -> list[list[float]]:
        """Return the values at the labels of each episode, in the order of the episodes."""
        parts = values_BT[self.rows.labels != IGNORE].split(self.counts.tolist())
        found: list[list[float]] = [[] for _ in self.episodes]
        for place, part in zip(self.order.tolist(), parts, strict=True):
            found[place] = part.tolist()
        return found


@torch.no_grad()
def score_rows(
    model: Transformer, rows: Batch, vocab_size: int, temperature: float = 1.0
) -> Tensor:
    """Return `label_log_probs` of a whole batch, a few rows at a time: (B, T) on the CPU."""
    device = next(model.parameters()).device
    found = [torch.zeros(0)]
    for start in range(0, len(rows.tokens), SCORED_ROWS):
        part = rows.rows(start, start + SCORED_ROWS).to(device)
        found.append(label_log_probs(model, part, vocab_size, temperature).cpu())
    return at_labels(rows, torch.cat(found))
