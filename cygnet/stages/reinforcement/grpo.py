"""Reinforcement learning from rewards that can be checked: GRPO and its kin.

A step lets the model answer some prompts, several times each, on Cygnet's own engine with the
weights that are being trained. An answer's advantage is how much better its reward is than its
group's; the losses are in `grpo_losses`.

Shapes: B rows, T positions, M labels (the tokens that the model drew).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from cygnet.errors import UserError
from cygnet.model.transformer import Transformer
from cygnet.stages.packed import label_documents, label_log_probs
from cygnet.stages.reinforcement.episode_rows import (
    EpisodeRows,
    score_rows,
)
from cygnet.stages.reinforcement.groups import (
    Group,
    GroupDrawer,
    Judge,
    answer_seed,
    rewarded,
    shared,
)
from cygnet.stages.reinforcement.grpo_losses import (
    KINDS,
    LossName,
    importance_weights,
    k3_kl,
    overlong_penalty,
    policy_losses,
    token_shares,
)
from cygnet.stages.reinforcement.grpo_metrics import sample, told, told_heldout
from cygnet.stages.reinforcement.rewards.judge import check_failures
from cygnet.stages.reinforcement.rollout import Environment, Episode, Roller, RolloutConfig, Row
from cygnet.stages.reinforcement.rules import grpo_rules
from cygnet.stages.watch import Watch
from cygnet.text.loader import IGNORE, Batch
from cygnet.text.tokenizer import Tokenizer
from cygnet.train.guards import RunStopped
from cygnet.train.parallel.group import gather, world
from cygnet.train.stage import Call, Policy

NUM_SAMPLES = 4
_HELDOUT_SEED = 0x1E1D
_NOTHING = (-1, 0)


@dataclass(frozen=True, kw_only=True)
class GrpoConfig:
    """How the model answers, and what is learnt from it.

    Raises:
        UserError: a value is out of its range.
    """

    loss: LossName = "grpo"
    """grpo; dr_grpo (no division by deviation and length), dapo (mean over tokens, clips higher),
    cispo (clips weights, no token loses its gradient), gspo (ratios of whole answers)."""
    prompts_per_step: int = 8
    """Prompts whose answers one optimizer step learns from."""
    group_size: int = 8
    """Answers to each prompt, which are compared with each other."""
    updates_per_rollout: int = 1
    """Steps between rollouts: the model answers the prompts of so many steps at once."""
    resample: int = 0
    """Rounds of further prompts in place of groups whose answers all earn the same (DAPO)."""
    clip_range: float | None = None
    """How far below 1 a ratio counts; the loss's own if left out (0.2; gspo 3e-4; cispo none)."""
    clip_range_high: float | None = None
    """How far above 1 a ratio counts; the loss's own if left out (0.2; dapo 0.28; gspo 4e-4;
    cispo 4)."""
    kl_coef: float = 0.0
    """Weight of the KL divergence from the model that the stage starts from."""
    importance_cap: float = 2.0
    """Largest weight for what training holds likelier than the engine that drew it."""
    temperature: float = 1.0
    """At which answers are drawn and learnt."""
    max_new_tokens: int = 128
    """Longest answer in tokens."""
    max_turns: int = 8
    """Most answers of an episode, with an environment."""
    overlong_buffer: int = 0
    """Over so many tokens before the longest answer, a penalty grows to 1 (DAPO)."""
    mask_truncated: bool = False
    """Learn nothing from answers that did not come to their end."""
    heldout_prompts: int = 64
    """Most prompts that are judged and not learnt from."""
    heldout_share: float = 0.1
    """Share of the prompts that are held out, by a hash of the prompt."""
    heldout_temperature: float | None = None
    """At which held-out prompts are answered; 0 takes the likeliest tokens, none is as in
    training."""
    max_reward_failures: int = 100
    """Answers that no reward could judge, after which the run stops."""

    def __post_init__(self) -> None:
        ranges: dict[str, tuple[float, float]] = dict.fromkeys(
            ("prompts_per_step", "updates_per_rollout", "max_new_tokens", "max_turns"),
            (1, math.inf),
        )
        ranges |= dict.fromkeys(
            (
                "resample", "kl_coef", "heldout_prompts", "heldout_temperature", "clip_range_high",
                "max_reward_failures",
            ),
            (0, math.inf),
        )  # fmt: skip
        ranges |= {
            "group_size": (2, math.inf), "clip_range": (0, 1),
            "overlong_buffer": (0, self.max_new_tokens),
        }  # fmt: skip
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if value is None or (least <= value <= most and math.isfinite(value)):
                continue
            wanted = f"from {least} to {most}" if math.isfinite(most) else f"at least {least}"
            raise UserError(f"{name} is {value}: it must be {wanted}")
        for name in ("temperature", "importance_cap"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}: it must be above zero")
        if not 0 <= self.heldout_share < 1:
            raise UserError(f"heldout_share is {self.heldout_share}: it must be in [0, 1)")

    @property
    def clip_ranges(self) -> tuple[float, float]:
        """How far below and above 1 a ratio counts."""
        kind = KINDS[self.loss]
        low = kind.clip_range if self.clip_range is None else self.clip_range
        return low, kind.clip_range_high if self.clip_range_high is None else self.clip_range_high


