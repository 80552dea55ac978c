"""Documents packed into rows, and what a model says of the labels in them.

Shapes: B rows, T positions, M labels of all rows in their order, D documents, W hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from cygnet.model.loss import chunked_entropy, chunked_log_probs
from cygnet.model.transformer import Transformer
from cygnet.text.loader import IGNORE, PADDING, Batch

Encoded = tuple[list[int], list[bool]]
"""The ids of a conversation, and for each whether it is learnt."""


def lay_out(rows: Sequence[Sequence[Encoded]], seq_len: int) -> Batch:
    """Return documents as a batch, those of each row one behind the other.

    Args:
        rows: what each row holds; it fits.
        seq_len: positions in a row.
    """
    shape = (len(rows), seq_len)
    tokens, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    labels = np.full(shape, IGNORE, np.int64)
    document_ids = np.full(shape, PADDING, np.int32)
    for row, documents in enumerate(rows):
        column = 0
        for number, (ids, is_label) in enumerate(documents):
            span = slice(column, column + len(ids) - 1)
            tokens[row, span] = ids[:-1]
            labels[row, span] = np.where(is_label[1:], ids[1:], IGNORE)
            document_ids[row, span] = number
            positions[row, span] = np.arange(len(ids) - 1)
            column = span.stop
    return Batch(*map(torch.from_numpy, (tokens, labels, document_ids, positions)))


def documents_per_row(rows: Batch) -> Tensor:
    """Return how many documents each row holds, (B,) int64."""
    return rows.document_ids.amax(dim=1).long() + 1


def label_documents(rows: Batch) -> Tensor:
    """Return which document each label belongs to, (M,) int64, counted through the rows."""
    per_row = documents_per_row(rows)
    first = per_row.cumsum(0) - per_row
    return (first[:, None] + rows.document_ids)[rows.labels != IGNORE]


def at_labels(rows: Batch, values_M: Tensor) -> Tensor:
    """Put (M,) values in the order of the labels to them: (B, T) float32, zero elsewhere."""
    laid = torch.zeros(rows.labels.shape)
    laid[rows.labels != IGNORE] = values_M.float()
    return laid


def label_log_probs(
    model: Transformer, rows: Batch, vocab_size: int | None = None, temperature: float = 1.0
) -> Tensor:
    """Return log p of each label, (M,) float32, computed as in training.

    Args:
        model: any device.
        rows: on that device.
        vocab_size: of the tokenizer; a model may have more outputs, which are no tokens. None
            takes all outputs.
        temperature: at which the labels were drawn; it divides the logits.
    """
    hidden_MW, labels_M = _hidden_at_labels(model, rows)
    return chunked_log_probs(_logits(model, vocab_size), hidden_MW, labels_M, temperature)


def label_scores(
    model: Transformer,
    rows: Batch,
    vocab_size: int | None = None,
    temperature: float = 1.0,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log p of each label, the entropy where it was drawn, and the hidden state there.

    The first two are (M,) float32, the last is (M, W).

    Args:
        model, rows, vocab_size, temperature: as those of `label_log_probs`.
        entropy_gradient: the entropy is to have a gradient too.
    """
    hidden_MW, labels_M = _hidden_at_labels(model, rows)
    logits = _logits(model, vocab_size)
    log_probs_M = chunked_log_probs(logits, hidden_MW, labels_M, temperature)
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropy_M = chunked_entropy(logits, hidden_MW, temperature)
    return log_probs_M, entropy_M, hidden_MW


def _hidden_at_labels(model: Transformer, rows: Batch) -> tuple[Tensor, Tensor]:
    counted = rows.labels != IGNORE
    hidden_BTW = model(rows.tokens, rows.positions, rows.document_ids)
    return hidden_BTW[counted], rows.labels[counted]


def _logits(model: Transformer, vocab_size: int | None) -> Callable[[Tensor], Tensor]:
    return lambda hidden_MW: model.logits(hidden_MW)[:, :vocab_size]
