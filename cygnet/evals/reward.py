"""How good a reward model is: how often it is right, how sure it is, and whether it counts tokens.

All is measured on held-out pairs of which one side is known to be better. How sure the model is
comes as `share`, its probability that the better side is better.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cygnet.errors import UserError
from cygnet.evals.bootstrap import Estimate, Item, estimate, paired_difference
from cygnet.evals.result import StageResult
from cygnet.files import write_json

NUM_BINS = 10
COUNTS_ALONE, COUNTS_MOSTLY = 0.95, 0.75
"""Shares of pairs decided as the number of tokens would, from which it is said so."""
RESULT = "reward.json"


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs of which the model is about as sure."""

    sure: float
    """Its mean confidence in the side that it prefers."""
    right: float
    """Share in which that side is the better one."""
    count: int


@dataclass(frozen=True, slots=True)
class RewardResult:
    """What was found of a reward model.

    Attributes:
        accuracy: share of pairs in which the better side has the higher score, a tie being half.
        by_kind: the same for each kind of pair.
        accuracy_alike: the same for pairs of about one length; none where there are none.
        brier: mean square of 1 - share (Brier 1950); 0.25 is knowing nothing.
        log_loss: mean of -log share; 0.693 is knowing nothing.
        calibration_error: expected calibration error (Guo et al. 2017, equation 3) over the bins.
        bins: the reliability diagram, from 50 % to 100 % sure.
        length_correlation: Spearman's, between score and number of tokens.
        longer_preferred: share of the pairs of unequal length in which the longer has the higher
            score.
        length_accuracy: accuracy of the better of two rules, the longer or the shorter wins.
        length_verdict: what the figures on length mean, in words.
    """

    accuracy: Estimate
    by_kind: dict[str, Estimate]
    accuracy_alike: Estimate | None
    brier: Estimate
    log_loss: Estimate
    calibration_error: float
    bins: list[Bin]
    length_correlation: float
    longer_preferred: float
    length_accuracy: float
    length_verdict: str
    score_mean: float = field(default=0.0)
    score_std: float = field(default=0.0)

    def as_stage(self) -> StageResult:
        """Return the figures as a report shows those of a stage."""
        metrics = {
            "reward_accuracy": self.accuracy,
            "reward_accuracy_same_length": self.accuracy_alike,
            "reward_brier": self.brier,
            "reward_log_loss": self.log_loss,
        }
        return StageResult({name: found for name, found in metrics.items() if found})

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_json(path, asdict(self))

    @staticmethod
    def load(path: Path) -> RewardResult:
        """Read what `save` wrote.

        Raises:
            UserError: the file is no such result.
        """
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            for name in ("accuracy", "brier", "log_loss", "accuracy_alike"):
                values[name] = values[name] and Estimate(**values[name])
            values["by_kind"] = {k: Estimate(**found) for k, found in values["by_kind"].items()}
            values["bins"] = [Bin(**found) for found in values["bins"]]
            return RewardResult(**values)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not a result of `cygnet reward` ({error})") from error


def judge_reward(
    scores: Sequence[float],
    tokens: Sequence[int],
    pairs: Sequence[tuple[int, int]],
    shares: Sequence[float],
    alike: Sequence[tuple[int, int]] = (),
    kinds: Sequence[str] = (),
) -> RewardResult:
    """Judge a reward model by pairs that are independent of each other.

    Args:
        scores, tokens: of each conversation.
        pairs: places of the better and the worse conversation.
        shares: the model's probability of each pair.
        alike: pairs of about one length; they may be others than `pairs`.
        kinds: of each pair, empty where not known.

    Raises:
        UserError: there is no pair.
    """
    if not pairs:
        raise UserError("no held-out pair to measure the reward model on; give more data")
    score, length = np.asarray(scores), np.asarray(tokens, np.float64)
    wins = _wins(score, pairs)
    p = np.clip(np.asarray(shares, np.float64), 1e-12, 1)
    bins = _bins(p)
    longer = _wins(length, pairs)
    differ = longer != 0.5
    as_longer = float((wins[differ] == longer[differ]).mean()) if differ.any() else 0.5
    rule = longer if longer.mean() >= 0.5 else 1 - longer
    accuracy, alike_wins = _estimate(wins), _wins(score, alike)
    return RewardResult(
        accuracy=accuracy,
        by_kind={
            kind: _estimate(wins[[found == kind for found in kinds]])
            for kind in sorted(set(kinds) - {""})
        },
        accuracy_alike=_estimate(alike_wins) if len(alike_wins) else None,
        brier=_estimate((1 - p) ** 2),
        log_loss=_estimate(-np.log(p)),
        calibration_error=sum(b.count * abs(b.right - b.sure) for b in bins) / len(p),
        bins=bins,
        length_correlation=_rank_correlation(score, length),
        longer_preferred=as_longer,
        length_accuracy=float(rule.mean()),
        length_verdict=_length_verdict(wins, rule, as_longer),
        score_mean=float(score.mean()),
        score_std=float(score.std()),
    )


