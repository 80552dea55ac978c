"""Proximal policy optimization from a learnt reward (Ouyang et al. 2022; Schulman et al. 2017).

Rollout after rollout: the model answers prompts; a reward model scores each answer; every token
pays for leaving the reference, which is the model that the stage starts from; advantages are
estimated with the model's own values; and a few epochs of minibatches move it toward the tokens
that did better than expected. The formulas are in `cygnet.stages.reinforcement.ppo_losses`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cygnet.config import TrainConfig
from cygnet.errors import UserError
from cygnet.export.huggingface import WEIGHTS_FILE, find_model, load_scorer
from cygnet.files import digest_of, sha256_file
from cygnet.model.lora import NO_LORA, LoraConfig
from cygnet.model.scoring import ScoringTransformer, as_scoring
from cygnet.model.transformer import Transformer
from cygnet.stages.launch import load_start, train_and_save
from cygnet.stages.pretrain import check_context
from cygnet.stages.reinforcement.groups import answer_seed
from cygnet.stages.reinforcement.grpo_losses import k3_kl
from cygnet.stages.reinforcement.ppo_losses import (
    clipped_surrogate,
    clipped_value_loss,
    explained_variance,
    next_kl_coef,
)
from cygnet.stages.reinforcement.ppo_rollout import (
    Answer,
    Answerer,
    Estimate,
    PpoBatch,
    Row,
    described,
    own_tokens,
    packed_answers,
    scores_of,
)
from cygnet.stages.reinforcement.prompts import Split, with_room
from cygnet.stages.reinforcement.rollout import Roller, RolloutConfig
from cygnet.stages.reinforcement.rules import ppo_rules
from cygnet.stages.samples import Prompts
from cygnet.stages.watch import Watch
from cygnet.text.loader import IGNORE, Batch, endless_order
from cygnet.train.guards import RunStopped
from cygnet.train.hardware import find_hardware
from cygnet.train.parallel.group import largest
from cygnet.train.stage import Call, Policy

SAMPLE_ROWS = 16
"""Held-out prompts among which a few short ones are found, to show answers of."""
HELDOUT_ROLLOUT = -1
"""In place of a rollout's number in the seeds of held-out answers."""


@dataclass(frozen=True, kw_only=True)
class PpoConfig:
    """How answers are drawn, rewarded and learnt from.

    Raises:
        UserError: a value is out of its range.
    """

    answers_per_rollout: int = 64
    """Prompts that are answered before the model learns, over all processes."""
    epochs_per_rollout: int = 2
    """Passes over the answers of a rollout."""
    minibatches: int = 4
    """Optimizer steps in each pass."""
    temperature: float = 1.0
    """Divides the logits, where answers are drawn and in the loss."""
    max_new_tokens: int = 160
    """Longest answer."""
    heldout_prompts: int = 32
    """Held-out prompts that are answered at each evaluation."""
    kl_coef: float = 0.05
    """What a token pays for its log-ratio to the reference; the first weight with target_kl."""
    target_kl: float | None = None
    """Steer kl_coef so that an answer's KL to the reference stays near this many nats."""
    stop_kl: float | None = None
    """Leave a rollout, and draw the next, once a token's KL to the policy that drew it is above
    this; it costs a forward pass a step."""
    clip_range: float = 0.2
    """How far the probability ratio of a token may leave 1 and still earn."""
    clip_range_value: float = 0.2
    """How far a value may leave the one at the rollout."""
    value_coef: float = 0.1
    """Weight of the values' loss."""
    entropy_coef: float = 0.0
    """Weight of an entropy bonus."""
    gamma: float = 1.0
    """Discount from token to token."""
    gae_lambda: float = 0.95
    """Trust in what came against what the values had foretold."""
    whiten_advantages: bool = True
    """Shift and scale the advantages of a rollout to mean 0 and variance 1."""
    normalize_rewards: bool = True
    """Shift and scale scores so that those of the first rollout have mean 0 and variance 1
    (Ziegler et al. 2019, section 2.1)."""
    reward_clip: float | None = None
    """Largest score in either direction, after normalising."""
    missing_eos_penalty: float = 1.0
    """Taken from the score of an answer that did not come to an end."""
    value_head: Literal["zero", "reward"] = "zero"
    """Where values begin: at zero, or with the reward model's head, which fits a reward model
    trained from the same start, without normalize_rewards."""

    def __post_init__(self) -> None:
        least: dict[str, float] = dict.fromkeys(
            ("answers_per_rollout", "epochs_per_rollout", "minibatches", "max_new_tokens"), 1
        )
        at_least_zero = (
            "heldout_prompts", "kl_coef", "value_coef", "entropy_coef", "missing_eos_penalty",
        )  # fmt: skip
        least |= dict.fromkeys(at_least_zero, 0)
        for name, low in least.items():
            if not low <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least {low:g}")
        above_zero = (
            "temperature", "target_kl", "stop_kl", "clip_range", "clip_range_value", "reward_clip",
        )  # fmt: skip
        for name in above_zero:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name} is {value}: it must be above zero")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must lie in 0 to 1")


