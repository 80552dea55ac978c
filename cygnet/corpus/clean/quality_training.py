"""Learn from texts called good and bad: logistic regression over hashed words, by L-BFGS.

Without fastText's hidden layer the objective is convex, so the same examples give the same weights,
in whatever order they come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cygnet.corpus.clean.quality import BUCKET_BITS, Floats, Ints, QualityModel, buckets_of, sigmoid
from cygnet.corpus.clean.quality_report import QualityReport, Telling, judge
from cygnet.corpus.clean.words import TextBatch
from cygnet.corpus.document import document_id
from cygnet.errors import UserError
from cygnet.files import sha256_text
from cygnet.progress import progress

MIN_EXAMPLES = 50
MAX_EXAMPLES = 30_000
"""Of either side; of more, a fair draw is used. Training then takes under a gigabyte."""
MAX_CHARS = 4_000
"""Of an example, from its start."""
MAX_ON_BOTH_SIDES = 0.01
"""Share of the smaller side; up to it such texts are left out, beyond they are refused."""
HELD_OUT = 0.15
"""Share of either side that measures; as much again chooses the penalty and is then learnt from."""
PENALTIES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""Weights of the L2 penalty, strongest first; tried until the loss on other examples rises."""
MAX_STEPS = 60
"""Of L-BFGS, for each penalty."""
NUM_TELLING = 25
MAX_TEXTS_FOR_WORDS = 2_000
BATCH_TEXTS = 256


@dataclass(frozen=True)
class Examples:
    """Texts with a side, in an order that depends on the texts and the seed alone."""

    texts: list[str]
    is_good: NDArray[np.bool_]
    num_read: tuple[int, int]
    """Good and bad texts given, those that came before among them."""
    num_on_both: int

    def __len__(self) -> int:
        return len(self.texts)

    def chosen(self, mask: NDArray[np.bool_]) -> Examples:
        """Return some of the examples."""
        texts = [self.texts[i] for i in np.flatnonzero(mask)]
        return Examples(texts, self.is_good[mask], self.num_read, self.num_on_both)


def train_quality(
    good: Iterable[str], bad: Iterable[str], seed: int = 0
) -> tuple[QualityModel, QualityReport]:
    """Train a classifier; the same texts, in any order, and seed give the same bytes.

    Both sides weigh the same, however many examples they have. Texts should be as they will be
    judged: normalised.

    Raises:
        UserError: a side is empty or too small, or many texts stand on both sides.
    """
    examples = collect(good, bad, seed)
    held, choosing = _parts(examples.is_good)
    train = _Matrix.of(examples.chosen(~held & ~choosing))
    penalty = _best_penalty(train, _Matrix.of(examples.chosen(choosing)))
    learnt = examples.chosen(~held)
    matrix = _Matrix.of(learnt)
    # Along the same path, since a fit stops before its end: that restrains it too.
    *_, weights = _fits(matrix, PENALTIES[: PENALTIES.index(penalty) + 1])
    made_of = {
        "good": int(examples.is_good.sum()),
        "bad": int((~examples.is_good).sum()),
        "seed": seed,
        "penalty": penalty,
    }
    model = QualityModel(
        weights=weights[:-1].astype(np.float32), bias=float(weights[-1]), made_of=made_of
    )
    telling = _telling(model, learnt, matrix)
    return model, _judge(model, examples, examples.chosen(held), telling)


def collect(good: Iterable[str], bad: Iterable[str], seed: int) -> Examples:
    """Return the distinct examples of both sides, at most `MAX_EXAMPLES` of each.

    Raises:
        UserError: as `train_quality`.
    """
    sides, num_read = [], []
    for texts in (good, bad):
        kept, count = _distinct(texts)
        sides.append(kept)
        num_read.append(count)
    for name, side, count in zip(("good", "bad"), sides, num_read, strict=True):
        if not count:
            raise UserError(f"--{name}: not one text in it; give examples of {name} text")
        if len(side) < MIN_EXAMPLES:
            raise UserError(
                f"--{name}: {len(side)} different texts are too few to learn from; give at least "
                f"{MIN_EXAMPLES}, better some thousands"
            )
    both = sides[0].keys() & sides[1].keys()
    if len(both) > MAX_ON_BOTH_SIDES * min(map(len, sides)):
        example = " ".join(sides[0][min(both)].split())[:60]
        raise UserError(
            f"{len(both):,} texts are given as good and as bad, such as {example!r}; take them "
            "out of one side"
        )
    rows = [
        (sha256_text(f"{seed} {key}"), text, side is sides[0])
        for side in sides
        for key, text in side.items()
        if key not in both
    ]
    rows.sort()
    is_good = np.array([row[2] for row in rows])
    return Examples([row[1] for row in rows], is_good, (num_read[0], num_read[1]), len(both))


