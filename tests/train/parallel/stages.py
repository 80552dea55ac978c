"""The stages that are trained in several processes: name -> (model, shards, settings) -> stage.

A stage is made alike in every process, from what is in the request alone.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cygnet.config import TrainConfig
from cygnet.generate.runner import laid_out
from cygnet.model.scoring import ScoringTransformer
from cygnet.model.transformer import Transformer
from cygnet.stages.distill import DistillConfig, DistillStage
from cygnet.stages.next_token import NextTokenStage
from cygnet.stages.on_policy import OnPolicyStage
from cygnet.text.loader import IGNORE, Batch
from cygnet.text.shards import ShardReader
from cygnet.text.tokenizer import Tokenizer
from cygnet.train.parallel.group import gather, world
from cygnet.train.stage import Policy
from tests.models import random_model

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


def _teacher(model: Transformer) -> Transformer:
    sizes = dataclasses.replace(model.config, hidden_size=48)
    return laid_out(random_model(sizes, seed=5))


def _distill(
    model: Transformer, shards: ShardReader, config: TrainConfig, tokenizer: Tokenizer
) -> Made:
    method = DistillConfig(alpha=0.3, temperature=2, divergence="jsd", top_k=20)
    return model, DistillStage(_teacher(model), shards, shards, config, tokenizer, method)


def _on_policy(
    model: Transformer, shards: ShardReader, config: TrainConfig, tokenizer: Tokenizer
) -> Made:
    method = DistillConfig(
        divergence="reverse_kl", learn_from="conversations", on_policy=0.5, max_new_tokens=10
    )
    asked = [{"prompt": text} for text in "abcdefgh"]
    stage = OnPolicyStage(
        _teacher(model), shards, shards, config, tokenizer, method, asked, asked[:3]
    )
    return model, stage


MAKERS: dict[str, Callable[[Transformer, ShardReader, TrainConfig, Tokenizer], Made]] = {
    "echo": _plain(EchoStage),
    "scored": _scored,
    "distill": _distill,
    "on_policy": _on_policy,
}
