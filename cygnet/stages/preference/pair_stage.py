"""Training on pairs: the chosen loss over packed pairs, and what is measured beside it.

Shapes: B rows, T positions, D documents of all rows, P = D / 2 pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cygnet.config import TrainConfig
from cygnet.model.transformer import Transformer
from cygnet.stages.packed import documents_per_row
from cygnet.stages.preference.answer_rows import (
    REFERENCE_ROWS,
    AnswerBatch,
    answer_log_probs,
    moved,
)
from cygnet.stages.preference.config import OF_MEANS, DpoConfig
from cygnet.stages.preference.losses import dpo_loss, ipo_loss, orpo_loss, simpo_loss
from cygnet.stages.preference.rules import preference_rules
from cygnet.stages.samples import Prompts
from cygnet.stages.watch import Watch
from cygnet.text.loader import Batch, endless_order
from cygnet.train.stage import Call


class DpoStage:
    """Packed pairs and the preference loss over them.

    Args:
        train, heldout: all pairs; the latter may hold none.
        train_config: rows per batch and seed.
        config: the loss.
        sources: for each row of `train`, where its pairs were read; for `describe`.
        prompts: what is asked while it trains.
        equal_share: of the pairs that were given, those left out because their sides are equal.
        vocab_size: of the tokenizer; none where the model has no more outputs.
    """

    name = "dpo"

    def __init__(
        self,
        train: AnswerBatch,
        heldout: AnswerBatch,
        train_config: TrainConfig,
        config: DpoConfig,
        sources: Sequence[Sequence[str]] = (),
        prompts: Prompts | None = None,
        equal_share: float = 0.0,
        vocab_size: int | None = None,
    ) -> None:
        self.train, self.heldout_pairs, self.prompts = train, heldout, prompts
        self.sources, self.vocab_size = sources, vocab_size
        self.config, self.seed = config.resolved(), train_config.seed
        self.num_rows = len(train.tokens)
        self.rows_per_batch = min(train_config.rows_per_batch, self.num_rows)
        self.batches_per_epoch = self.num_rows / self.rows_per_batch
        self.watching = Watch(self.name, preference_rules(self.config, equal_share))

    def compile(self) -> None:
        """Nothing: the number of labels changes from batch to batch."""

    def batch(self, number: int) -> AnswerBatch:
        """Return the rows of one step, a pure function of the number."""
        return self.train.take(torch.from_numpy(self._places(number)))

    def weight(self, batch: Batch) -> int:
        """Return the number of pairs."""
        return int(documents_per_row(batch).sum()) // 2

    def loss(self, model: Transformer, rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed preference loss, and summed metrics of the pairs."""
        assert isinstance(rows, AnswerBatch)
        log_probs, counts = answer_log_probs(model, rows, self.vocab_size)
        reference = rows.reference[~rows.reference.isnan()]
        losses, margin = self._preference(log_probs, reference, counts)
        chosen_mean, rejected_mean = log_probs[0::2] / counts[0::2], log_probs[1::2] / counts[1::2]
        total = losses.sum()
        if self.config.sft_weight:
            total = total - self.config.sft_weight * chosen_mean.sum()
        rewards = self._rewards(log_probs.detach(), reference, counts)
        metrics = {
            "preference_loss": losses,
            "accuracy": (margin > 0).float(),
            "margin": margin,
            "chosen_log_prob": chosen_mean,
            "rejected_log_prob": rejected_mean,
            "chosen_reward": rewards[0::2],
            "rejected_reward": rewards[1::2],
            "chosen_length": counts[0::2],
            "rejected_length": counts[1::2],
        }
        if self.config.reference == "cached":
            metrics["kl"] = moved(log_probs, reference, counts) / 2  # two answers are one pair
        return total, {name: value.detach().sum() for name, value in metrics.items()}

    def _preference(
        self, log_probs: Tensor, reference: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return loss and margin of each pair, both (P,), of (D,) sums and numbers of tokens."""
        config = self.config
        beta = config.beta or 0.0
        if config.loss in OF_MEANS or config.length_normalize:
            log_probs, reference = log_probs / counts, reference / counts
        chosen, rejected = log_probs[0::2], log_probs[1::2]
        if config.loss == "simpo":
            return simpo_loss(chosen, rejected, beta, config.simpo_gamma)
        if config.loss == "orpo":
            return orpo_loss(chosen, rejected, beta)
        both = (chosen, rejected, reference[0::2], reference[1::2])
        if config.loss == "ipo":
            return ipo_loss(*both, beta)
        return dpo_loss(*both, beta, config.label_smoothing or 0.0)

    def _rewards(self, log_probs: Tensor, reference: Tensor, counts: Tensor) -> Tensor:
        """Return the implicit reward of each answer, (D,): what its loss compares, times beta."""
        config = self.config
        rewards = log_probs if config.loss in OF_MEANS else log_probs - reference
        if config.loss in OF_MEANS or config.length_normalize:
            rewards = rewards / counts
        return (config.beta or 0.0) * rewards

    def describe(self, number: int, row: int) -> str:
        """Name the row's pairs by where they were read."""
        place = int(self._places(number)[row])
        if not self.sources:
            return f"row {place} of the packed pairs"
        return f"the pairs of {', '.join(self.sources[place])}"

    def heldout(self, model: Transformer) -> dict[str, float]:
        """Return loss, accuracy, margin and the other metrics on the held-out pairs."""
        heldout = self._heldout_rows(model)
        weight = self.weight(heldout) if len(heldout.tokens) else 0
        sums: dict[str, float] = {}
        for start in range(0, len(heldout.tokens), REFERENCE_ROWS):
            part = heldout.rows(start, start + REFERENCE_ROWS)
            total, metrics = self.loss(model, part.to(next(model.parameters()).device))
            for name, value in {"loss": total, **metrics}.items():
                sums[f"heldout_{name}"] = sums.get(f"heldout_{name}", 0.0) + float(value) / weight
        return {name: value for name, value in sums.items() if not math.isnan(value)}

    def _heldout_rows(self, model: Transformer) -> AnswerBatch:
        return self.heldout_pairs

    def samples(self, call: Call) -> list[dict[str, Any]]:
        """Return what the model answers to some held-out prompts."""
        return self.prompts.answered(call) if self.prompts else []

    def watch(self, step: int, metrics: dict[str, float]) -> None:
        """Say what in a logged line has left its healthy range."""
        self.watching(step, metrics)

    def watch_state(self) -> dict[str, Any]:
        """Return what the rules have seen."""
        return self.watching.state()

    def load_watch_state(self, state: dict[str, Any]) -> None:
        """Take what `watch_state` gave."""
        self.watching.load_state(state)

    def _places(self, number: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        first = number * self.rows_per_batch
        return endless_order(first, self.rows_per_batch, self.num_rows, self.seed)
