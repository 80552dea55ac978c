from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.evals.bootstrap import estimate, paired_difference

ITEMS = st.lists(
    st.tuples(st.floats(-1e3, 1e3), st.integers(1, 1000).map(float)), min_size=1, max_size=40
)


def drawn(count: int, seed: int = 0) -> list[tuple[float, float]]:
    generator = random.Random(seed)
    return [(generator.gauss(2, 1) * 10, 10.0) for _ in range(count)]


@settings(max_examples=50)
@given(ITEMS)
def test_value_is_the_ratio_of_sums_and_lies_in_the_interval(items):
    found = estimate(items, resamples=50)
    assert found is not None
    numerator, denominator = sum(a for a, _ in items), sum(b for _, b in items)
    assert abs(found.value - numerator / denominator) < 1e-9
    assert found.low <= found.value <= found.high
    assert found.count == len(items)


def test_interval_shrinks_with_the_root_of_the_number_of_items():
    few, many = estimate(drawn(50)), estimate(drawn(5000))
    assert few and many
    shrunk = (few.high - few.low) / (many.high - many.low)
    assert 6 < shrunk < 16  # the root of 100 is 10


def test_interval_covers_the_true_mean_about_95_times_of_100():
    covered = 0
    for seed in range(200):
        found = estimate(drawn(60, seed), resamples=300, seed=seed)
        assert found
        covered += found.low <= 2 <= found.high
    assert 178 <= covered <= 199


def test_the_seed_decides():
    assert estimate(drawn(30), seed=1) == estimate(drawn(30), seed=1)
    assert estimate(drawn(30), seed=1) != estimate(drawn(30), seed=2)


def test_many_items_are_drawn_in_blocks_and_still_fairly():
    found = estimate(drawn(300_000), resamples=20)
    assert found and found.high - found.low < 0.02


def test_all_passed_is_not_certainty():
    found = estimate([(1.0, 1.0)] * 48)
    assert found and found.value == found.high == 1 and abs(found.low - (1 - 3 / 48)) < 1e-12
    none_passed = estimate([(0.0, 1.0)] * 48)
    assert none_passed and none_passed.low == 0 and abs(none_passed.high - 3 / 48) < 1e-12


def test_nothing_to_measure_gives_nothing():
    assert estimate([]) is None
    assert estimate([(0.0, 0.0)]) is None
    assert paired_difference([], []) is None


def test_paired_difference_is_sharper_than_two_intervals():
    before = drawn(100)
    after = [(a + 0.5, b) for a, b in before]
    difference = paired_difference(before, after)
    first, second = estimate(before), estimate(after)
    assert difference and first and second
    assert abs(difference.value - 0.05) < 1e-9
    assert difference.low > 0
    assert second.low < first.high


def test_no_difference_between_a_stage_and_itself():
    difference = paired_difference(drawn(20), drawn(20))
    assert difference and difference.low == difference.value == difference.high == 0
