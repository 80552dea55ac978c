"""The choice of a token is that of a plain reference, written from the papers' definitions."""

import ctypes
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.errors import UserError
from cygnet.generate import sampling as room
from cygnet.generate.native import Chooser, library
from cygnet.generate.sampling import (
    Columns,
    Sampling,
    draw_uniform,
    penalized,
    probabilities,
    sample,
)


def reference(
    logits: list[float], sampling: Sampling, draw: float, seen: set[int], counts: list[int]
) -> int:
    """Choose with Python's own floats: penalties, temperature, top-k, top-p, min-p, the draw."""
    penalty = sampling.repetition_penalty
    scores = {
        i: (x / penalty if x > 0 else x * penalty) if i in seen else x for i, x in enumerate(logits)
    }
    for i, count in enumerate(counts):
        scores[i] -= sampling.frequency_penalty * count + sampling.presence_penalty * (count > 0)
    if sampling.temperature == 0:
        return max(scores, key=lambda i: scores[i])
    weights = {i: math.exp((x - max(scores.values())) / sampling.temperature)
               for i, x in scores.items()}  # fmt: skip
    order = sorted(weights, key=lambda i: -weights[i])[: sampling.top_k or None]
    total, before, kept = sum(weights[i] for i in order), 0.0, []
    for i in order:
        if before >= sampling.top_p * total and sampling.top_p < 1:
            break
        if weights[i] >= sampling.min_p:
            kept.append(i)
        before += weights[i]
    target, reached = draw * sum(weights[i] for i in kept), 0.0
    for i in sorted(kept):
        reached += weights[i]
        if reached > target:
            return i
    raise AssertionError("the draw lies beyond all tokens")


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.one_of(st.just(0.0), st.floats(0.05, 3)),
    top_p=st.one_of(st.just(1.0), st.floats(0.05, 1)),
    top_k=st.integers(0, 30),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 0.5, 2.0]),
    presence_penalty=st.sampled_from([0.0, 1.0, -2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.5, -1.0]),
)


@settings(max_examples=300, deadline=None)
@given(
    samplings=st.lists(SAMPLINGS, min_size=1, max_size=5),
    offset=st.sampled_from([-4, 0, 4]),
    first_look=st.integers(1, 40),
    seed=st.integers(0, 999),
)
def test_each_rows_choice_is_the_references(
    samplings: list[Sampling], offset: int, first_look: int, seed: int
) -> None:
    rows = len(samplings)
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, 24, generator=generator) + offset
    counts = torch.randint(0, 3, (rows, 24), generator=generator)
    seen = (torch.rand(rows, 24, generator=generator) < 0.3) | (counts > 0)
    draws = torch.rand(rows, generator=generator, dtype=torch.float64)
    columns = Columns(samplings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "FIRST_LOOK", first_look)
        adjusted = penalized(logits, columns, seen, counts)
        chosen = sample(adjusted, columns, draws).tolist()
    native = Chooser(samplings, compiled())(adjusted, draws.tolist())
    for row, found in enumerate(chosen):
        seen_ids = set(seen[row].nonzero().flatten().tolist())
        expected = reference(
            logits[row].tolist(), samplings[row], float(draws[row]), seen_ids, counts[row].tolist()
        )
        assert found == native[row] == expected


@pytest.mark.parametrize("bad", [[math.nan] * 4, [1, math.nan, 2, 3], [1, math.inf, 2, 3]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_refused(bad: list[float], temperature: float) -> None:
    for logits in (bad, [-math.inf] * 4):
        chooser = Chooser([Sampling(temperature=temperature, top_p=0.5, top_k=3)], compiled())
        if temperature == 0 and logits[0] == 1 and math.isnan(logits[1]):
            continue  # the likeliest of the others
        with pytest.raises(UserError, match="logits are no numbers"):
            chooser(torch.tensor([logits]), [0.5])


def compiled() -> ctypes.CDLL:
    found = library()
    assert found is not None
    return found


@settings(max_examples=60, derandomize=True)
@given(
    samplings=st.lists(SAMPLINGS, min_size=1, max_size=3),
    spread=st.sampled_from([0.0, 0.3, 4.0, 40.0]),
    seed=st.integers(0, 999),
)
def test_native_draws_from_the_same_distribution(
    samplings: list[Sampling], spread: float, seed: int
) -> None:
    """Of a whole vocabulary, flat, peaked or with many equals: each draw falls on its token.

    The logits lie apart, for of two that round to one probability either may be kept alone; the
    same examples each time, for a cut may fall on a token's border to the last bit.
    """
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.stack([torch.randperm(3000, generator=generator) for _ in samplings])
    logits = spread * ranks / 500
    logits[:, 100:150] = logits[:, 100:101]
    expected = probabilities(logits, Columns(samplings))
    ends = expected.cumsum(-1)
    chooser = Chooser(samplings, compiled())
    for draw in torch.rand(20, dtype=torch.float64, generator=generator).tolist():
        for row, token in enumerate(chooser(logits, [draw] * len(samplings))):
            begin = 0.0 if token == 0 else float(ends[row, token - 1])
            assert begin - 1e-5 <= draw <= float(ends[row, token]) + 1e-5
            assert expected[row, token] > 0 or abs(draw - begin) < 1e-5


def test_samples_have_the_models_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    draws = draw_uniform(0, 20_000)
    ids = sample(
        logits.expand(len(draws), -1),
        Columns([Sampling(temperature=1, top_p=1)] * len(draws)),
        draws,
    )
    shares = ids.bincount(minlength=4) / len(draws)
    torch.testing.assert_close(shares, logits[0].softmax(0), atol=0.01, rtol=0)


def test_the_likeliest_token_is_kept_however_small_top_p_is() -> None:
    logits = torch.randn(1, 400)
    for top_p in (5e-324, 1e-300, 1e-12):
        columns = Columns([Sampling(top_p=top_p, temperature=2.0, top_k=2)])
        draws = torch.full((1,), 0.999, dtype=torch.float64)
        assert sample(logits, columns, draws) == logits.argmax()


def test_temperature_zero_is_greedy_and_a_tiny_one_does_not_overflow() -> None:
    logits = torch.tensor([[1e4, -1e4, 1e4 + 1]])
    draws = torch.tensor([0.999], dtype=torch.float64)
    assert sample(logits, Columns([Sampling(temperature=0)]), draws).tolist() == [2]
    assert sample(logits, Columns([Sampling(temperature=1e-30)]), draws).tolist() == [2]
    for temperature in (0, 1e-30, 5e-324):
        assert Chooser([Sampling(temperature=temperature)], compiled())(logits, [0.999]) == [2]


@given(st.integers(0, 2**63 - 1), st.integers(1, 700), st.integers(1, 700))
@settings(max_examples=40, deadline=None)
def test_a_shorter_draw_begins_a_longer_one(seed: int, one: int, two: int) -> None:
    short, long = sorted((one, two))
    assert torch.equal(draw_uniform(seed, short), draw_uniform(seed, long)[:short])


def test_without_a_seed_every_draw_is_fresh() -> None:
    assert not torch.equal(draw_uniform(None, 8), draw_uniform(None, 8))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1}, {"temperature": math.nan}, {"top_p": 0}, {"top_p": 2}, {"top_k": -1},
        {"min_p": 1.5}, {"repetition_penalty": 0}, {"max_new_tokens": 0}, {"stop": ("",)},
        {"presence_penalty": 3}, {"frequency_penalty": -math.inf},
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]
