"""Whether a stage improved what it is for, in words.

Where two stages were measured on the same items, the change of each item counts (a paired
bootstrap); else the two intervals must not overlap. Everything short of that is said to be no
improvement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cygnet.evals.bootstrap import Estimate, paired_difference
from cygnet.evals.result import DOMAIN_METRIC, StageResult

Outcome = Literal["improved", "partly", "not", "unknown"]
NEAR_TOP = 0.95
MIN_ITEMS = 8
"""Of fewer documents or answers, no interval says anything."""
MIN_YARDSTICK_BYTES = 4000
"""A compressor's headers make up too much of a shorter text."""


@dataclass(frozen=True, slots=True)
class Metric:
    """How a metric is called and read.

    Attributes:
        label: its name in a table.
        better: 1 where more is better, -1 where less is, 0 where neither.
        is_share: shown in per cent.
        meaning: one sentence for a newcomer.
    """

    label: str
    better: int
    is_share: bool
    meaning: str

    def show(self, value: float) -> str:
        """Return the value as text."""
        text = f"{100 * value:.1f}\u00a0%" if self.is_share else f"{value:.3f}"
        return text.replace("-", "\u2212")

    def show_estimate(self, found: Estimate) -> str:
        """Return the value and its interval as text."""
        return f"{self.show(found.value)} ({self.show_interval(found)})"

    def show_interval(self, found: Estimate) -> str:
        """Return the interval as text."""
        low = self.show(found.low).removesuffix("\u00a0%")
        return f"{low} to {self.show(found.high)}"


METRICS = {
    "bits_per_byte": Metric(
        "bits per byte",
        -1,
        False,
        "Bits needed to write one byte of text the model has never seen, if it were used as a "
        "compressor. Less is better; 8 is knowing nothing.",
    ),
    "answer_log_likelihood": Metric(
        "answer log-likelihood",
        1,
        False,
        "How expected the real answers to held-out questions are, in nats per token. Closer to "
        "zero is better.",
    ),
    "preference_accuracy": Metric(
        "preference accuracy",
        1,
        True,
        "How often the better of two answers is the likelier one, per token. 50 % is chance.",
    ),
    "preference_margin": Metric(
        "preference margin",
        1,
        False,
        "By how much the better answer is likelier than the worse, in nats per token.",
    ),
    "poem_form_accuracy": Metric(
        "poems of the form",
        1,
        True,
        "Poems that have exactly the lines, and characters in each line, of the form asked for.",
    ),
    "recipe_completeness": Metric(
        "complete recipes",
        1,
        True,
        "Recipes with ingredients and with steps that use them.",
    ),
    "repetition_rate": Metric(
        "repetition", -1, True, "How much of an answer repeats what the answer already said."
    ),
    "distinct_2": Metric(
        "distinct-2",
        0,
        True,
        "How many of the character pairs in all answers differ. Near zero: one answer for all.",
    ),
}

REWARD_METRICS = {
    "reward_accuracy": Metric(
        "better side scored higher",
        1,
        True,
        "How often the better of two held-out conversations has the higher score. 50 % is chance.",
    ),
    "reward_accuracy_same_length": Metric(
        "the same at one length",
        1,
        True,
        "The same for pairs whose lengths differ by a tenth at most, where counting tokens is no "
        "help.",
    ),
    "reward_brier": Metric(
        "Brier score",
        -1,
        False,
        "How far the model's certainty is from being right, squared. Knowing nothing is 0.25.",
    ),
    "reward_log_loss": Metric(
        "log loss",
        -1,
        False,
        "How surprised the model is by which side is better, in nats. Knowing nothing is 0.693.",
    ),
}
"""Of a reward model, which is no language model and has none of the others."""

GOALS = {
    "pretrain": ("predict text that it has never seen", ("bits_per_byte",)),
    "sft": ("answer what is asked", ("answer_log_likelihood", "poem_form_accuracy")),
    "dpo": (
        "prefer the better answer",
        ("preference_accuracy", "preference_margin", "poem_form_accuracy"),
    ),
    "reward": ("tell the better answer", ("reward_accuracy", "reward_accuracy_same_length")),
    "ppo": (
        "please the reward model",
        ("preference_accuracy", "poem_form_accuracy", "recipe_completeness"),
    ),
    "grpo": ("earn what can be checked", ("poem_form_accuracy", "recipe_completeness")),
    "distill": ("predict as its teacher does", ("bits_per_byte",)),
}
MISSING = {
    "bits_per_byte": "no held-out text",
    "answer_log_likelihood": "no held-out conversations",
    "poem_form_accuracy": "no held-out request for a poem of a form",
    "preference_accuracy": "no held-out pairs",
    "preference_margin": "no held-out pairs",
    "reward_accuracy": "no held-out pairs",
    "reward_accuracy_same_length": "no held-out pair of about one length",
}


def metric(name: str) -> Metric:
    """Return how a metric is shown; a domain's bits per byte are called by the domain."""
    if name.startswith(DOMAIN_METRIC):
        whole = METRICS["bits_per_byte"]
        return Metric(name.removeprefix(DOMAIN_METRIC), -1, False, whole.meaning)
    return (
        METRICS.get(name)
        or REWARD_METRICS.get(name)
        or Metric(name.replace("_", " "), 0, False, "")
    )


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence on one metric."""

    metric: str
    outcome: Outcome
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a stage was for and whether it got there.

    Attributes:
        purpose: what the stage is for.
        outcome: over all findings.
        headline: the outcome in words.
        findings: one for each metric that the stage is for.
        prices: what became clearly worse although the stage is not about it.
    """

    stage: str
    purpose: str
    outcome: Outcome
    headline: str
    findings: tuple[Finding, ...]
    prices: tuple[str, ...] = ()