def summary(found: RewardResult) -> list[str]:
    """Return the result in lines for a person."""
    lines = [
        f"held-out pairs: {_share(found.accuracy)} right, of {found.accuracy.count}",
        *(f"  {kind}: {_share(each)} of {each.count}" for kind, each in found.by_kind.items()),
        f"calibration: off by {100 * found.calibration_error:.1f} % on average, "
        f"Brier score {found.brier.value:.3f} (0.25 is knowing nothing)",
    ]
    if found.accuracy_alike:
        alike = found.accuracy_alike
        lines.append(f"pairs of about one length: {_share(alike)} right, of {alike.count}")
    return [*lines, f"length: {found.length_verdict}"]


def _length_verdict(wins: NDArray[np.float64], rule: NDArray[np.float64], as_longer: float) -> str:
    agrees = max(as_longer, 1 - as_longer)
    which, lesson = ("longer", "to ramble") if as_longer >= 0.5 else ("shorter", "to say little")
    decided = f"in {100 * agrees:.0f} % of the pairs the {which} side has the higher score"
    counts = f"{decided}; that rule alone is right in {100 * rule.mean():.0f} %"
    if agrees >= COUNTS_ALONE and rule.mean() < COUNTS_ALONE:
        return (
            f"the model only counts tokens ({counts}). A policy that is trained by it learns "
            f"{lesson}: give pairs in which the better side is not always the {which} one"
        )
    if agrees >= COUNTS_ALONE:
        return (
            f"the pairs can be told apart by counting tokens ({counts}), so these figures do not "
            "show that the model has learnt anything else: give pairs of about one length"
        )
    ahead = paired_difference(_items(rule), _items(wins))
    if agrees >= COUNTS_MOSTLY and ahead is not None and ahead.low <= 0:
        return f"the model is not clearly better than counting tokens ({counts})"
    return f"more than a count of tokens ({counts})"


def _share(found: Estimate) -> str:
    return f"{100 * found.value:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f})"


def _items(values: NDArray[np.float64]) -> list[Item]:
    return [(float(value), 1.0) for value in values]


def _estimate(values: NDArray[np.float64]) -> Estimate:
    found = estimate(_items(values))
    assert found is not None
    return found


def _wins(values: NDArray[np.float64], pairs: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
    """Return 1 where the first of a pair has more, 1/2 at a tie."""
    table = np.asarray(pairs, np.int64).reshape(-1, 2)
    return (1 + np.sign(values[table[:, 0]] - values[table[:, 1]])) / 2


def _bins(shares: NDArray[np.float64]) -> list[Bin]:
    """Sort pairs by the confidence in the preferred side, in bins of equal width from 1/2 to 1."""
    sure = np.maximum(shares, 1 - shares)
    right = np.where(shares == 0.5, 0.5, shares > 0.5)
    place = np.minimum(((sure - 0.5) * 2 * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    return [
        Bin(float(sure[place == k].mean()), float(right[place == k].mean()), int(sum(place == k)))
        for k in range(NUM_BINS)
        if (place == k).any()
    ]


def _rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return Spearman's correlation, equal values sharing their ranks; 0 where nothing varies."""
    ranks: list[NDArray[np.float64]] = []
    for values in (first, second):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[inverse])
    a, b = (rank - rank.mean() for rank in ranks)
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm else 0.0
