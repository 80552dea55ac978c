"""The stages that are trained in several processes: name -> (model, shards, settings) -> stage.

A stage is made alike in every process, from what is in the request alone.
"""

import copy
import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from cygnet.config import TrainConfig
from cygnet.generate.runner import laid_out
from cygnet.model.lora import LoraConfig, add_lora, merged
from cygnet.model.scoring import ScoringTransformer
from cygnet.model.transformer import Transformer
from cygnet.stages.distillation.distill import DistillConfig, DistillStage
from cygnet.stages.distillation.on_policy import OnPolicyStage
from cygnet.stages.next_token import NextTokenStage
from cygnet.stages.packed import lay_out
from cygnet.stages.preference.answer_rows import (
    AnswerBatch,
    answer_log_probs,
    with_reference,
)
from cygnet.stages.preference.dpo import DpoConfig, DpoStage, KtoStage
from cygnet.stages.preference.kto import labelled_batch
from cygnet.stages.preference.reward import RewardConfig, RewardStage, pack, scorer_around
from cygnet.stages.reinforcement.grpo import GrpoConfig, GrpoStage
from cygnet.stages.reinforcement.ppo import PpoConfig, PpoStage
from cygnet.stages.reinforcement.ppo_rollout import Answerer
from cygnet.stages.reinforcement.rollout import Roller, RolloutConfig
from cygnet.text.loader import IGNORE, Batch
from cygnet.text.shards import ShardReader
from cygnet.text.tokenizer import Tokenizer
from cygnet.train.parallel.group import gather, world
from cygnet.train.stage import Policy
from tests.models import random_model

Made = tuple[Transformer, Any]
Maker = Callable[[Transformer, ShardReader, TrainConfig, Tokenizer], Made]


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


class LoraStage(EchoStage):
    """As its parent; judges by all that the adapted model holds, merged."""

    def judge(self, policy: Policy) -> dict[str, float]:
        whole = merged(policy()).state_dict()
        return {"heldout_size": sum(float((t.float() ** 3).sum()) for t in whole.values())}


class ScoredStage(NextTokenStage):
    """Learns the next token, and to give each token its position as its score."""

    def loss(self, model: Any, rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, _ = super().loss(model, rows)
        scores = model.scores(model(rows.tokens, rows.positions, rows.document_ids))
        error = ((scores - rows.positions / 10) * (rows.labels != IGNORE)).square().sum()
        return loss + error, {"score_error": error.detach()}


def _plain(kind: type[NextTokenStage]) -> Maker:
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


@dataclass(frozen=True)
class Worth:
    total: float
    parts: dict[str, float]
    failure: str | None = None


class ByLength:
    """Likes answers by the remainder of their length; cannot judge those of one remainder."""

    num_failures, first_failure = 0, None

    def judge(self, answer: str, row: Any, messages: Any = None) -> Worth:
        value = len(answer) % 7 / 7
        return Worth(value, {"length": value}, "six" if len(answer) % 7 == 6 else None)


def _grpo(
    model: Transformer, shards: ShardReader, config: TrainConfig, tokenizer: Tokenizer
) -> Made:
    method = GrpoConfig(
        loss="dapo", prompts_per_step=3, group_size=3, resample=1,
        kl_coef=0.05, max_new_tokens=8, heldout_prompts=3,
    )  # fmt: skip
    rows = [{"prompt": f"a {'b' * length}"} for length in range(1, 9)]
    reference = Transformer(model.config)
    reference.load_state_dict(model.state_dict())
    stage = GrpoStage(
        tokenizer, rows[:5], rows[5:], ByLength(), method, config.max_seq_len, config.seed,
        reference.requires_grad_(False),
    )  # fmt: skip
    return model, stage


def _grpo_by_adapter(
    model: Transformer, shards: ShardReader, config: TrainConfig, tokenizer: Tokenizer
) -> Made:
    model, stage = _grpo(model, shards, config, tokenizer)
    add_lora(model, LoraConfig(lora=True, lora_rank=3), torch.Generator().manual_seed(1))
    return model, stage


def _preference(
    loss: Literal["orpo", "kto"],
) -> Maker:
    """Pairs, or answers with labels, of random tokens; other answers stand for mismatched ones."""

    def make(
        model: Transformer, shards: ShardReader, config: TrainConfig, tokenizer: Tokenizer
    ) -> Made:
        chooser = random.Random(4)

        def answers(num_rows: int) -> AnswerBatch:
            rows = []
            for _ in range(num_rows):
                groups = []
                for _ in range(chooser.choice((2, 4))):  # rows weigh differently
                    ids = chooser.choices(range(tokenizer.vocab_size), k=chooser.randint(3, 8))
                    groups.append((ids, [at > 0 for at in range(len(ids))]))
                rows.append(groups)
            packed = lay_out(rows, config.max_seq_len)
            with torch.no_grad():
                found, _ = answer_log_probs(model, packed)
            return with_reference(packed, found - 1.5)  # so that z_0 is above zero

        train, heldout = answers(13), answers(3)
        settings = DpoConfig(loss=loss, beta=0.5)
        if loss == "orpo":
            return model, DpoStage(train, heldout, config, settings)
        labelled = []
        for rows in (train, heldout):
            labels = [float(chooser.random() < 0.4) for _ in rows.reference.flatten()]
            labels = torch.tensor(labels)[: int((~rows.reference.isnan()).sum())]
            labelled.append((labelled_batch(rows, labels), answers(len(rows.tokens))))
        return model, KtoStage(*labelled, config, settings)

    return make


def _adapted(**settings: Any) -> Maker:
    def make(
        model: Transformer, shards: ShardReader, config: TrainConfig, tokenizer: Tokenizer
    ) -> Made:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():  # rows of zeros, with which training begins, have no direction
            for block in model.model.layers:
                for layer in (block.self_attn.o_proj, block.mlp.down_proj):
                    layer.weight.normal_(0, 0.05, generator=generator)
        add_lora(model, LoraConfig(lora=True, lora_rank=3, **settings), generator)
        return model, LoraStage("sft", shards, shards, config, tokenizer)

    return make


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


MAKERS: dict[str, Maker] = {
    "echo": _plain(EchoStage),
    "scored": _scored,
    "ppo": _ppo,
    "grpo": _grpo,
    "orpo": _preference("orpo"),
    "kto": _preference("kto"),
    "lora": _adapted(use_dora=True),
    "qlora": _adapted(quantize="nf4"),
    "grpo_lora": _grpo_by_adapter,
    "dropout": _adapted(lora_dropout=0.3),
    "reward": _reward,
    "distill": _distill,
    "on_policy": _on_policy,
}
DRAWING = ("dropout",)
"""Those in which each process draws numbers of its own, so that several are not one."""
