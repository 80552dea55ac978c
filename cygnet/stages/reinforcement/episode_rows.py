"""Episodes as packed rows, and what a model says of the tokens in them.

Shapes: B rows, T positions, M labels of all rows in their order, E episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from cygnet.errors import UserError
from cygnet.model.loss import chunked_entropy, chunked_log_probs
from cygnet.model.transformer import Transformer
from cygnet.stages.reinforcement.rollout import Episode
from cygnet.text.loader import IGNORE, PADDING, Batch
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
        shape = (plan.num_rows, row_length)
        tokens, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        labels = np.full(shape, IGNORE, np.int64)
        documents = np.full(shape, PADDING, np.int32)
        order = np.searchsorted(first, plan.starts)
        for row in range(plan.num_rows):
            column = 0
            places = order[plan.row_offsets[row] : plan.row_offsets[row + 1]]
            for number, place in enumerate(places.tolist()):
                episode = self.episodes[place]
                span = slice(column, column + sizes[place] - 1)
                tokens[row, span] = episode.ids[:-1]
                labels[row, span] = np.where(episode.is_own[1:], episode.ids[1:], IGNORE)
                documents[row, span] = number
                positions[row, span] = np.arange(sizes[place] - 1)
                column = span.stop
        self.rows = Batch(*map(torch.from_numpy, (tokens, labels, documents, positions)))
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


def at_labels(rows: Batch, values_M: Tensor) -> Tensor:
    """Put (M,) values in the order of the labels to them: (B, T) float32, zero elsewhere."""
    laid = torch.zeros(rows.labels.shape)
    laid[rows.labels != IGNORE] = values_M.float()
    return laid


def label_documents(rows: Batch) -> Tensor:
    """Return which document each label belongs to, (M,) int64, counted through the rows."""
    per_row = rows.document_ids.amax(dim=1).long() + 1
    first = per_row.cumsum(0) - per_row
    return (first[:, None] + rows.document_ids)[rows.labels != IGNORE]


def label_log_probs(
    model: Transformer, rows: Batch, vocab_size: int, temperature: float = 1.0
) -> Tensor:
    """Return log p of each label, (M,) float32, computed as in training.

    Args:
        model: any device.
        rows: on that device.
        vocab_size: of the tokenizer; a model may have more outputs, which are never drawn.
        temperature: at which the labels were drawn; it divides the logits.
    """
    hidden_MD, labels_M, logits = _at_labels(model, rows, vocab_size)
    return chunked_log_probs(logits, hidden_MD, labels_M, temperature)


def label_scores(
    model: Transformer, rows: Batch, vocab_size: int, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return log p of each label and the entropy where it was drawn, both (M,) float32.

    The first has a gradient where one is wanted, the second never. Arguments as those of
    `label_log_probs`.
    """
    hidden_MD, labels_M, logits = _at_labels(model, rows, vocab_size)
    log_probs = chunked_log_probs(logits, hidden_MD, labels_M, temperature)
    with torch.no_grad():
        return log_probs, chunked_entropy(logits, hidden_MD, temperature)


def _at_labels(
    model: Transformer, rows: Batch, vocab_size: int
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    hidden = model(rows.tokens, rows.positions, rows.document_ids).flatten(0, 1)
    labels = rows.labels.flatten()
    counted = labels != IGNORE

    def logits(hidden_MD: Tensor) -> Tensor:
        return model.logits(hidden_MD)[:, :vocab_size]

    return hidden[counted], labels[counted], logits


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
