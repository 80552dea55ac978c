"""Learning to predict the next token: the loss that pretraining and instruction tuning share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cygnet.config import TrainConfig
from cygnet.model.loss import Kernel, linear_cross_entropy, softmax_gradient
from cygnet.model.transformer import Transformer
from cygnet.stages.samples import held_out_prompts
from cygnet.text.loader import Batch, PackedLoader
from cygnet.text.shards import ShardReader
from cygnet.text.tokenizer import Tokenizer
from cygnet.train.planner import HELDOUT_ROWS_AT_ONCE
from cygnet.train.stage import Call

HELDOUT_TOKENS = 32_768
"""Held-out tokens looked at during training; the evaluation after it reads all."""


class NextTokenStage:
    """Packed rows of documents, and the cross-entropy of every label in them.

    Args:
        name: of the stage.
        train: shards to learn from.
        heldout: shards that are only looked at; none where there are none.
        config: rows per batch, row length, seed.
        tokenizer: of the shards; without it no samples are given.
    """

    def __init__(
        self,
        name: str,
        train: ShardReader,
        heldout: ShardReader | None,
        config: TrainConfig,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.name = name
        self.loader = PackedLoader(train, config.rows_per_batch, config.max_seq_len, config.seed)
        self.batches_per_epoch = self.loader.batches_per_epoch
        self.kernel: Kernel = softmax_gradient
        self.prompts = tokenizer and held_out_prompts(tokenizer, heldout, config.max_seq_len)
        self.heldout_batches: list[Batch] = []
        if heldout is not None:
            rows = PackedLoader(heldout, HELDOUT_ROWS_AT_ONCE, config.max_seq_len, config.seed)
            count = max(HELDOUT_TOKENS // (HELDOUT_ROWS_AT_ONCE * config.max_seq_len), 1)
            self.heldout_batches = [
                rows.batch(n) for n in range(min(count, int(rows.batches_per_epoch) or 1))
            ]

    def compile(self) -> None:
        """Compile the softmax of the loss."""
        self.kernel = torch.compile(softmax_gradient)

    def batch(self, number: int) -> Batch:
        """Return the rows of one optimizer step."""
        return self.loader.batch(number)

    def weight(self, batch: Batch) -> int:
        """Return the number of labels."""
        return batch.num_labels

    def loss(self, model: Transformer, rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed cross-entropy in nats."""
        hidden = model(rows.tokens, rows.positions, rows.document_ids)
        loss = linear_cross_entropy(
            hidden.flatten(0, 1), model.output_weight, rows.labels.flatten(), self.kernel
        )
        return loss, {}

    def describe(self, number: int, row: int) -> str:
        """Name the row by its place in the shards."""
        return self.loader.describe(number, row)

    def heldout(self, model: Transformer) -> dict[str, float]:
        """Return `heldout_loss`, the mean nats per label of some held-out rows."""
        if not self.heldout_batches:
            return {}
        total = labels = 0.0
        for batch in self.heldout_batches:
            rows = batch.to(next(model.parameters()).device)
            total += float(self.loss(model, rows)[0])
            labels += rows.num_labels
        return {"heldout_loss": total / labels}

    def samples(self, call: Call) -> list[dict[str, Any]]:
        """Return how the model goes on from the beginnings of some held-out documents."""
        return self.prompts.answered(call) if self.prompts else []


def open_shards(folder: Path, tokenizer_hash: str) -> tuple[ShardReader, ShardReader | None]:
    """Open `folder/train` and `folder/heldout`; the latter may be missing."""
    heldout = folder / "heldout"
    return (
        ShardReader(folder / "train", tokenizer_hash),
        ShardReader(heldout, tokenizer_hash) if heldout.exists() else None,
    )
