"""Learning to predict the next token: the loss that pretraining and instruction tuning share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cygnet.config import TrainConfig
from cygnet.model.loss import Kernel, linear_cross_entropy, softmax_gradient
from cygnet.model.transformer import Transformer
from cygnet.stages.samples import held_out_prompts
from cygnet.text.loader import IGNORE, Batch, PackedLoader
from cygnet.text.shards import ShardReader
from cygnet.text.tokenizer import Tokenizer
from cygnet.train.planner import HELDOUT_ROWS_AT_ONCE
from cygnet.train.stage import Call

MAX_METRIC_NAME = 40
HELDOUT_TOKENS = 32_768
"""Held-out tokens looked at during training; the evaluation after it reads all."""


class NextTokenStage:
    """Packed rows of documents, and the cross-entropy of every label in them.

    Where the held-out shards tell kinds of documents apart, it is also measured for each kind.

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
        self.heldout_batches: list[tuple[Batch, Tensor]] = []
        self.heldout_kinds: list[str] = []
        if heldout is not None:
            rows = PackedLoader(heldout, HELDOUT_ROWS_AT_ONCE, config.max_seq_len, config.seed)
            most = max(HELDOUT_TOKENS // config.max_seq_len, HELDOUT_ROWS_AT_ONCE)
            num_rows = min(most, rows.num_rows)
            for first in range(0, num_rows, HELDOUT_ROWS_AT_ONCE):
                part = (first, min(HELDOUT_ROWS_AT_ONCE, num_rows - first))
                self.heldout_batches.append((rows.take(*part), rows.kinds(*part)))
            self.heldout_kinds = [metric_name(kind) for kind in heldout.kinds]

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
        hidden_BTD = model(rows.tokens, rows.positions, rows.document_ids)
        return self._cross_entropy(model, hidden_BTD.flatten(0, 1), rows.labels.flatten()), {}

    def _cross_entropy(self, model: Transformer, hidden_MD: Tensor, labels_M: Tensor) -> Tensor:
        return linear_cross_entropy(hidden_MD, model.output_weight, labels_M, self.kernel)

    def describe(self, number: int, row: int) -> str:
        """Name the row by its place in the shards."""
        return self.loader.describe(number, row)

    def heldout(self, model: Transformer) -> dict[str, float]:
        """Return `heldout_loss`, the mean nats per label of some held-out rows.

        Where there are several kinds of documents, each has its own: `heldout_loss/poem`.
        """
        names = self.heldout_kinds or [""]
        total, labels = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
        for batch, kinds_BT in self.heldout_batches:
            rows = batch.to(next(model.parameters()).device)
            hidden_BTD = model(rows.tokens, rows.positions, rows.document_ids)
            for number in kinds_BT[kinds_BT >= 0].unique().tolist():
                of_kind = (kinds_BT == number).to(rows.labels.device) & (rows.labels != IGNORE)
                loss = self._cross_entropy(model, hidden_BTD[of_kind], rows.labels[of_kind])
                total[names[number]] += float(loss)
                labels[names[number]] += int(of_kind.sum())
        if not any(labels.values()):
            return {}
        found = {"heldout_loss": sum(total.values()) / sum(labels.values())}
        if len(total) > 1:
            found |= {
                f"heldout_loss/{name}": total[name] / labels[name] for name in total if labels[name]
            }
        return found

    def samples(self, call: Call) -> list[dict[str, Any]]:
        """Return how the model goes on from the beginnings of some held-out documents."""
        return self.prompts.answered(call) if self.prompts else []


def metric_name(kind: str) -> str:
    """Return the name of a kind of data as the last part of a metric's name."""
    return re.sub(r"[^\w.-]+", "_", kind)[:MAX_METRIC_NAME] or "other"


def open_shards(folder: Path, tokenizer_hash: str) -> tuple[ShardReader, ShardReader | None]:
    """Open `folder/train` and `folder/heldout`; the latter may be missing."""
    heldout = folder / "heldout"
    return (
        ShardReader(folder / "train", tokenizer_hash),
        ShardReader(heldout, tokenizer_hash) if heldout.exists() else None,
    )
