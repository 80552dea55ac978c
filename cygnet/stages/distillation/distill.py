"""Distillation: a student learns the distribution that a larger model gives each next token.

White-box: the teacher reads the same rows as the student, whole in each process and frozen. Its
answers alone, from behind a server, are `teacher_answers`.

Shapes: B rows, T positions, M = B T.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from cygnet.config import TrainConfig
from cygnet.errors import UserError
from cygnet.model.transformer import Transformer
from cygnet.stages.distillation.losses import (
    DistillKernel,
    DistillLossConfig,
    distillation_gradient,
    linear_distillation,
)
from cygnet.stages.next_token import NextTokenStage
from cygnet.text.loader import Batch
from cygnet.text.shards import ShardReader
from cygnet.text.tokenizer import Tokenizer
from cygnet.train.stage import Call

LearnFrom = Literal["documents", "conversations"]


@dataclass(frozen=True, kw_only=True)
class DistillConfig(DistillLossConfig):
    """What a student learns from, and its loss.

    Raises:
        UserError: a value is out of its range.
    """

    learn_from: LearnFrom = "documents"
    """documents: every token of clean text; conversations: the assistant's tokens."""
    on_policy: float = 0.0
    """Share of a step's conversations that the student answers itself; the teacher judges each of
    its tokens (Agarwal et al. 2024). The cross-entropy is not taken of them."""
    rollout_temperature: float = 1.0
    """At which the student draws its answers."""
    max_new_tokens: int = 128
    """Longest of the student's answers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learn_from not in ("documents", "conversations"):
            raise UserError(f"learn_from {self.learn_from!r}: use documents or conversations")
        if not 0 <= self.on_policy <= 1:
            raise UserError(f"on_policy is {self.on_policy}: it must be in [0, 1]")
        if self.on_policy and self.learn_from == "documents":
            raise UserError("on_policy needs prompts to answer: add --learn_from conversations")
        if self.rollout_temperature <= 0 or self.max_new_tokens < 1:
            raise UserError(
                f"rollout_temperature {self.rollout_temperature} must be above zero, "
                f"max_new_tokens {self.max_new_tokens} at least 1"
            )


class DistillStage:
    """Packed rows, and how far the student is from its teacher at each label.

    Args:
        teacher: frozen, on the student's device, in the compute type.
        train, heldout: shards; the latter may be missing.
        config: rows per batch, row length, seed.
        tokenizer: of both models.
        method: the loss.
    """

    name = "distill"

    def __init__(
        self,
        teacher: Transformer,
        train: ShardReader,
        heldout: ShardReader | None,
        config: TrainConfig,
        tokenizer: Tokenizer,
        method: DistillConfig,
    ) -> None:
        self.teacher, self.method = teacher, method
        self.vocab_size = tokenizer.vocab_size
        self.text = NextTokenStage(self.name, train, heldout, config, tokenizer)
        self.batches_per_epoch = self.text.batches_per_epoch
        self.kernel: DistillKernel = partial(distillation_gradient, config=method)
        self._teacher_heldout: dict[str, float] | None = None

    def compile(self) -> None:
        """Compile the softmaxes of the loss."""
        self.text.compile()
        plain = self.kernel

        def kernel(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            return plain(*tensors)

        self.kernel = torch.compile(kernel)

    def batch(self, number: int) -> Batch:
        """Return the rows of one optimizer step."""
        return self.text.batch(number)

    def weight(self, batch: Batch) -> int:
        """Return the number of labels."""
        return batch.num_labels

    def loss(self, model: Transformer, rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss, and summed divergence and cross-entropy in nats."""
        hidden_BTD = model(rows.tokens, rows.positions, rows.document_ids)
        with torch.no_grad():
            teacher_BTE = self.teacher(rows.tokens, rows.positions, rows.document_ids)
        loss, others = linear_distillation(
            hidden_BTD.flatten(0, 1),
            model.output_weight[: self.vocab_size],
            teacher_BTE.flatten(0, 1),
            self.teacher.output_weight[: self.vocab_size],
            rows.labels.flatten(),
            self._alpha(rows).flatten(),
            self.kernel,
        )
        return loss, {"divergence": others[0], "cross_entropy": others[1]}

    def _alpha(self, rows: Batch) -> Tensor:
        """Return the share of the cross-entropy at each position, (B, T) float32."""
        return torch.full(rows.labels.shape, self.method.alpha, device=rows.labels.device)

    def describe(self, number: int, row: int) -> str:
        """Name the row by its place in the shards."""
        return self.text.describe(number, row)

    def heldout(self, model: Transformer) -> dict[str, float]:
        """Return the student's loss on held-out text, and its teacher's, both in nats per label."""
        if self._teacher_heldout is None:
            found = self.text.heldout(self.teacher)
            self._teacher_heldout = {
                name.replace("heldout_", "heldout_teacher_", 1): value
                for name, value in found.items()
            }
        return self.text.heldout(model) | self._teacher_heldout

    def samples(self, call: Call) -> list[dict[str, Any]]:
        """Return how the student goes on from some held-out beginnings."""
        return self.text.samples(call)
