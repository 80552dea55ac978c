"""Healthy ranges of what preference training reports, and what to say outside of them."""

from __future__ import annotations

import math
from collections.abc import Callable

from cygnet.stages.preference.config import DpoConfig
from cygnet.stages.watch import Metrics, Rule

PATIENCE = 50
"""Steps: a single batch of pairs says little."""
NO_SIGNAL = 0.005
"""How near the loss of a coin toss is, in nats, to be that."""
FAR = 0.5
"""Nats a token that a model may be from its reference."""
UNLIKELY = 1.0
"""Nats a token by which chosen answers may become less likely."""
IMPOSSIBLE = 10.0
"""Nats a token by which rejected answers may."""
LENGTHS = 2.0
"""How many times longer the answers of one side may be."""


def preference_rules(config: DpoConfig, equal_share: float = 0.0) -> list[Rule]:
    """Return the rules for a run with the loss of `config`, which is resolved.

    Args:
        config: the loss.
        equal_share: of the pairs that were given, those left out because their sides are equal.
    """
    return [
        _signal(config, equal_share),
        _swapped(config),
        Rule(
            metric="chosen_log_prob", low=-UNLIKELY, range_of="change", patience=PATIENCE,
            sentence="chosen answers are becoming unlikely ({first:.2f} to {value:.2f} nats a "
            "token), so the model unlearns what it was to prefer: raise --sft_weight or --beta, "
            "or lower --learning_rate",
        ),
        Rule(
            metric="rejected_log_prob", low=-IMPOSSIBLE, range_of="change", patience=PATIENCE,
            sentence="rejected answers have become all but impossible ({first:.2f} to {value:.2f} "
            "nats a token): there is nothing more to learn from these pairs, and answers may "
            "break; take fewer epochs, or raise --beta",
        ),
        Rule(metric=length_ratio, high=LENGTHS, patience=PATIENCE, sentence=_longer(config, True)),
        Rule(
            metric=length_ratio, low=1 / LENGTHS, patience=PATIENCE,
            sentence=_longer(config, False),
        ),
        Rule(
            metric="kl", high=FAR, patience=PATIENCE,
            sentence="the model is {value:.2f} nats a token away from the reference and has been "
            "so for {steps} steps: what it could do may be lost; raise --beta, lower "
            "--learning_rate, or take fewer epochs",
        ),
    ]  # fmt: skip


def length_ratio(metrics: Metrics, _: Metrics) -> float:
    """Return how many times longer rejected answers are than chosen ones."""
    return metrics["rejected_length"] / metrics["chosen_length"]


def _swapped(config: DpoConfig) -> Rule:
    """Return the rule for a model that learns the opposite."""
    # How many of kto's answers are wanted decides its accuracy as much as the model does.
    metric: str | Callable[[Metrics, Metrics], float] = _accuracy
    low, value = 0.4, "{value:.0%} accuracy"
    if config.loss == "kto":
        metric, low, value = "margin", -0.1, "margin {value:.2f}"
    return Rule(
        metric=metric, low=low, patience=PATIENCE,
        sentence=f"the model prefers the rejected answer ({value}) and has done so for {{steps}} "
        "steps: look whether chosen and rejected are swapped, or lower --learning_rate",
    )  # fmt: skip


def _accuracy(metrics: Metrics, _: Metrics) -> float:
    """Return the accuracy; a half where the margins are so near zero that it is rounding alone."""
    return metrics["accuracy"] if abs(metrics["margin"]) > NO_SIGNAL else 0.5


def _signal(config: DpoConfig, equal_share: float) -> Rule:
    """Return the rule for a run that stays where nothing is preferred."""
    metric, chance, near = "accuracy", 0.5, 0.05
    said = "the accuracy has stayed at {value:.0%}"
    if config.loss in ("dpo", "cdpo"):
        metric, chance, near = "preference_loss", math.log(2), NO_SIGNAL
        said = "the loss has stayed at {value:.3f}"
    elif config.loss == "kto":
        metric, chance, near = "margin", 0.0, NO_SIGNAL
        said = "the margin has stayed at {value:.3f}"

    def sentence(metrics: Metrics) -> str:
        start = said.format(value=metrics[metric])
        why = _why(metrics, equal_share)
        return f"{start} for {{steps}} steps: the pairs carry no signal, because {why}"

    return Rule(
        metric=lambda metrics, _: abs(metrics[metric] - chance), low=near, patience=PATIENCE,
        sentence=sentence,
    )  # fmt: skip


def _why(metrics: Metrics, equal_share: float) -> str:
    """Say what makes the pairs teach nothing, as far as the line can tell."""
    left_out = ""
    if equal_share:
        left_out = f" (chosen and rejected were equal in {equal_share:.0%}, which are left out)"
    if metrics.get("kl", math.inf) < 1e-4:
        return (
            f"the model has hardly moved from the reference{left_out}; raise --learning_rate, or "
            "look whether chosen and rejected differ at all"
        )
    if abs(metrics["accuracy"] - 0.5) < 0.1:
        return (
            f"which answer is chosen looks like chance to the model{left_out}; look at the pairs: "
            "who or what chose?"
        )
    return (
        f"their log-probabilities hardly differ: the margin is {metrics['margin']:.4f}{left_out}; "
        "raise --beta or --learning_rate"
    )


def _longer(config: DpoConfig, is_rejected: bool) -> Callable[[Metrics], str]:
    def sentence(metrics: Metrics) -> str:
        ratio = length_ratio(metrics, {})
        longer = "rejected" if is_rejected else "chosen"
        hint = "even out the lengths of the pairs"
        if config.loss in ("dpo", "cdpo", "ipo") and not config.length_normalize:
            hint += ", or take --length_normalize"
        return (
            f"{longer} answers are {ratio if is_rejected else 1 / ratio:.1f} times longer "
            f"({metrics['chosen_length']:.0f} tokens chosen, {metrics['rejected_length']:.0f} "
            f"rejected): the model may learn length in place of what is better; {hint}"
        )

    return sentence
