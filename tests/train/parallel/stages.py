"""The stages that are trained in several processes: name -> (model, shards, settings) -> stage.

A stage is made alike in every process, from what is in the request alone.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cygnet.config import TrainConfig
from cygnet.model.scoring import ScoringTransformer
from cygnet.model.transformer import Transformer
from cygnet.stages.next_token import NextTokenStage
from cygnet.stages.ppo import PpoConfig, PpoStage
from cygnet.stages.ppo_rollout import Answerer
from cygnet.stages.rollout import Roller, RolloutConfig
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


def _ppo(
    model: Transformer, shards: ShardReader, config: TrainConfig, tokenizer: Tokenizer
) -> Made:
    """Learns to write words of one length; a rollout is learnt from in four steps."""

    def reward(conversations: Sequence[Any]) -> list[float]:
        return [-abs(len(messages[-1]["content"]) - 9) / 9 for messages in conversations]

    settings = PpoConfig(
        answers_per_rollout=10, epochs_per_rollout=2, minibatches=2, max_new_tokens=6,
        heldout_prompts=3, kl_coef=0.1, target_kl=0.5,
    )  # fmt: skip
    roller = Roller(tokenizer, RolloutConfig(max_new_tokens=settings.max_new_tokens))
    prompts = [{"prompt": word} for word in "abcdefg"]
    answerer = Answerer(
        roller, copy.deepcopy(model), reward, lambda c: [float(len(c[0]))] * len(c),
        config.max_seq_len,
    )  # fmt: skip
    policy = ScoringTransformer.around(model)
    return policy, PpoStage(prompts, prompts, answerer, config, settings)


MAKERS: dict[str, Callable[[Transformer, ShardReader, TrainConfig, Tokenizer], Made]] = {
    "echo": _plain(EchoStage),
    "scored": _scored,
    "ppo": _ppo,
}