@dataclass
class Progress:
    """The numbers that later rollouts hang on."""

    first_step: int = 0
    """Of the current rollout."""
    rollouts: int = 0
    """How many were drawn."""
    kl_coef: float = 0.0
    """For the next rollout."""
    reward_mean: float = 0.0
    """What is taken from a score."""
    reward_scale: float = 1.0
    """What a score is divided by then."""


class PpoStage:
    """Answers of the model, what they earn, and PPO's loss over them.

    Args:
        prompts, heldout: rows whose `prompt` is asked; of the latter the first few.
        answerer: draws answers and finds what is known of them.
        train_config: row length and seed.
        config: of PPO.
        samples: what is asked while it trains.
    """

    name = "ppo"

    def __init__(
        self,
        prompts: Sequence[Row],
        heldout: Sequence[Row],
        answerer: Answerer,
        train_config: TrainConfig,
        config: PpoConfig,
        samples: Prompts | None = None,
    ) -> None:
        self.prompts, self.heldout_prompts = prompts, heldout[: config.heldout_prompts]
        self.answerer, self.config, self.asked = answerer, config, samples
        self.seed, self.seq_len = train_config.seed, train_config.max_seq_len
        self.must_keep = False
        rollouts = len(prompts) / config.answers_per_rollout
        self.batches_per_epoch = rollouts * config.epochs_per_rollout * config.minibatches
        self.rows: PpoBatch | None = None
        self.watching = Watch(self.name, ppo_rules())
        self.progress = Progress(kl_coef=config.kl_coef)

    def compile(self) -> None:
        """Nothing: the number of labels changes from batch to batch."""

    # Rollouts

    def collect(self, number: int, policy: Policy) -> dict[str, float]:
        """Draw, score and pack the answers of a rollout, where the last one is used up."""
        if not self._is_used_up(number, policy):
            return {}
        progress, config = self.progress, self.config
        first = progress.rollouts * config.answers_per_rollout
        places = self._order(first, config.answers_per_rollout, len(self.prompts))
        answers = self._answers(policy, [self.prompts[at] for at in places], progress.rollouts)
        _check_rewards(answers, number)
        figures = described(answers)
        if progress.rollouts == 0 and config.normalize_rewards:
            progress.reward_mean = figures["reward"]
            progress.reward_scale = figures["reward_std"] or 1.0
        estimate = Estimate(
            kl_coef=progress.kl_coef, gamma=config.gamma, gae_lambda=config.gae_lambda,
            whiten=config.whiten_advantages,
        )  # fmt: skip
        scores = [self.score(answer) for answer in answers]
        self.rows = packed_answers(answers, scores, estimate, self.seq_len)
        _, values, _, returns = self.rows.at_labels()
        figures |= {
            "kl_coef": progress.kl_coef, "explained_variance": explained_variance(values, returns),
        }  # fmt: skip
        if config.target_kl is not None:
            progress.kl_coef = next_kl_coef(progress.kl_coef, figures["kl"], config.target_kl)
        progress.first_step, progress.rollouts = number, progress.rollouts + 1
        self.must_keep |= self.watching(number + 1, figures)
        return figures

    def score(self, answer: Answer) -> float:
        """Return what an answer earns: normalised, clipped, less what having no end costs."""
        score = (answer.reward - self.progress.reward_mean) / self.progress.reward_scale
        if self.config.reward_clip is not None:
            score = min(max(score, -self.config.reward_clip), self.config.reward_clip)
        return score - self.config.missing_eos_penalty * answer.episode.truncated

    def judge(self, policy: Policy) -> dict[str, float]:
        """Return reward, KL and lengths of answers to the held-out prompts."""
        if not self.heldout_prompts:
            return {}
        figures = described(self._answers(policy, self.heldout_prompts, HELDOUT_ROLLOUT))
        found = {name: value for name, value in figures.items() if not math.isnan(value)}
        return {f"heldout_{name}": value for name, value in found.items()}

    def _answers(self, policy: Policy, rows: Sequence[Row], rollout: int) -> list[Answer]:
        seeds = [answer_seed(self.seed, rollout, at) for at in range(len(rows))]
        return self.answerer.answers(as_scoring(policy()), rows, seeds)

    def _is_used_up(self, number: int, policy: Policy) -> bool:
        done = number - self.progress.first_step
        if self.rows is None or not 0 <= done < self.config.epochs_per_rollout * self._parts:
            return True
        if self.config.stop_kl is None or done == 0:
            return False
        rows = self.batch(number)
        log_probs = self.answerer.measured(as_scoring(policy()), rows)[0]
        moved = k3_kl(rows.old_log_probs, log_probs)[rows.labels != IGNORE]
        # The same decision in every process, whatever each has rounded.
        return largest(float(moved.mean())) > self.config.stop_kl

    @property
    def _parts(self) -> int:
        """Minibatches of a rollout; of few rows there are fewer."""
        assert self.rows is not None
        return min(self.config.minibatches, len(self.rows.tokens))

    def _order(self, first: int, count: int, size: int, *what: int) -> list[int]:
        """Return entries `first` to `first + count - 1` of an endless order of 0 to size - 1."""
        found: list[int] = endless_order(first, count, size, answer_seed(self.seed, *what)).tolist()
        return found

    # Steps

    def batch(self, number: int) -> PpoBatch:
        """Return a minibatch of the current rollout's rows."""
        assert self.rows is not None, "collect comes first"
        size = len(self.rows.tokens)
        epoch, part = divmod(number - self.progress.first_step, self._parts)
        order = self._order(epoch * size, size, size, self.progress.rollouts)
        bounds = [size * at // self._parts for at in (part, part + 1)]
        return self.rows.take(torch.tensor(order[slice(*bounds)]))

    def weight(self, batch: Batch) -> int:
        """Return the number of own tokens."""
        return batch.num_labels

    def loss(self, model: Transformer, rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss of policy and values, and what clipping and learning did."""
        assert isinstance(rows, PpoBatch)
        config, answerer = self.config, self.answerer
        log_probs, entropy, values = own_tokens(
            as_scoring(model), rows, answerer.vocab_size, answerer.temperature,
            entropy_gradient=config.entropy_coef > 0,
        )  # fmt: skip
        old_log_probs, old_values, advantages, returns = rows.at_labels()
        policy, clipped = clipped_surrogate(log_probs, old_log_probs, advantages, config.clip_range)
        value, value_clipped = clipped_value_loss(
            values, old_values, returns, config.clip_range_value
        )
        total = policy + config.value_coef * value - config.entropy_coef * entropy
        metrics = {
            "policy_loss": policy,
            "value_loss": value,
            "entropy": entropy,
            "clip_share": clipped.float(),
            "value_clip_share": value_clipped.float(),
            "step_kl": k3_kl(old_log_probs, log_probs),
        }
        return total.sum(), {name: values.detach().sum() for name, values in metrics.items()}

    def describe(self, number: int, row: int) -> str:
        """Give the beginning of the row's answers."""
        tokens = self.batch(number).tokens[row]
        return f"answers beginning with {self.answerer.roller.tokenizer.decode(tokens.tolist())!r}"

    def heldout(self, model: Transformer) -> dict[str, float]:
        """Nothing: `judge` has it, which may let the model answer."""
        return {}

    def samples(self, call: Call) -> list[dict[str, Any]]:
        """Return what the model answers to some held-out prompts."""
        return self.asked.answered(call) if self.asked else []

    # What a checkpoint holds

    def state(self) -> dict[str, Tensor]:
        """Return the rollout that is being learnt from, and what later ones hang on."""
        state = {
            "progress": torch.tensor(astuple(self.progress), dtype=torch.float64),
            "watch": self.watching.tensor(),
        }
        if self.rows is not None:
            state |= {f.name: getattr(self.rows, f.name) for f in fields(self.rows)}
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take what `state` gave; nothing begins anew."""
        self.rows, self.must_keep = None, False
        self.watching = Watch(self.name, ppo_rules())
        self.progress = Progress(kl_coef=self.config.kl_coef)
        if not state:
            return
        first_step, rollouts, *others = state["progress"].tolist()
        self.progress = Progress(int(first_step), int(rollouts), *others)
        if "watch" in state:
            self.watching.load_tensor(state["watch"])
        if "tokens" in state:
            self.rows = PpoBatch(*(state[field.name] for field in fields(PpoBatch)))


def _check_rewards(answers: Sequence[Answer], step: int) -> None:
    """Stop where a reward is no number: nothing can be learnt from it.

    Raises:
        RunStopped: names an answer; in every process alike.
    """
    if not any(answer.is_read for answer in answers):
        raise RunStopped(
            f"step {step}: all answers are too long for the reward model: lower --max_new_tokens, "
            "or train it again with a larger --max_seq_len"
        )
    broken = [answer for answer in answers if not math.isfinite(answer.reward)]
    if broken:
        raise RunStopped(
            f"step {step}: the reward model gives {len(broken)} of {len(answers)} answers no "
            f"finite number ({broken[0].reward} for {broken[0].episode.answer[:40]!r}); train it "
            "again"
        )


def ppo(
    prompts: Split,
    start: Path,
    reward_model: Path,
    judge_model: Path | None,
    run: Path,
    config: TrainConfig,
    settings: PpoConfig,
    renew: bool = False,
    lora: LoraConfig = NO_LORA,
) -> Path:
    """Train the model at `start` to please a reward model, and return the model folder.

    Args:
        prompts: rows to train on, and held-out ones.
        start: the model to train; it is the reference too.
        reward_model: a folder of `cygnet reward`.
        judge_model: another one, whose scores are reported alone.
        run: the run folder.
        config: training settings.
        settings: of PPO.
        renew, lora: see `train_and_save`.

    Raises:
        UserError: a folder holds no model of its kind, no prompt leaves room for an answer, the
            length is given in tokens, or `lora` has dropout.
    """
    lora.refuse_dropout("ppo")
    config.refuse_tokens("ppo")
    base, tokenizer, start_hash = load_start(start)
    check_context(base, config)
    model = ScoringTransformer.around(base)
    if settings.value_head == "reward":
        _take_head(model, reward_model)
    scored_by = {"reward": reward_model, "judge": judge_model}
    inputs: dict[str, Any] = {
        "start": start_hash,
        **{
            name: sha256_file(find_model(folder) / WEIGHTS_FILE)
            for name, folder in scored_by.items()
            if folder
        },
        "prompts": digest_of(prompts),
        "ppo": asdict(settings),
    }

    def stage() -> PpoStage:
        hardware = find_hardware(config)
        reference = copy.deepcopy(base).to(hardware.device).requires_grad_(False)
        reference.compute_dtype = hardware.dtype
        roller = Roller(
            tokenizer,
            RolloutConfig(temperature=settings.temperature, max_new_tokens=settings.max_new_tokens),
            config.max_seq_len,
        )
        room = min(config.max_seq_len, base.config.max_position)
        train, heldout = (
            with_room(rows, roller, room, what)
            for rows, what in zip(prompts, ("prompts", "held-out prompts"), strict=True)
        )
        scorers = {
            name: scores_of(folder, name, config.max_seq_len, hardware.device)
            for name, folder in scored_by.items()
            if folder
        }
        answerer = Answerer(
            roller, reference, scorers["reward"], scorers.get("judge"), config.max_seq_len
        )
        samples = Prompts(tokenizer, roller.encode(heldout[:SAMPLE_ROWS]), config.max_seq_len)
        return PpoStage(train, heldout, answerer, config, settings, samples)

    return train_and_save(
        "ppo", model, tokenizer, stage, config, run, inputs, renew, lora=lora, start=start,
        final=lambda trained: as_scoring(trained).without_score(),
    )  # fmt: skip


def _take_head(model: ScoringTransformer, reward_model: Path) -> None:
    head = load_scorer(reward_model)[0].score.weight
    if head.shape != model.score.weight.shape:
        raise UserError(
            f"--value_head reward: {reward_model} is {head.shape[1]} wide and the model "
            f"{model.config.hidden_size}; leave it at zero"
        )
    with torch.no_grad():
        model.score.weight.copy_(head)