def _distinct(texts: Iterable[str]) -> tuple[dict[str, str], int]:
    """Return texts by their id, the `MAX_EXAMPLES` with the smallest ids, and how many came."""
    kept: dict[str, str] = {}
    count = 0
    for text in texts:
        if not text.strip():
            continue
        count += 1
        text = text[:MAX_CHARS]
        kept[document_id(text)] = text
        if len(kept) > 1.2 * MAX_EXAMPLES:
            kept = _smallest(kept)
    return _smallest(kept), count


def _smallest(texts: dict[str, str]) -> dict[str, str]:
    return {key: texts[key] for key in sorted(texts)[:MAX_EXAMPLES]}


def _parts(is_good: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return masks of the examples that measure, and of those that choose the penalty."""
    held, choosing = np.zeros(len(is_good), bool), np.zeros(len(is_good), bool)
    for side in (is_good, ~is_good):
        members = np.flatnonzero(side)
        count = int(HELD_OUT * len(members))
        held[members[:count]] = True
        choosing[members[count : 2 * count]] = True
    return held, choosing


@dataclass(frozen=True)
class _Matrix:
    """Examples x buckets, sparse: the share of each bucket in an example's words and pairs."""

    rows: NDArray[np.int32]
    buckets: Ints
    shares: NDArray[np.float32]
    starts: Ints
    """(examples that have any), where each begins."""
    filled: Ints
    """(examples that have any), which they are."""
    signs: Floats
    """(examples), 1 of a good one, -1 of a bad one."""
    importance: Floats
    """(examples), sums to 1, one half on either side."""
    num_buckets: int = 1 << BUCKET_BITS

    def compact(self) -> tuple[_Matrix, Ints]:
        """Return the same with the buckets that occur alone, and which those are."""
        occurring, buckets = np.unique(self.buckets, return_inverse=True)
        return replace(self, buckets=buckets, num_buckets=len(occurring)), occurring

    @classmethod
    def of(cls, examples: Examples) -> _Matrix:
        rows, buckets, shares = [], [], []
        for start in range(0, len(examples), BATCH_TEXTS):
            batch = TextBatch(examples.texts[start : start + BATCH_TEXTS])
            parts = list(buckets_of(batch))
            totals = np.sum([np.diff(offsets) for _, offsets in parts], axis=0)
            keys = [
                np.repeat(np.arange(len(batch)) << BUCKET_BITS, np.diff(offsets)) + found
                for found, offsets in parts
            ]
            distinct, counts = np.unique(np.concatenate(keys), return_counts=True)
            row = distinct >> BUCKET_BITS
            rows.append((row + start).astype(np.int32))
            buckets.append(distinct & ((1 << BUCKET_BITS) - 1))
            shares.append((counts / totals[row]).astype(np.float32))
        all_rows = np.concatenate(rows)
        starts = np.flatnonzero(np.diff(all_rows, prepend=np.int32(-1)))
        filled = all_rows[starts].astype(np.int64)
        good = examples.is_good
        return cls(
            all_rows, np.concatenate(buckets), np.concatenate(shares), starts, filled,
            np.where(good, 1.0, -1.0), np.where(good, 0.5 / good.sum(), 0.5 / (~good).sum()),
        )  # fmt: skip

    def logits(self, weights: Floats) -> Floats:
        """Return (examples), for (buckets + 1) weights, the bias last."""
        logits = np.full(len(self.signs), weights[-1])
        logits[self.filled] += np.add.reduceat(weights[self.buckets] * self.shares, self.starts)
        return logits

    def loss(self, weights: Floats) -> float:
        """Return the mean of -log(probability of the right side), in nats."""
        return float(np.sum(self.importance * np.logaddexp(0, -self.signs * self.logits(weights))))

    def gradient(self, weights: Floats) -> Floats:
        """Return that of `loss`."""
        wrong = sigmoid(-self.signs * self.logits(weights))
        pull = -self.importance * self.signs * wrong
        by_bucket = np.bincount(
            self.buckets, weights=pull[self.rows] * self.shares, minlength=self.num_buckets
        )
        return np.append(by_bucket, pull.sum())


def _best_penalty(train: _Matrix, other: _Matrix) -> float:
    """Return the one of `PENALTIES` that is best on other examples."""
    losses: list[float] = []
    for weights in _fits(train, PENALTIES):
        losses.append(other.loss(weights))
        if len(losses) > 1 and losses[-1] >= losses[-2]:
            break
    return PENALTIES[losses.index(min(losses))]


def _fits(train: _Matrix, penalties: Sequence[float]) -> Iterator[Floats]:
    """Yield weights (buckets + 1), the bias last, for each penalty, from the ones before."""
    compact, occurring = train.compact()
    # A share is about one over the number of words: in this unit the weights are of order one.
    unit = float(np.sqrt(len(train.shares) / len(train.signs)))
    weights = np.zeros(len(occurring) + 1)
    with progress("training", len(penalties) * MAX_STEPS) as advance:
        for penalty in penalties:
            by_bucket = np.append(np.full(len(occurring), penalty) / unit**2, 0)
            weights = _minimize(compact, weights, by_bucket, advance)
            whole = np.zeros((1 << BUCKET_BITS) + 1)
            whole[occurring], whole[-1] = weights[:-1], weights[-1]
            yield whole


def _minimize(train: _Matrix, weights: Floats, penalties: Floats, advance: Any) -> Floats:
    """Return where loss + sum of penalties / 2 * weights**2 is least.

    L-BFGS (Liu and Nocedal 1989, "On the limited memory BFGS method") with halved steps.
    """

    def value(at: Floats) -> float:
        return train.loss(at) + 0.5 * _dot(penalties * at, at)

    def slope(at: Floats) -> Floats:
        return train.gradient(at) + penalties * at

    current, gradient = value(weights), slope(weights)
    history: list[tuple[Floats, Floats]] = []
    for _ in range(MAX_STEPS):
        direction = _direction(gradient, history)
        descent = _dot(gradient, direction)
        step = 1.0 if history else 1 / max(float(np.sqrt(_dot(gradient, gradient))), 1e-12)
        while (reached := value(weights + step * direction)) > current + 1e-4 * step * descent:
            step /= 2
            if step < 1e-10:
                return weights
        moved = step * direction
        new_gradient = slope(weights + moved)
        if _dot(moved, new_gradient - gradient) > 0:
            history = [*history[-9:], (moved, new_gradient - gradient)]
        weights, gradient = weights + moved, new_gradient
        advance()
        if current - reached < 1e-6 * current:
            break
        current = reached
    return weights


def _direction(gradient: Floats, history: Sequence[tuple[Floats, Floats]]) -> Floats:
    """Return the quasi-Newton direction from the last moves and changes of the gradient."""
    direction = -gradient
    parts = []
    for moved, changed in reversed(history):
        part = _dot(moved, direction) / _dot(moved, changed)
        direction = direction - part * changed
        parts.append(part)
    if history:
        moved, changed = history[-1]
        direction = direction * (_dot(moved, changed) / _dot(changed, changed))
    for (moved, changed), part in zip(history, reversed(parts), strict=True):
        direction += (part - _dot(changed, direction) / _dot(moved, changed)) * moved
    return direction


def _dot(left: Floats, right: Floats) -> float:
    # Not BLAS, whose rounding depends on the number of threads.
    return float(np.sum(left * right))


def _judge(
    model: QualityModel,
    examples: Examples,
    held: Examples,
    telling: tuple[Telling, Telling],
) -> QualityReport:
    starts = range(0, len(held), BATCH_TEXTS)
    batches = (TextBatch(held.texts[start : start + BATCH_TEXTS]) for start in starts)
    scores = np.concatenate([model.scores(batch) for batch in batches]).astype(np.float64)
    return judge(
        scores[held.is_good],
        scores[~held.is_good],
        num_read=examples.num_read,
        num_used=(int(examples.is_good.sum()), int((~examples.is_good).sum())),
        num_on_both=examples.num_on_both,
        telling=telling,
    )


def _telling(model: QualityModel, examples: Examples, matrix: _Matrix) -> tuple[Telling, Telling]:
    """Return the words and pairs that part the sides most, of the good and of the bad."""
    pull = matrix.importance * matrix.signs * 2
    apart = np.bincount(
        matrix.buckets, weights=pull[matrix.rows] * matrix.shares, minlength=1 << BUCKET_BITS
    )
    added = apart * model.weights  # sums to the difference of the mean logits
    sides = []
    for sign in (1, -1):
        at = np.flatnonzero((sign * apart > 0) & (added > 0))
        chosen = at[np.argsort(-added[at], kind="stable")[:NUM_TELLING]]
        names = _names(examples, set(chosen.tolist()))
        sides.append([(names[b], float(added[b])) for b in chosen.tolist() if b in names])
    return sides[0], sides[1]


def _names(examples: Examples, buckets: set[int]) -> dict[int, str]:
    """Return the commonest word or pair of each bucket in the first texts."""
    counts: dict[int, Counter[str]] = {bucket: Counter() for bucket in buckets}
    wanted = np.array(sorted(buckets))
    for text in examples.texts[:MAX_TEXTS_FOR_WORDS]:
        batch = TextBatch([text])
        words: list[str] = []
        for length, (found, _) in enumerate(buckets_of(batch), start=1):
            for at in np.flatnonzero(np.isin(found, wanted)).tolist():
                words = words or batch.words(0)
                counts[int(found[at])][" ".join(words[at : at + length])] += 1
    return {bucket: min(c, key=lambda word: (-c[word], word)) for bucket, c in counts.items() if c}
