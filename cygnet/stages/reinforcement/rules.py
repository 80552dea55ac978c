"""Healthy ranges of what rollouts report: tricks by which a reward is earned, and dead ends."""

from __future__ import annotations

import math

from cygnet.stages.watch import Metrics, Rule

COLLAPSED_SHARE = 0.1
"""Entropy below this share of the first rollout's is a collapse."""
NO_SIGNAL_ROLLOUTS = 5
"""After so many rollouts without a better answer, a person is told."""
MOST_TRUNCATED = 0.5
"""Share of the answers that may be cut off."""
LENGTH_FACTOR = 1.5
"""How many times longer or shorter answers may become."""
MORE_REPETITION = 0.1
"""By how much the share of 4-grams that occurred before may rise."""
REWARD_MOVE = 0.1
"""In the reward models' own scores: a smaller move is none."""


def grpo_rules(max_new_tokens: int, updates_per_rollout: int) -> list[Rule]:
    """Return the rules for groups of answers.

    Args:
        max_new_tokens: of an answer, for the message.
        updates_per_rollout: steps between rollouts.
    """
    return [
        _collapse("entropy", "--learning_rate, or with --kl_coef"),
        Rule(
            metric="zero_groups", high=1 - 1e-6,
            patience=(NO_SIGNAL_ROLLOUTS - 1) * updates_per_rollout,
            sentence=lambda metrics: (
                f"in {NO_SIGNAL_ROLLOUTS} rollouts no answer earned more than another to the same "
                f"prompt (reward {metrics['reward']:.3f}): there is nothing to learn. The task is "
                "too hard or too easy, or the reward does not tell answers apart"
            ),
        ),
        Rule(
            metric="truncated", high=MOST_TRUNCATED,
            sentence=f"{{value:.0%}} of the answers are cut off at {max_new_tokens} tokens: raise "
            "--max_new_tokens, or teach the model to end its answers first",
        ),
    ]  # fmt: skip


def ppo_rules() -> list[Rule]:
    """Return the rules for answers that a reward model scores."""
    return [
        *(_length(is_longer) for is_longer in (True, False)),
        Rule(
            metric="repetition", range_of="change", high=MORE_REPETITION,
            sentence="answers repeat themselves more ({first:.2f} of their 4-grams at the start, "
            "{value:.2f} now), which the reward model does not see: raise --kl_coef, or add pairs "
            "that reject it",
        ),
        Rule(
            metric=_disagreement, compares=("reward", "judge_reward"), high=REWARD_MOVE,
            sentence=lambda metrics: (
                f"the reward has risen to {metrics['reward']:.2f}, and the judge's has fallen to "
                f"{metrics['judge_reward']:.2f}: the policy has found what its reward model alone "
                "likes; raise --kl_coef or stop here"
            ),
        ),
        _collapse("answer_entropy", "--learning_rate, or a higher --kl_coef or --entropy_coef"),
    ]  # fmt: skip


def _collapse(metric: str, remedy: str) -> Rule:
    """Return the rule for a model that says nearly the same every time."""
    return Rule(
        metric=metric, range_of="share", low=COLLAPSED_SHARE, keeps_checkpoint=True,
        sentence="the entropy of the answers has collapsed to {value:.3f} nats a token, from "
        "{first:.3f}: the model says nearly the same every time and finds nothing new. The "
        f"checkpoint of this step is kept; go on from an earlier one with a lower {remedy}",
    )  # fmt: skip


def _length(is_longer: bool) -> Rule:
    low, high = (-math.inf, LENGTH_FACTOR) if is_longer else (1 / LENGTH_FACTOR, math.inf)
    change = "longer" if is_longer else "shorter"
    return Rule(
        metric="answer_tokens", range_of="share", low=low, high=high,
        sentence=f"answers have become much {change} ({{first:.0f}} tokens at the start, "
        f"{{value:.0f}} now); see if they are better, or if the reward is for being {change}: "
        "read some, raise --kl_coef, or balance the lengths of the pairs that the reward model "
        "learns from",
    )  # fmt: skip


def _disagreement(metrics: Metrics, first: Metrics) -> float:
    """Return by how much the reward has risen, or the judge's fallen if that is less."""
    risen = metrics["reward"] - first["reward"]
    return min(risen, first["judge_reward"] - metrics["judge_reward"])