def judge(
    stage: str, result: StageResult | None, before: tuple[str, StageResult] | None
) -> Verdict:
    """Judge a stage by its own result and that of the stage before it (name and result)."""
    purpose, goals = GOALS.get(stage, ("", ()))
    if result is None:
        return Verdict(stage, purpose, "unknown", "was not evaluated", ())
    if stage == "pretrain":
        findings = _against_compressors(result)
    elif stage == "reward":
        findings = tuple(_against_chance(name, result) for name in goals)
    else:
        findings = tuple(_against_before(name, result, before) for name in goals)
    known = [finding.outcome for finding in findings if finding.outcome != "unknown"]
    prices = _prices(result, before, goals)
    if not known:
        return Verdict(stage, purpose, "unknown", "cannot be judged", findings, prices)
    if all(outcome == "improved" for outcome in known):
        headline = "improved what it is for"
        return Verdict(stage, purpose, "improved", headline, findings, prices)
    if "improved" in known:
        headline = f"improved {known.count('improved')} of the {len(known)} things it is for"
        return Verdict(stage, purpose, "partly", headline, findings, prices)
    headline = "did not improve what it is for"
    return Verdict(stage, purpose, "not", headline, findings, prices)


def _against_compressors(result: StageResult) -> tuple[Finding, ...]:
    findings = []
    for name, found in result.metrics.items():
        if not name.startswith(DOMAIN_METRIC):
            continue
        domain = name.removeprefix(DOMAIN_METRIC)
        yardstick = result.yardsticks.get(domain)
        figure = f"{domain}: {metric(name).show_estimate(found)} bits per byte"
        if yardstick is None:
            findings.append(Finding(name, "unknown", f"{figure}; nothing to compare with"))
            continue
        if yardstick["num_bytes"] < MIN_YARDSTICK_BYTES:
            text = f"{figure}; too little held-out text to compare with a compressor"
            findings.append(Finding(name, "unknown", text))
            continue
        xz = yardstick["xz"]
        share = f"{found.value / xz:.2f} of the {xz:.2f} that xz -9 needs"
        if found.high < xz:
            findings.append(Finding(name, "improved", f"{figure}, {share}"))
        else:
            text = f"{figure}, {share}: not clearly below, so it did not improve on a compressor"
            findings.append(Finding(name, "not", text))
    return tuple(findings) or (_missing("bits_per_byte"),)


def _against_chance(name: str, result: StageResult) -> Finding:
    found = result.metrics.get(name)
    if found is None:
        return _missing(name)
    figure = f"{metric(name).label}: {metric(name).show_estimate(found)}"
    if found.low > 0.5:
        return Finding(name, "improved", f"{figure}: above chance")
    return Finding(name, "not", f"{figure}: not clearly above the 50 % of chance")


def _missing(name: str) -> Finding:
    text = f"{metric(name).label}: not measured, there is {MISSING.get(name, 'no data for it')}"
    return Finding(name, "unknown", text)


def _against_before(
    name: str, result: StageResult, before: tuple[str, StageResult] | None
) -> Finding:
    shown, now = metric(name), result.metrics.get(name)
    if now is None:
        return _missing(name)
    figure = f"{shown.label}: {shown.show_estimate(now)}"
    earlier = before[1].metrics.get(name) if before else None
    if before is None or earlier is None:
        return Finding(name, "unknown", f"{figure}; no earlier stage to compare with")
    figure = f"{shown.label}: {shown.show(earlier.value)} after {before[0]}, now "
    figure += shown.show_estimate(now)
    if min(now.count, earlier.count) < MIN_ITEMS:
        return Finding(name, "unknown", f"{figure}: measured on {now.count}, too few to tell")
    change = _change(name, result, before[1])
    if change > 0:
        return Finding(name, "improved", f"{figure}: improved")
    if change < 0:
        return Finding(name, "not", f"{figure}: did not improve, it became worse")
    near_top = shown.is_share and shown.better > 0 and earlier.value >= NEAR_TOP
    reason = "there was hardly room left" if near_top else "the difference is within chance"
    return Finding(name, "not", f"{figure}: did not improve ({reason})")


def _change(name: str, result: StageResult, before: StageResult) -> int:
    """Return 1 for clearly better, -1 for clearly worse, 0 for neither."""
    now, earlier = result.metrics[name], before.metrics[name]
    mine: Mapping[str, list[tuple[float, float]] | str] = result.items.get(name, {})
    theirs = before.items.get(name, {})
    low, high = now.low - earlier.high, now.high - earlier.low
    if mine and theirs and mine["of"] == theirs["of"]:
        difference = paired_difference(theirs["shares"], mine["shares"])  # type: ignore[arg-type]
        if difference:
            low, high = difference.low, difference.high
    direction = 1 if low > 0 else -1 if high < 0 else 0
    return direction * metric(name).better


def _prices(
    result: StageResult, before: tuple[str, StageResult] | None, goals: tuple[str, ...]
) -> tuple[str, ...]:
    if before is None:
        return ()
    prices = []
    for name, found in result.metrics.items():
        earlier = before[1].metrics.get(name)
        if name in goals or earlier is None or name.startswith(DOMAIN_METRIC):
            continue
        if _change(name, result, before[1]) < 0:
            shown = metric(name)
            prices.append(
                f"{shown.label}: from {shown.show(earlier.value)} to {shown.show(found.value)}"
            )
    return tuple(prices)
