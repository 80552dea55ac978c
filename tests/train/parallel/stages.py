"""The stages that are trained in several processes: name -> (model, shards, settings) -> stage.

A stage is made alike in every process, from what is in the request alone.
"""

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cygnet.config import TrainConfig
from cygnet.model.scoring import ScoringTransformer
from cygnet.model.transformer import Transformer
from cygnet.stages.next_token import NextTokenStage
from cygnet.stages.reward import RewardConfig, RewardStage, pack, scorer_around
from cygnet.text.loader import IGNORE, Batch
from cygnet.text.shards import ShardReader
from cygnet.text.tokenizer import Tokenizer
from cygnet.train.parallel.group import gather, world
from cygnet.train.stage import Policy

Made = tuple[Transformer, Any]


class EchoStage(NextTokenStage):
    """Learns what the model itself holds likeliest but for one position in three; every second
    step it asks the model anew, and each process asks for its own rows."""

    must_keep = False
    every = 2

    def collect(self, number: int, policy: Policy) -> dict[str, float]:
        if number % self.every:
            return {}
        model, whole = policy(), self.loader.batch(number)
        mine = torch.arange(world().rank, len(whole.tokens), world().size)
        rows = whole.take(mine)
        logits = model.logits(model(rows.tokens, rows.positions, rows.document_ids))
        likeliest = torch.where(rows.positions % 3 == 0, rows.labels, logits.argmax(-1))
        labels = torch.where(rows.labels == IGNORE, IGNORE, likeliest)
        found = torch.empty_like(whole.labels)
        for places, part in gather((mine.tolist(), labels.tolist())):
            if places:
                found[places] = torch.tensor(part)
        self.collected = Batch(whole.tokens, found, whole.document_ids, whole.positions)
        return {"collected_labels": float(self.collected.num_labels)}

    def batch(self, number: int) -> Batch:
        return self.collected

    def judge(self, policy: Policy) -> dict[str, float]:
        return {"heldout_size": float(policy().output_weight.float().norm())}

    def state(self) -> dict[str, Tensor]:
        return {name: getattr(self.collected, name) for name in Batch.BLANK}

    def load_state(self, state: dict[str, Tensor]) -> None:
        if state:
            self.collected = Batch(**state)


class ScoredStage(NextTokenStage):
    """Learns the next token, and to give each token its position as its score."""

    def loss(self, model: Any, rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, _ = super().loss(model, rows)
        scores = model.scores(model(rows.tokens, rows.positions, rows.document_ids))
        error = ((scores - rows.positions / 10) * (rows.labels != IGNORE)).square().sum()
        return loss + error, {"score_error": error.detach()}


def _plain(
    kind: type[NextTokenStage],
) -> Callable[[Transformer, ShardReader, TrainConfig, Tokenizer], Made]:
    def make(
        model: Transformer, shards: ShardReader, config: TrainConfig, tokenizer: Tokenizer
    ) -> Made:
        return model, kind("pretrain", shards, shards, config, tokenizer)

    return make


def _scored(
    model: Transformer, shards: ShardReader, config: TrainConfig, tokenizer: Tokenizer
) -> Made:
    return (
        ScoringTransformer.around(model),
        ScoredStage("pretrain", shards, shards, config, tokenizer),
    )


def _reward(
    model: Transformer, shards: ShardReader, config: TrainConfig, tokenizer: Tokenizer
) -> Made:
    """Pairs, of which the better side begins with a smaller id."""
    chooser = random.Random(5)

    def said(first: int) -> list[int]:
        return [first, *chooser.choices(range(tokenizer.vocab_size), k=chooser.randint(1, 11))]

    groups = [[said(n), said(n + 150)] for n in range(40)]
    batch, _ = pack(groups, [[n % 3 / 10] * 2 for n in range(40)], config.max_seq_len)
    return scorer_around(model), RewardStage(batch, batch, config, RewardConfig())


MAKERS: dict[str, Callable[[Transformer, ShardReader, TrainConfig, Tokenizer], Made]] = {
    "echo": _plain(EchoStage),
    "scored": _scored,
    "reward": _reward,
}
