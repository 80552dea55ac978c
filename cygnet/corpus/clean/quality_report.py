"""What a quality classifier is worth, on examples that it has not seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cygnet.corpus.clean.quality import Floats

NUM_BINS = 10
GOOD_KEPT = (0.99, 0.95, 0.9, 0.8, 0.5)

Telling = list[tuple[str, float]]
"""Words and pairs, and how much each adds to the difference between the sides' mean logits."""


@dataclass(frozen=True, kw_only=True)
class QualityReport:
    """How good a classifier is on examples that it has not seen."""

    num_read: tuple[int, int]
    """Texts given as good and as bad."""
    num_used: tuple[int, int]
    """Without repetitions and what was over the most that is used."""
    num_held: tuple[int, int]
    num_on_both: int
    """Texts given on both sides, used on neither."""
    accuracy: float
    """At a probability of one half, the mean of both sides."""
    auc: float
    """The chance that a good text scores higher than a bad one."""
    calibration: list[tuple[float, float, int]]
    """Of each tenth of the scale that has any: mean probability, share that is good (both sides
    weighing the same), examples."""
    thresholds: list[tuple[float, float, float]]
    """Threshold, share of the good and of the bad that score as much or more."""
    telling_good: Telling
    telling_bad: Telling

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Return `report.md`."""
        (read_good, read_bad), (good, bad) = self.num_read, self.num_used
        lines = [
            "# A quality filter of your own", "",
            f"Learnt from {good:,} good and {bad:,} bad texts "
            f"({read_good:,} and {read_bad:,} were given; each counts once, "
            f"{self.num_on_both:,} stood on both sides and were left out).",
            f"Measured on {self.num_held[0]:,} good and {self.num_held[1]:,} bad texts kept "
            "aside, both sides weighing the same.", "",
            f"- accuracy at 0.5: {self.accuracy:.2%}",
            f"- AUC (a good text scores above a bad one): {self.auc:.4f}", "",
            "## Where to cut", "",
            "| threshold | good kept | bad kept |", "|---:|---:|---:|",
            *(f"| {at:.3f} | {kept:.1%} | {lost:.1%} |" for at, kept, lost in self.thresholds), "",
            "## Is a probability what it says?", "",
            "| mean probability | really good | texts |", "|---:|---:|---:|",
            *(f"| {mean:.2f} | {share:.2f} | {n:,} |" for mean, share, n in self.calibration), "",
            "## What tells the sides apart", "",
            "The difference between the mean logits of good and bad, by word and pair.", "",
            "| good | | bad | |", "|---|---:|---|---:|",
            *_side_by_side(self.telling_good, self.telling_bad),
        ]  # fmt: skip
        return "\n".join(lines) + "\n"


def _side_by_side(left: Telling, right: Telling) -> Iterator[str]:
    for i in range(max(len(left), len(right))):
        cells = []
        for side in (left, right):
            word, value = side[i] if i < len(side) else ("", 0.0)
            word = word.replace("\\", "\\\\").replace("|", "\\|")
            cells.append(f"{word} | {value:+.3f}" if word else " | ")
        yield f"| {' | '.join(cells)} |"


def judge(
    good: Floats,
    bad: Floats,
    *,
    num_read: tuple[int, int],
    num_used: tuple[int, int],
    num_on_both: int,
    telling: tuple[Telling, Telling],
) -> QualityReport:
    """Return the report on the scores of held-out good and bad texts."""
    cuts = [float(np.sort(good)[int((1 - share) * len(good))]) for share in GOOD_KEPT]
    return QualityReport(
        num_read=num_read,
        num_used=num_used,
        num_held=(len(good), len(bad)),
        num_on_both=num_on_both,
        accuracy=float(((good >= 0.5).mean() + (bad < 0.5).mean()) / 2),
        auc=area_under_curve(good, bad),
        calibration=_calibration(good, bad),
        thresholds=[(cut, float((good >= cut).mean()), float((bad >= cut).mean())) for cut in cuts],
        telling_good=telling[0],
        telling_bad=telling[1],
    )


def area_under_curve(good: Floats, bad: Floats) -> float:
    """Return the share of pairs in which the good one is higher; a tie counts half."""
    ordered = np.sort(bad)
    lower = np.searchsorted(ordered, good, side="left")
    not_higher = np.searchsorted(ordered, good, side="right")
    return float((lower + not_higher).mean() / (2 * len(bad)))


def _calibration(good: Floats, bad: Floats) -> list[tuple[float, float, int]]:
    scores = np.concatenate([good, bad])
    importance = np.repeat([1 / len(good), 1 / len(bad)], [len(good), len(bad)])
    is_good = np.repeat([1.0, 0.0], [len(good), len(bad)])
    bins = np.minimum((scores * NUM_BINS).astype(int), NUM_BINS - 1)
    rows = []
    for i in np.unique(bins):
        inside = bins == i
        weight = importance[inside] / importance[inside].sum()
        mean, share = (weight * scores[inside]).sum(), (weight * is_good[inside]).sum()
        rows.append((float(mean), float(share), int(inside.sum())))
    return rows