@dataclass(frozen=True, slots=True)
class GrpoBatch(Batch):
    """Packed episodes; the further tensors are (B, T) float32, of the token that is the label."""

    sampled: Tensor
    """Log-probability as the engine drew it."""
    old: Tensor
    """The same as training computes it, before the first update; unused, and zero, where a rollout
    serves one update alone: there it is what the loss computes itself."""
    reference: Tensor
    """Under the model that the stage started from; zero where that is not asked for."""
    advantages: Tensor
    share: Tensor
    """Weight in the loss, times the number of labels of the batch."""
    BLANK: ClassVar[dict[str, float]] = {
        **Batch.BLANK, "sampled": 0, "old": 0, "reference": 0, "advantages": 0, "share": 0,
    }  # fmt: skip


class GrpoStage:
    """Groups of answers and the loss over them; an `OnlineStage`.

    Args:
        tokenizer: of the model.
        rows: prompts to learn from.
        heldout: prompts that are only judged.
        judge: rewards answers; none where the environment alone does.
        config: the method.
        row_length: positions of a packed row; the longest episode.
        seed: of the prompts' order and of the answers.
        reference: the frozen model of the KL term; needed where `kl_coef` is not zero.
        environment: makes the world of an episode of several turns.
    """

    name = "grpo"

    def __init__(
        self,
        tokenizer: Tokenizer,
        rows: Sequence[Row],
        heldout: Sequence[Row],
        judge: Judge | None,
        config: GrpoConfig,
        row_length: int,
        seed: int,
        reference: Transformer | None = None,
        environment: Callable[[], Environment] | None = None,
    ) -> None:
        assert reference is not None or not config.kl_coef
        self.config, self.kind = config, KINDS[config.loss]
        self.row_length, self.seed = row_length, seed
        self.vocab_size = tokenizer.vocab_size
        self.judge_of, self.reference, self.environment = judge, reference, environment
        self.heldout_rows = list(heldout)
        self.drawer = GroupDrawer(
            rows, self._roller(tokenizer, config.temperature), judge, config.group_size, seed,
            environment, self._overlong if config.overlong_buffer else None,
        )  # fmt: skip
        at = config.heldout_temperature
        self.heldout_roller = self._roller(tokenizer, config.temperature if at is None else at)
        self.batches_per_epoch = len(rows) / config.prompts_per_step
        self._begin()

    def _begin(self) -> None:
        """Know nothing of any rollout."""
        self.must_keep = False
        self._samples: list[dict[str, Any]] = []
        self.batches: list[GrpoBatch] = []
        # Before which step they were collected, and which prompt comes next.
        self.first, self.cursor = _NOTHING
        rules = grpo_rules(self.config.max_new_tokens, self.config.updates_per_rollout)
        self.watching = Watch(self.name, rules)
        self.num_failures = 0
        self.first_failure: str | None = None

    def _roller(self, tokenizer: Tokenizer, temperature: float) -> Roller:
        drawing = RolloutConfig(
            temperature=temperature,
            max_new_tokens=self.config.max_new_tokens,
            max_turns=self.config.max_turns,
        )
        return Roller(tokenizer, drawing, self.row_length + 1)

    def _overlong(self, episode: Episode) -> float:
        longest, buffer = self.config.max_new_tokens, self.config.overlong_buffer
        return overlong_penalty(episode.num_last, longest, buffer)

    def compile(self) -> None:
        """Nothing: the number of labels changes from step to step."""

    # What is learnt from

    def collect(self, number: int, policy: Policy) -> dict[str, float]:
        """Let the model answer, where no batch is left of the last time; see `OnlineStage`."""
        if self.first < number < self.first + len(self.batches):
            return {}
        started, tools = time.monotonic(), self._tool_counts()
        model = policy()
        groups, used = self._groups(model, self.cursor)
        seconds = time.monotonic() - started
        self._count_failures(groups)
        check_failures(self.num_failures, self.config.max_reward_failures, self.first_failure)
        metrics = told(groups, self._groups_wanted, seconds)
        for name, count in sum(gather(self._tool_counts() - tools), Counter()).items():
            metrics[name] = float(count)
        learnt = self._learnt_from(groups)
        each = self.config.prompts_per_step
        parts = [learnt[at : at + each] for at in range(0, len(learnt), each)]
        self.batches = [self._packed(model, part) for part in parts]
        self.first, self.cursor = number, self.cursor + used
        self.must_keep |= self.watching(number + 1, metrics)
        return metrics

    @property
    def _groups_wanted(self) -> int:
        """Groups that the steps of a rollout learn from."""
        return self.config.prompts_per_step * self.config.updates_per_rollout

    def _groups(self, model: Transformer, begin: int) -> tuple[list[Group], int]:
        """Return the groups that were drawn, and how many prompts that took."""
        wanted = self._groups_wanted
        groups = self.drawer.draw(model, begin, wanted)
        for _ in range(self.config.resample):
            missing = wanted - sum(group.has_signal for group in groups)
            if not missing:
                break
            groups += self.drawer.draw(model, begin + len(groups), missing)
        return groups, len(groups)

    def _learnt_from(self, groups: Sequence[Group]) -> list[Group]:
        """Return the groups of the coming steps: those with a signal first where others were drawn
        in the place of those without."""
        wanted = self._groups_wanted
        if len(groups) > wanted:
            groups = sorted(groups, key=lambda group: not group.has_signal)[:wanted]
        groups = [group for group in groups if group.episodes]
        if not groups:
            raise RunStopped(
                f"not one answer of a rollout could be judged; the first: {self.first_failure}"
            )
        return groups

    def _packed(self, model: Transformer, groups: Sequence[Group]) -> GrpoBatch:
        """Return the batch of one step."""
        episodes = [episode for group in groups for episode in group.episodes]
        advantages = torch.cat([group.advantages(self.kind.by_std) for group in groups])
        counts = torch.tensor([episode.num_own for episode in episodes])
        shares = token_shares(self.kind, counts, self.config.max_new_tokens)
        kept = self._kept(episodes, advantages, shares)
        packed = EpisodeRows([episodes[at] for at in kept], self.row_length)
        sampled = packed.lay([episodes[at].log_probs for at in kept])
        reference = torch.zeros_like(sampled)
        if self.reference is not None:
            reference = self._scored(self.reference, packed.rows)
        rows = packed.rows
        return GrpoBatch(
            rows.tokens,
            rows.labels,
            rows.document_ids,
            rows.positions,
            sampled=sampled,
            old=self._scored(model, rows) if self._has_old else torch.zeros_like(sampled),
            reference=reference,
            advantages=packed.spread(advantages[kept]),
            share=packed.spread(shares[kept] * rows.num_labels),
        )

    @property
    def _has_old(self) -> bool:
        """Whether weights change between a rollout and the last update from it."""
        return self.config.updates_per_rollout > 1

    def _kept(self, episodes: Sequence[Episode], advantages: Tensor, shares: Tensor) -> list[int]:
        """Return which episodes have a gradient at all; at least one, for a batch needs a label."""
        kept = list(range(len(episodes)))
        if self.config.mask_truncated:
            kept = [at for at in kept if not episodes[at].truncated]
        if not self.config.kl_coef:
            kept = [at for at in kept if advantages[at] != 0]
        if kept:
            return kept
        for values in (advantages, shares):  # of one that is kept for its label alone
            values.zero_()
        return [0]

    def _scored(self, model: Transformer, rows: Batch) -> Tensor:
        """Return the log-probability of each label, (B, T); each process computes its rows."""
        mine = torch.arange(world().rank, len(rows.tokens), world().size)
        own = score_rows(model, rows.take(mine), self.vocab_size, self.config.temperature)
        found = torch.zeros(rows.labels.shape)
        for rank, part in enumerate(gather(own)):
            found[rank :: world().size] = part
        return found

    def _tool_counts(self) -> Counter[str]:
        """Return how often the environment's tools were called and failed, if it tells."""
        return Counter(getattr(self.environment, "counts", {}))

    def _count_failures(self, groups: Sequence[Group]) -> None:
        """Count the answers that were dropped; all processes hold the same groups."""
        self.num_failures += sum(group.dropped for group in groups)
        failures = [group.failure for group in groups if group.failure]
        self.first_failure = self.first_failure or next(iter(failures), None)

    # What the engine asks

    def batch(self, number: int) -> GrpoBatch:
        """Return the rows of one optimizer step, of the answers that were collected for it."""
        return self.batches[number - self.first]

    def weight(self, batch: Batch) -> int:
        """Return the number of labels."""
        return batch.num_labels

    def loss(self, model: Transformer, rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed policy loss, and over tokens summed: how far the engine that drew them
        is from training, and after the first update from a rollout how many are clipped and the KL
        divergence from the model that drew.
        """
        assert isinstance(rows, GrpoBatch)
        is_label = rows.labels != IGNORE
        log_probs = label_log_probs(model, rows, self.vocab_size, self.config.temperature)
        old = rows.old[is_label] if self._has_old else log_probs.detach()
        sampled, share = rows.sampled[is_label], rows.share[is_label]
        losses, is_clipped = policy_losses(
            self.kind, log_probs, old, rows.advantages[is_label], label_documents(rows),
            *self.config.clip_ranges,
        )  # fmt: skip
        cap = self.config.importance_cap
        losses = losses * importance_weights(old, sampled, cap)
        metrics = {
            "mismatch": (old - sampled).abs(),
            "mismatch_capped": ((old - sampled).exp() > cap).float(),
        }
        if self._has_old:
            metrics |= {"clipped": is_clipped.float(), "step_kl": k3_kl(old, log_probs)}
        if self.config.kl_coef:
            metrics["kl"] = k3_kl(log_probs, rows.reference[is_label])
            losses = losses + self.config.kl_coef * metrics["kl"]
        total = (losses * share).sum()
        return total, {name: value.detach().sum() for name, value in metrics.items()}

    def describe(self, number: int, row: int) -> str:
        """Name the row by its place in the rollout."""
        return f"row {row} of the answers collected before step {self.first + 1}"

    def heldout(self, model: Transformer) -> dict[str, float]:
        """Return nothing: `judge` does."""
        return {}

    def judge(self, policy: Policy) -> dict[str, float]:
        """Return the mean reward of answers to held-out prompts, and of each part of it."""
        count = len(self.heldout_rows)
        if not count:
            return {}
        mine = range(world().rank, count, world().size)
        rows = [self.heldout_rows[at] for at in mine]
        seeds = [answer_seed(self.seed, _HELDOUT_SEED, at) for at in mine]
        episodes = self.heldout_roller.roll(policy(), rows, seeds, self.environment)
        own = [rewarded([episode], self.judge_of) for episode in episodes]
        groups = shared(own, count)
        self._count_failures(groups)
        groups = [group for group in groups if group.episodes]
        if not groups:
            return {}
        self._samples = [sample(group.episodes[0]) for group in groups[:NUM_SAMPLES]]
        return told_heldout(groups)

    def samples(self, call: Call) -> list[dict[str, Any]]:
        """Return some of the answers that were judged last."""
        return self._samples

    def state(self) -> dict[str, Tensor]:
        """Return how far prompts were used, what was seen, and batches that are left."""
        state = {
            "place": torch.tensor([self.first, self.cursor, self.num_failures]),
            "watch": self.watching.tensor(),
        }
        for at, batch in enumerate(self.batches):
            for field in fields(batch):
                state[f"{at}.{field.name}"] = getattr(batch, field.name)
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take what `state` gave, or nothing where the run begins."""
        self._begin()
        if not state:
            return
        self.first, self.cursor, self.num_failures = (int(value) for value in state["place"])
        if "watch" in state:
            self.watching.load_tensor(state["watch"])
        while f"{len(self.batches)}.tokens" in state:
            at = len(self.batches)
            found = (state[f"{at}.{field.name}"] for field in fields(GrpoBatch))
            self.batches.append(GrpoBatch(*found))
