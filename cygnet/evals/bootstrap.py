"""How sure a figure is: percentile bootstrap intervals (Efron 1979) over documents or samples.

Every metric is a ratio of sums over items: bits over bytes, nats over tokens, passed over asked.
Resampling the items keeps numerator and denominator of each together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Item = tuple[float, float]
LEVEL = 0.95
BLOCK_CELLS = 1_000_000
"""Weights drawn at once: bounds the memory."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval, from `count` items; low <= value <= high."""

    value: float
    low: float
    high: float
    count: int


def estimate(items: Sequence[Item], resamples: int = 1000, seed: int = 0) -> Estimate | None:
    """Return sum(numerators) / sum(denominators) with its interval; none for an empty sum.

    Items that all passed or all failed do not vary, so resampling them would claim certainty:
    they get the 3 / n bound instead (Hanley and Lippman-Hand 1983).

    Args:
        items: (numerator, denominator) of each document or sample.
        resamples: how often the items are drawn anew.
        seed: the same seed gives the same interval.
    """
    table = np.asarray(items, dtype=np.float64).reshape(-1, 2)
    if table[:, 1].sum() <= 0:
        return None
    value = float(_ratio(table.sum(0)))
    if bool((table[:, 1] == 1).all()) and value in (0.0, 1.0) and _constant(table[:, 0]):
        bound = min(3 / len(table), 1.0)
        low, high = max(value - bound, 0.0), min(value + bound, 1.0)
        return Estimate(value, low, high, len(table))
    low, high = _interval(_ratio(_resampled(table, resamples, seed)))
    return Estimate(value, min(low, value), max(high, value), len(table))


def paired_difference(
    before: Sequence[Item], after: Sequence[Item], resamples: int = 1000, seed: int = 0
) -> Estimate | None:
    """Return ratio(after) - ratio(before) over the same items, each resampled in both together.

    What is hard in an item is hard for both, so this is far sharper than two separate intervals.
    """
    table = np.hstack(
        [np.asarray(side, dtype=np.float64).reshape(-1, 2) for side in (before, after)]
    )
    if table[:, 1].sum() <= 0 or table[:, 3].sum() <= 0:
        return None
    sums = _resampled(table, resamples, seed)
    totals = table.sum(0)
    value = float(_ratio(totals[2:])) - float(_ratio(totals[:2]))
    low, high = _interval(_ratio(sums[:, 2:]) - _ratio(sums[:, :2]))
    return Estimate(value, min(low, value), max(high, value), len(table))


def _resampled(table: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """Return (resamples, columns): column sums of the table with its rows drawn anew."""
    generator = np.random.default_rng(seed)
    count = len(table)
    block = max(BLOCK_CELLS // count, 1)
    sums = []
    for start in range(0, resamples, block):
        size = (min(block, resamples - start), count)
        drawn = generator.integers(0, count, size)
        offsets = np.arange(size[0])[:, None] * count
        weights = np.bincount((drawn + offsets).ravel(), minlength=size[0] * count)
        sums.append(weights.reshape(size) @ table)
    return np.concatenate(sums)


def _ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 0] / sums[..., 1]


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    tail = 50 * (1 - LEVEL)
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)


def _constant(values: NDArray[np.float64]) -> bool:
    return bool((values == values[0]).all())
