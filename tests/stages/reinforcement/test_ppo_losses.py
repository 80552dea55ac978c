"""PPO's formulas against what the papers write, one answer and one token at a time, in float64."""

import math
import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from cygnet.stages.reinforcement.ppo_losses import (
    clipped_surrogate,
    clipped_value_loss,
    explained_variance,
    generalized_advantages,
    next_kl_coef,
    token_rewards,
    whitened,
)

LENGTHS = (7, 1, 12, 4)


def random_rows(seed: int, scale: float = 1.0) -> list[list[float]]:
    chooser = random.Random(seed)
    return [[scale * chooser.gauss(0, 1) for _ in range(length)] for length in LENGTHS]


def padded(rows: Sequence[Sequence[float]], filler: float = math.nan) -> Tensor:
    """Return the rows as one tensor, with a filler that must not matter behind their ends."""
    width = max(map(len, rows)) + 2
    return torch.tensor(
        [[*row, *[filler] * (width - len(row))] for row in rows], dtype=torch.float64
    )


def is_token() -> Tensor:
    return ~padded([[0.0] * length for length in LENGTHS]).isnan()


def test_a_token_earns_the_papers_reward() -> None:
    log_probs, reference = random_rows(1), random_rows(2)
    scores = [0.5, -2.0, 3.0, 0.0]
    found = token_rewards(
        torch.tensor(scores, dtype=torch.float64), padded(log_probs), padded(reference),
        is_token(), 0.3,
    )  # fmt: skip
    for row, score in enumerate(scores):
        # Ziegler et al., equation 2: R(x, y) = r(x, y) - beta log(pi(y|x) / rho(y|x)).
        ratio = math.fsum(log_probs[row]) - math.fsum(reference[row])
        assert float(found[row].sum()) == pytest.approx(score - 0.3 * ratio, abs=1e-9)
        for at in range(LENGTHS[row]):
            own = -0.3 * (log_probs[row][at] - reference[row][at])
            if at == LENGTHS[row] - 1:
                own += score
            assert float(found[row, at]) == pytest.approx(own, abs=1e-9)
        assert not found[row, LENGTHS[row] :].any()


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.7, 0.0)])
def test_advantages_are_the_papers_sum(gamma: float, gae_lambda: float) -> None:
    rewards, values = random_rows(3), random_rows(4)
    advantages, returns = generalized_advantages(
        padded(rewards), padded(values), is_token(), gamma, gae_lambda
    )
    for row, length in enumerate(LENGTHS):
        # Schulman et al. 2016, equation 16 with delta of equation 10.
        value = [*values[row], 0.0]
        delta = [rewards[row][t] + gamma * value[t + 1] - value[t] for t in range(length)]
        for t in range(length):
            expected = math.fsum(
                (gamma * gae_lambda) ** later * delta[t + later] for later in range(length - t)
            )
            assert float(advantages[row, t]) == pytest.approx(expected, abs=1e-9)
            assert float(returns[row, t]) == pytest.approx(expected + value[t], abs=1e-9)
        assert not advantages[row, length:].any()
        assert not returns[row, length:].any()


def test_the_return_is_the_discounted_reward_where_the_values_are_not_trusted() -> None:
    rewards = random_rows(5)
    _, returns = generalized_advantages(
        padded(rewards), padded(random_rows(6)), is_token(), 0.9, 1.0
    )
    for row, length in enumerate(LENGTHS):
        expected = math.fsum(0.9**t * rewards[row][t] for t in range(length))
        assert float(returns[row, 0]) == pytest.approx(expected, abs=1e-9)


def flat(seed: int, scale: float = 1.0) -> Tensor:
    return torch.tensor([x for row in random_rows(seed, scale) for x in row], dtype=torch.float64)


def test_the_surrogate_is_the_papers_and_loses_its_gradient_where_clipped() -> None:
    new, old, advantages = flat(7, 0.3).requires_grad_(), flat(8, 0.3), flat(9)
    losses, clipped = clipped_surrogate(new, old, advantages, 0.2)
    losses.sum().backward()
    assert new.grad is not None
    assert 0 < int(clipped.sum()) < len(clipped)
    for i in range(len(losses)):
        ratio = math.exp(float(new[i].detach()) - float(old[i]))
        advantage = float(advantages[i])
        # Schulman et al. 2017, equation 7.
        clip = min(max(ratio, 1 - 0.2), 1 + 0.2)
        assert -float(losses[i].detach()) == pytest.approx(
            min(ratio * advantage, clip * advantage), abs=1e-9
        )
        out = ratio > 1.2 if advantage > 0 else ratio < 0.8
        assert bool(clipped[i]) == out
        assert float(new.grad[i]) == pytest.approx(0 if out else -ratio * advantage, abs=1e-9)


def test_the_value_loss_is_the_larger_of_both() -> None:
    new, old, returns = flat(10), flat(11), flat(12)
    losses, clipped = clipped_value_loss(new, old, returns, 0.2)
    assert 0 < int(clipped.sum()) < len(clipped)
    for i in range(len(losses)):
        v, v_old, target = float(new[i]), float(old[i]), float(returns[i])
        held = min(max(v, v_old - 0.2), v_old + 0.2)
        both = (v - target) ** 2, (held - target) ** 2
        assert float(losses[i]) == pytest.approx(max(both) / 2, abs=1e-9)
        assert bool(clipped[i]) == (both[1] > both[0])


def test_whitened_values_have_mean_zero_and_variance_one() -> None:
    values = 5 + 3 * flat(13)
    found = whitened(values)
    mean = math.fsum(values.tolist()) / len(values)
    variance = math.fsum((x - mean) ** 2 for x in values.tolist()) / len(values)
    expected = [(x - mean) / math.sqrt(variance) for x in values.tolist()]
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-8
    )
    assert not whitened(torch.full((4,), 2.5)).any()


@pytest.mark.parametrize(("kl", "factor"), [(6.0, 1.0), (6.6, 1.01), (60.0, 1.02), (0.0, 0.98)])
def test_the_weight_of_the_kl_follows_the_papers_controller(kl: float, factor: float) -> None:
    # Ziegler et al., section 2.2: e = clip((KL - target) / target, -0.2, 0.2), beta (1 + 0.1 e).
    assert next_kl_coef(0.05, kl, 6.0) == pytest.approx(0.05 * factor, abs=1e-12)


def test_explained_variance_of_perfect_useless_and_harmful_values() -> None:
    returns = flat(14)
    assert explained_variance(returns, returns) == 1
    assert explained_variance(returns + 3, returns) == pytest.approx(1)
    assert explained_variance(torch.zeros_like(returns), returns) == pytest.approx(0)
    assert explained_variance(-returns, returns) == pytest.approx(-3)
    assert explained_variance(returns, torch.ones_like(returns)) == 0
