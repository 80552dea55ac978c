"""Each preference loss is its paper's, written out here with plain numbers (invariant 9)."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cygnet.stages.preference.losses import (
    dpo_loss,
    ipo_loss,
    kto_baseline,
    kto_loss,
    orpo_loss,
    simpo_loss,
)

RATIO = st.floats(-20, 20)
MEAN = st.floats(-12, -1e-4)
BETA = st.floats(0.01, 3)


def sigma(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def given_as(*numbers: float) -> list[Tensor]:
    return [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in numbers]


def close(found: Tensor, expected: float) -> None:
    assert found.shape == (1,) and found.dtype == torch.float64
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def slopes_are_right(loss: Callable[..., Tensor], *numbers: float) -> None:
    """Each gradient is the quotient of small differences."""
    inputs = given_as(*numbers)
    loss(*inputs).sum().backward()
    for place, tensor in enumerate(inputs):
        step = 1e-5
        two = [
            loss(*given_as(*(x + sign * step * (i == place) for i, x in enumerate(numbers))))
            for sign in (1, -1)
        ]
        quotient = float((two[0] - two[1]).detach()) / (2 * step)
        assert tensor.grad is not None
        assert float(tensor.grad) == pytest.approx(quotient, rel=1e-4, abs=1e-5)


@settings(max_examples=60)
@given(won=RATIO, lost=RATIO, ref_w=RATIO, ref_l=RATIO, beta=BETA, smoothing=st.floats(0, 0.49))
def test_dpo_is_equation_7_and_cdpo_mixes_it_with_the_pair_turned_round(
    won: float, lost: float, ref_w: float, ref_l: float, beta: float, smoothing: float
) -> None:
    loss, margin = dpo_loss(*given_as(won, lost, ref_w, ref_l), beta, smoothing)
    # -log sigma(beta log(pi(won) / ref(won)) - beta log(pi(lost) / ref(lost))), as a sum that
    # cannot round to log(0)
    z = beta * (won - ref_w) - beta * (lost - ref_l)
    right, wrong = math.log1p(math.exp(-z)), math.log1p(math.exp(z))
    close(loss, (1 - smoothing) * right + smoothing * wrong)
    close(margin, z)


@settings(max_examples=60)
@given(won=RATIO, lost=RATIO, ref_w=RATIO, ref_l=RATIO, tau=BETA)
def test_ipo_is_equation_17(
    won: float, lost: float, ref_w: float, ref_l: float, tau: float
) -> None:
    loss, margin = ipo_loss(*given_as(won, lost, ref_w, ref_l), tau)
    # h = log(pi(won) ref(lost) / (pi(lost) ref(won)))
    h = math.log(math.exp(won) / math.exp(lost)) + math.log(math.exp(ref_l) / math.exp(ref_w))
    close(loss, (h - 1 / (2 * tau)) ** 2)
    close(margin, tau * h)


@settings(max_examples=60)
@given(won=MEAN, lost=MEAN, beta=BETA, gamma=st.floats(0, 3), n_w=st.integers(1, 9))
def test_simpo_is_equation_6(won: float, lost: float, beta: float, gamma: float, n_w: int) -> None:
    loss, margin = simpo_loss(*given_as(won, lost), beta, gamma)
    # log pi(y) = |y| times the mean; beta / |y| log pi(y)
    z = beta / n_w * (n_w * won) - beta / 4 * (4 * lost) - gamma
    close(loss, -math.log(sigma(z)))
    close(margin, beta * (won - lost))


@settings(max_examples=60)
@given(won=MEAN, lost=MEAN, weight=BETA)
def test_orpo_is_equations_4_to_7(won: float, lost: float, weight: float) -> None:
    loss, log_odds = orpo_loss(*given_as(won, lost), weight)
    p_w, p_l = math.exp(won), math.exp(lost)
    odds_w, odds_l = p_w / -math.expm1(won), p_l / -math.expm1(lost)
    close(log_odds, math.log(odds_w / odds_l))
    # -log sigma(log x) = log(1 + 1 / x)
    close(loss, weight * math.log1p(odds_l / odds_w))
    slopes_are_right(lambda *both: orpo_loss(*both, weight)[0], min(won, -0.01), min(lost, -0.01))


def test_odds_of_certain_and_impossible_answers_are_finite() -> None:
    for extreme in (0.0, -1e-30, -1e4):
        for dtype in (torch.float32, torch.float64):
            won = torch.tensor([extreme], dtype=dtype, requires_grad=True)
            loss, _ = orpo_loss(won, torch.tensor([-1.0], dtype=dtype), 1.0)
            loss.sum().backward()
            assert torch.isfinite(loss).all() and won.grad is not None
            assert torch.isfinite(won.grad).all(), extreme


@settings(max_examples=60)
@given(
    policy=RATIO, reference=RATIO, desirable=st.booleans(), z=st.floats(0, 5), beta=BETA,
    weights=st.tuples(st.floats(0.1, 3), st.floats(0.1, 3)),
)  # fmt: skip
def test_kto_is_equation_7(
    policy: float, reference: float, desirable: bool, z: float, beta: float,
    weights: tuple[float, float],
) -> None:  # fmt: skip
    both = given_as(policy, reference)
    baseline = torch.tensor([z], dtype=torch.float64)
    loss, reward = kto_loss(*both, torch.tensor([desirable]), baseline, beta, *weights)
    r = policy - reference
    lambda_d, lambda_u = weights
    if desirable:
        expected = lambda_d - lambda_d * sigma(beta * (r - z))
    else:
        expected = lambda_u - lambda_u * sigma(beta * (z - r))
    close(loss, expected)
    close(reward, beta * (r - z))


def test_no_gradient_goes_through_the_baseline_of_kto() -> None:
    policy, z = given_as(1.0, 0.5)
    loss, _ = kto_loss(policy, torch.zeros(1).double(), torch.tensor([True]), z, 0.3)
    loss.sum().backward()
    assert z.grad is None and policy.grad is not None


def test_the_baseline_of_kto_is_a_mean_and_never_below_zero() -> None:
    assert kto_baseline(6.0, 4) == 1.5
    assert kto_baseline(-6.0, 4) == 0.0
    assert kto_baseline(0.0, 0) == 0.0


def test_slopes_of_the_others_are_right() -> None:
    numbers = (-3.2, -4.1, -2.9, -3.3)
    slopes_are_right(lambda *given: dpo_loss(*given, 0.7, 0.2)[0], *numbers)
    slopes_are_right(lambda *given: ipo_loss(*given, 0.7)[0], *numbers)
    slopes_are_right(lambda *given: simpo_loss(*given, 2.0, 0.4)[0], *numbers[:2])
    for label in (True, False):
        wanted, z = torch.tensor([label]), torch.tensor([0.3]).double()
        slopes_are_right(lambda *g: kto_loss(*g, wanted, z, 0.7, 1.2, 0.6)[0], *numbers[:2])  # noqa: B023
