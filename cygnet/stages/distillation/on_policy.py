"""On-policy distillation: the student answers, and the teacher judges each of its tokens.

Agarwal et al. 2024, "On-Policy Distillation of Language Models", algorithm 1. The gradient does not
go through the drawing of the tokens.

Shapes: B rows, T positions.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cygnet.config import TrainConfig
from cygnet.model.transformer import Transformer
from cygnet.stages.distillation.distill import DistillConfig, DistillStage
from cygnet.stages.reinforcement.episode_rows import SCORED_ROWS, EpisodeRows
from cygnet.stages.reinforcement.groups import answer_seed
from cygnet.stages.reinforcement.prompts import with_room
from cygnet.stages.reinforcement.rollout import Episode, Roller, RolloutConfig, Row
from cygnet.text.loader import Batch, endless_order
from cygnet.text.shards import ShardReader
from cygnet.text.tokenizer import Tokenizer
from cygnet.train.parallel.group import gather, world
from cygnet.train.stage import Policy

HELDOUT_QUESTIONS = 32
"""Held-out prompts that the student answers at each look."""
_HELDOUT = -1


@dataclass(frozen=True, slots=True)
class DistillBatch(Batch):
    """Rows of text, and rows that the student wrote."""

    own: Tensor
    """(B, 1) float32: 1 for a row of the student's, 0 for one of the text."""
    BLANK: ClassVar[dict[str, float]] = {**Batch.BLANK, "own": 0}


class OnPolicyStage(DistillStage):
    """A share of the conversations of each step is answered by the student; an `OnlineStage`.

    Args:
        teacher, train, heldout, config, tokenizer, method: as in `DistillStage`.
        questions: prompts that the student answers.
        heldout_questions: prompts whose answers are only looked at.

    Raises:
        UserError: no prompt leaves room for an answer.
    """

    def __init__(
        self,
        teacher: Transformer,
        train: ShardReader,
        heldout: ShardReader | None,
        config: TrainConfig,
        tokenizer: Tokenizer,
        method: DistillConfig,
        questions: Sequence[Row],
        heldout_questions: Sequence[Row],
    ) -> None:
        rows = config.rows_per_batch
        self.text_rows = rows - math.ceil(method.on_policy * rows)
        text = dataclasses.replace(config, batch_tokens=max(self.text_rows, 1) * config.max_seq_len)
        super().__init__(teacher, train, heldout, text, tokenizer, method)
        num_rows = self.text.loader.num_rows
        self.batches_per_epoch = num_rows / rows
        per_row = train.num_documents / num_rows
        self.num_answers = max(round((rows - self.text_rows) * per_row), 1)
        self.row_length, self.seed = config.max_seq_len, config.seed
        drawing = RolloutConfig(
            temperature=method.rollout_temperature, max_new_tokens=method.max_new_tokens
        )
        self.roller = Roller(tokenizer, drawing, self.row_length + 1)
        self.questions = with_room(questions, self.roller, self.row_length + 1, "distill")
        self.heldout_questions = with_room(
            heldout_questions, self.roller, self.row_length + 1, "distill, held out"
        )[:HELDOUT_QUESTIONS]
        self.must_keep = False

    def collect(self, number: int, policy: Policy) -> dict[str, float]:
        """Let the student answer the prompts of step `number`; see `OnlineStage`."""
        began = time.monotonic()
        episodes = self._answered(policy(), self._asked(number), number)
        own = EpisodeRows(episodes, self.row_length).rows
        parts = [_marked(own, 1.0)]
        if self.text_rows:
            parts.insert(0, _marked(self.text.batch(number), 0.0))
        names = [field.name for field in dataclasses.fields(DistillBatch)]
        self.collected = DistillBatch(
            *(torch.cat([getattr(part, name) for part in parts]) for name in names)
        )
        return _told(episodes) | {"rollout_s": time.monotonic() - began}

    def _asked(self, number: int) -> list[Row]:
        """Return the prompts of a step: each once an epoch, in an order of its own."""
        first, size = number * self.num_answers, len(self.questions)
        places = endless_order(first, self.num_answers, size, self.seed)
        return [self.questions[place] for place in places.tolist()]

    def _answered(self, model: Transformer, rows: Sequence[Row], number: int) -> list[Episode]:
        """Return an episode for each prompt; the processes share them."""
        rank, size = world().rank, world().size
        seeds = [answer_seed(self.seed, number, place) for place in range(len(rows))]
        mine = self.roller.roll(model, rows[rank::size], seeds[rank::size])
        found: list[Any] = [None] * len(rows)
        for other, episodes in enumerate(gather(mine)):
            found[other::size] = episodes
        return found

    def batch(self, number: int) -> DistillBatch:
        """Return what was collected for this step."""
        return self.collected

    def _alpha(self, rows: Batch) -> Tensor:
        assert isinstance(rows, DistillBatch)
        return super()._alpha(rows) * (1 - rows.own)

    def describe(self, number: int, row: int) -> str:
        """Name a row of the text by its place, one of the student's by that."""
        if row >= self.text_rows:
            return f"answers of the student before step {number + 1}"
        return super().describe(number, row)

    @torch.no_grad()
    def judge(self, policy: Policy) -> dict[str, float]:
        """Return the mean divergence over answers of the student to held-out prompts."""
        if not self.heldout_questions:
            return {}
        model = policy()
        episodes = self._answered(model, self.heldout_questions, _HELDOUT)
        rows = _marked(EpisodeRows(episodes, self.row_length).rows, 1.0)
        total = 0.0
        for start in range(0, len(rows.tokens), SCORED_ROWS):
            part = rows.rows(start, start + SCORED_ROWS).to(model.output_weight.device)
            total += float(self.loss(model, part)[1]["divergence"])
        return {"heldout_own_divergence": total / max(rows.num_labels, 1)}

    def state(self) -> dict[str, Tensor]:
        """Return nothing: every step collects its own."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take nothing."""


def _marked(rows: Batch, own: float) -> DistillBatch:
    mark = torch.full((len(rows.tokens), 1), own)
    return DistillBatch(rows.tokens, rows.labels, rows.document_ids, rows.positions, mark)


def _told(episodes: Sequence[Episode]) -> dict[str, float]:
    count = len(episodes)
    return {
        "answer_tokens": sum(episode.num_own for episode in episodes) / count,
        "truncated": sum(episode.truncated for episode in episodes) / count,
    }
