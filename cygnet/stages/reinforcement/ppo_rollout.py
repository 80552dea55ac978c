"""From prompts to the rows that PPO learns from.

The model answers; each of its own tokens gets what is known at that time: log-probabilities of
the policy and of the reference, and the policy's value; each answer gets its score. From these
every token has its advantage and its return (`ppo_losses`), and the answers are packed as
conversations are.

Shapes: B rows, T positions, M the model's own tokens of all rows, A those of one answer, N answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cygnet.generate.scorer import Scorer
from cygnet.model.lora import merged
from cygnet.model.scoring import ScoringTransformer
from cygnet.model.transformer import Transformer
from cygnet.progress import say
from cygnet.stages.packed import at_labels, label_scores
from cygnet.stages.reinforcement.episode_rows import SCORED_ROWS, EpisodeRows, score_rows
from cygnet.stages.reinforcement.ppo_losses import generalized_advantages, token_rewards, whitened
from cygnet.stages.reinforcement.rollout import Episode, Roller
from cygnet.text.forms import repetition_rate
from cygnet.text.loader import IGNORE, Batch
from cygnet.train.parallel.group import gather, world

Row = Mapping[str, Any]
Scores = Callable[[Sequence[Any]], Sequence[float | None]]
"""Conversations to one number each; none for one that is too long to be read."""


@dataclass(frozen=True, slots=True)
class PpoBatch(Batch):
    """Rows of answers; all tensors are (B, T), and zero where there is no label."""

    old_log_probs: Tensor
    """float32: of each label, under the policy that drew it."""
    old_values: Tensor
    """float32: what that policy expected before it."""
    advantages: Tensor
    """float32: how much better than expected it was."""
    returns: Tensor
    """float32: what came from it on."""
    BLANK: ClassVar[dict[str, float]] = {
        **Batch.BLANK, "old_log_probs": 0.0, "old_values": 0.0, "advantages": 0.0, "returns": 0.0,
    }  # fmt: skip

    def at_labels(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return old log-probabilities, old values, advantages and returns, (M,) each."""
        counted = self.labels != IGNORE
        return (
            self.old_log_probs[counted], self.old_values[counted],
            self.advantages[counted], self.returns[counted],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and what is known of it; the lists have one entry an own token."""

    episode: Episode
    log_probs: list[float]
    """Under the policy, in the precision that it is trained in."""
    entropy: list[float]
    """Of what each token was drawn from."""
    values: list[float]
    """What the policy expected before each token."""
    reference: list[float]
    """Log-probabilities under the reference."""
    reward: float
    """What the reward model gives; of what it cannot read the least that it gives others."""
    judge_reward: float | None
    """What the second reward model gives, from which nothing is learnt; none if it cannot."""
    is_read: bool = True
    """Whether the reward model could read all of it."""

    @property
    def kl(self) -> float:
        """The summed log-ratio to the reference: an unbiased estimate of the KL divergence."""
        return sum(self.log_probs) - sum(self.reference)


class Answerer:
    """Lets a policy answer, and finds what each answer is worth; the processes share the work.

    Args:
        roller: draws the answers.
        reference: the frozen model that the policy is held to, on the policy's device.
        reward: the reward model.
        judge: a second one, which is reported alone.
        seq_len: positions in a row.
    """

    def __init__(
        self,
        roller: Roller,
        reference: Transformer,
        reward: Scores,
        judge: Scores | None,
        seq_len: int,
    ) -> None:
        self.roller, self.reference, self.seq_len = roller, reference, seq_len
        self.reward, self.judge = reward, judge
        self.vocab_size = roller.tokenizer.vocab_size
        self.temperature = roller.config.temperature

    def answers(
        self, policy: ScoringTransformer, rows: Sequence[Row], seeds: Sequence[int]
    ) -> list[Answer]:
        """Return an answer to each row's prompt, the same in every process."""
        place = world()
        mine = slice(place.rank, None, place.size)
        answers: list[Any] = [None] * len(rows)
        for rank, part in enumerate(gather(self._own(policy, rows[mine], seeds[mine]))):
            answers[rank :: place.size] = part
        return _with_least(answers)

    def _own(
        self, policy: ScoringTransformer, rows: Sequence[Row], seeds: Sequence[int]
    ) -> list[Answer]:
        if not rows:
            return []
        episodes = self.roller.roll(merged(policy).without_score(), rows, seeds)
        conversations = [episode.messages for episode in episodes]
        rewards = self.reward(conversations)
        judged = self.judge(conversations) if self.judge else [None] * len(episodes)
        packed = EpisodeRows(episodes, self.seq_len)
        of_policy = self.measured(policy, packed.rows)
        of_reference = score_rows(self.reference, packed.rows, self.vocab_size, self.temperature)
        columns = [packed.per_episode(values) for values in (*of_policy, of_reference)]
        known = [math.nan if reward is None else reward for reward in rewards]
        is_read = [reward is not None for reward in rewards]
        rows_of = zip(episodes, *columns, known, judged, is_read, strict=True)
        return [Answer(*of_answer) for of_answer in rows_of]

    def measured(self, policy: ScoringTransformer, rows: Batch) -> list[Tensor]:
        """Return log-probability, entropy and value at every label, (B, T) each, on the CPU."""
        device, parts = policy.output_weight.device, []
        for start in range(0, len(rows.tokens), SCORED_ROWS):
            part = rows.rows(start, start + SCORED_ROWS).to(device)
            parts.append(own_tokens(policy, part, self.vocab_size, self.temperature))
        return [at_labels(rows, torch.cat(column).cpu()) for column in zip(*parts, strict=True)]


def scores_of(folder: Path, name: str, seq_len: int, device: torch.device) -> Scores:
    """Load a reward model, and say if it reads less than an answer with its prompt may have."""
    scorer = Scorer.load(folder, device)
    if scorer.max_tokens < seq_len:
        say(
            f"ppo: the {name} model {folder} reads {scorer.max_tokens} tokens and max_seq_len is "
            f"{seq_len}: longer answers count as its worst (`unread` in the log); lower "
            "--max_seq_len or --max_new_tokens"
        )
    return scorer.scores_of_readable


def _with_least(answers: Sequence[Answer]) -> list[Answer]:
    """Give answers that are too long for the reward model the least of what the others get.

    Where it can read none of them there is no number to give.
    """
    least = min((answer.reward for answer in answers if answer.is_read), default=math.nan)
    return [answer if answer.is_read else replace(answer, reward=least) for answer in answers]


def own_tokens(
    model: ScoringTransformer,
    rows: Batch,
    vocab_size: int,
    temperature: float,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probability, entropy and value at every label, (M,) float32 each.

    Args:
        model: the policy.
        rows: on the model's device.
        vocab_size, temperature, entropy_gradient: see `cygnet.stages.packed.label_scores`.
    """
    log_probs_M, entropy_M, hidden = label_scores(
        model, rows, vocab_size, temperature, entropy_gradient
    )
    return log_probs_M, entropy_M, model.scores(hidden)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """How rewards of answers become advantages of tokens; see `ppo_losses`."""

    kl_coef: float
    gamma: float
    gae_lambda: float
    whiten: bool


def packed_answers(
    answers: Sequence[Answer], scores: Sequence[float], estimate: Estimate, seq_len: int
) -> PpoBatch:
    """Return rows of answers with the advantage and the return of every token.

    Args:
        answers: of a rollout.
        scores: what each has earned, as the policy is to see it.
        estimate: how that is spread over the tokens.
        seq_len: positions in a row.
    """
    log_probs_NA, values_NA, reference_NA = (
        pad_sequence([torch.tensor(getattr(answer, name)) for answer in answers], True)
        for name in ("log_probs", "values", "reference")
    )
    lengths_N1 = torch.tensor([[answer.episode.num_own] for answer in answers])
    is_token_NA = torch.arange(log_probs_NA.shape[1]) < lengths_N1
    rewards_NA = token_rewards(
        torch.tensor(scores), log_probs_NA, reference_NA, is_token_NA, estimate.kl_coef
    )
    advantages_NA, returns_NA = generalized_advantages(
        rewards_NA, values_NA, is_token_NA, estimate.gamma, estimate.gae_lambda
    )
    if estimate.whiten:
        advantages_NA[is_token_NA] = whitened(advantages_NA[is_token_NA])
    packed = EpisodeRows([answer.episode for answer in answers], seq_len)
    rows = packed.rows
    laid = (
        packed.lay(_unpadded(values_NA, lengths_N1))
        for values_NA in (log_probs_NA, values_NA, advantages_NA, returns_NA)
    )
    return PpoBatch(rows.tokens, rows.labels, rows.document_ids, rows.positions, *laid)


def _unpadded(values_NA: Tensor, lengths_N1: Tensor) -> list[list[float]]:
    lengths = lengths_N1.flatten().tolist()
    return [row[:length] for row, length in zip(values_NA.tolist(), lengths, strict=True)]


def described(answers: Sequence[Answer]) -> dict[str, float]:
    """Return what is worth watching of some answers, as means over answers or their tokens."""
    rewards = [answer.reward for answer in answers]
    figures = {
        "reward": fmean(rewards),
        "reward_std": pstdev(rewards),
        "kl": fmean(answer.kl for answer in answers),
        "answer_entropy": fmean(value for answer in answers for value in answer.entropy),
        "answer_tokens": fmean(answer.episode.num_own for answer in answers),
        "repetition": fmean(repetition_rate(answer.episode.answer) for answer in answers),
        "unread": fmean(not answer.is_read for answer in answers),
        "ended": fmean(not answer.episode.truncated for answer in answers),
        "sampling_mismatch": fmean(
            abs(own - drawn)
            for answer in answers
            for own, drawn in zip(answer.log_probs, answer.episode.log_probs, strict=True)
        ),
    }
    judged = [answer.judge_reward for answer in answers if answer.judge_reward is not None]
    return figures | ({"judge_reward": fmean(judged)} if judged else {})
