"""Answers packed into rows, and how likely a model finds each of them.

Both answers of a pair lie in one row as two documents, so that pairs are packed as conversations
are, and attention stays within each answer.

Shapes: B rows, T positions, M = B T, D documents of all rows.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from cygnet.files import write_atomic
from cygnet.model.transformer import Transformer
from cygnet.progress import say, track
from cygnet.stages.packed import (
    Encoded,
    documents_per_row,
    label_documents,
    label_log_probs,
    lay_out,
)
from cygnet.text.chat import encode_chat
from cygnet.text.loader import Batch
from cygnet.text.packing import packing_plan
from cygnet.text.tokenizer import Tokenizer

REFERENCE_ROWS = 8


@dataclass(frozen=True, slots=True)
class AnswerBatch(Batch):
    """Rows of answers, each a document."""

    reference: Tensor
    """(B, most documents of a row) float32: what the reference gives each; NaN behind the last."""
    BLANK: ClassVar[dict[str, float]] = {**Batch.BLANK, "reference": math.nan}


class PackedAnswers:
    """Groups of answers packed into rows, those of one group one behind the other.

    Args:
        groups: what must lie in one row: a pair's two answers, or one answer.
        seq_len: positions in a row; longer groups are skipped.

    Attributes:
        rows: the whole set as one batch.
        num_kept: groups kept.
        skipped: which groups do not fit a row.
        needed: positions that each group fills.
        numbers: for each row, which of the groups it holds, in order.
    """

    def __init__(self, groups: Sequence[Sequence[Encoded]], seq_len: int) -> None:
        self.needed = [sum(len(ids) - 1 for ids, _ in group) for group in groups]
        fits = [i for i, needed in enumerate(self.needed) if needed <= seq_len]
        self.skipped = [i for i, needed in enumerate(self.needed) if needed > seq_len]
        self.num_kept = len(fits)
        # A document of n tokens fills n - 1 positions.
        first_token = np.cumsum([0, *(self.needed[i] + 1 for i in fits)])
        plan = packing_plan(first_token.astype(np.uint64), seq_len, may_cut=False)
        groups_of = np.searchsorted(first_token, plan.starts).tolist()
        edges = plan.row_offsets.tolist()
        self.numbers = [
            [fits[group] for group in groups_of[start:stop]] for start, stop in pairwise(edges)
        ]
        self.rows = lay_out([[d for i in row for d in groups[i]] for row in self.numbers], seq_len)


def encode_answer(tokenizer: Tokenizer, prompt: Sequence[dict[str, Any]], answer: str) -> Encoded:
    """Return (ids, is label) of a conversation with its last answer, which alone is labelled."""
    given = encode_chat(tokenizer, prompt, add_generation_prompt=True).ids
    chat = encode_chat(tokenizer, [*prompt, {"role": "assistant", "content": answer}])
    return chat.ids, [is_label and at >= len(given) for at, is_label in enumerate(chat.is_label)]


def encode_pair(tokenizer: Tokenizer, pair: dict[str, Any]) -> tuple[Encoded, Encoded]:
    """Return the chosen and the rejected conversation."""
    chosen, rejected = (
        encode_answer(tokenizer, pair["prompt"], pair[name]) for name in ("chosen", "rejected")
    )
    return chosen, rejected


class PairRows(PackedAnswers):
    """Pairs packed into rows: documents 2 i and 2 i + 1 of a row are chosen and rejected.

    Args:
        pairs: rows {"prompt", "chosen", "rejected"}.
        tokenizer: of the model.
        seq_len: positions in a row; longer pairs are skipped and counted.
    """

    def __init__(self, pairs: Sequence[dict[str, Any]], tokenizer: Tokenizer, seq_len: int) -> None:
        super().__init__([encode_pair(tokenizer, pair) for pair in pairs], seq_len)


def answer_log_probs(
    model: Transformer, rows: Batch, vocab_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the summed log-probability of every document's labels, and how many there are.

    Documents are counted through the rows in order; both results are (D,) float32.

    Args:
        model, rows, vocab_size: as `label_log_probs` takes them.
    """
    log_probs = label_log_probs(model, rows, vocab_size)
    document = label_documents(rows)
    zeros = torch.zeros(int(documents_per_row(rows).sum()), device=log_probs.device)
    sums = zeros.index_add(0, document, log_probs)
    return sums, zeros.index_add(0, document, torch.ones_like(log_probs))


def moved(log_probs: Tensor, reference: Tensor, counts: Tensor) -> Tensor:
    """Return how far the model has moved from the reference on each answer, nats a token, (D,).

    Schulman's second estimate of a KL divergence, half the squared log-ratio ("Approximating KL
    Divergence", 2020), of the mean log-ratio of an answer's tokens. The answers are the data's and
    not the model's own, so it says how far, not exactly what a sample would.
    """
    return ((log_probs - reference) / counts).square() / 2


def spread_over_rows(rows: Batch, values: Tensor) -> Tensor:
    """Return a value for each document, (D,) in the order of the rows, as (B, most of a row).

    Behind a row's last document stands NaN. `tensor[~tensor.isnan()]` turns it back.
    """
    per_row = documents_per_row(rows)
    width = int(per_row.max()) if len(per_row) else 0
    spread = torch.full((len(per_row), width), torch.nan)
    spread[torch.arange(width) < per_row[:, None]] = values
    return spread


def with_reference(rows: Batch, log_probs: Tensor) -> AnswerBatch:
    """Put the reference's log-probabilities, (D,) in the order of the rows, beside the rows."""
    reference = spread_over_rows(rows, log_probs)
    return AnswerBatch(rows.tokens, rows.labels, rows.document_ids, rows.positions, reference)


def reference_log_probs(
    model: Transformer, rows: Batch, cache: Path, vocab_size: int | None = None
) -> Tensor:
    """Return the model's `answer_log_probs` of all rows, (D,), from `cache` where it is there.

    A file that is damaged is made again.
    """
    num_documents = int(documents_per_row(rows).sum())
    if cache.exists():
        try:
            found = np.load(cache, allow_pickle=False)
        except (ValueError, EOFError):
            found = np.zeros(0)
        if found.shape == (num_documents,) and found.dtype == np.float32:
            return torch.from_numpy(found)
        say(f"{cache}: damaged; computed again")
    device = next(model.parameters()).device
    parts = [torch.zeros(0)]
    with torch.no_grad():
        starts = range(0, len(rows.tokens), REFERENCE_ROWS)
        for start in track(starts, "reference"):
            part = rows.rows(start, start + REFERENCE_ROWS).to(device)
            parts.append(answer_log_probs(model, part, vocab_size)[0].cpu())
    log_probs = torch.cat(parts)
    file = io.BytesIO()
    np.save(file, log_probs.numpy(), allow_pickle=False)
    write_atomic(cache, file.getvalue())
    return log_probs
