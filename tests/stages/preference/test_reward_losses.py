"""The reward model's losses are their papers' (invariant 9), and TRL's where TRL has them."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from trl.trainer.reward_trainer import RewardTrainer

from cygnet.stages.preference.reward_losses import (
    bradley_terry_loss,
    level_shares,
    ordinal_loss,
    preference_share,
    scale_thresholds,
)


def drawn(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(shape, generator=generator, dtype=torch.float64)


@settings(max_examples=30)
@given(seed=st.integers(0, 999), center=st.floats(0, 1), has_margin=st.booleans())
def test_bradley_terry(seed: int, center: float, has_margin: bool) -> None:
    chosen, rejected = drawn(seed, 5), drawn(seed + 1, 5)
    chosen.requires_grad_()
    margin = drawn(seed + 2, 5).abs() if has_margin else None
    losses = bradley_terry_loss(chosen, rejected, margin, center)
    for i in range(5):
        w, loser = float(chosen[i].detach()), float(rejected[i])
        m = 0.0 if margin is None else float(margin[i])
        # p(w over l) = exp(w) / (exp(w) + exp(l)), the better one handicapped by the margin
        share = np.exp(w - m) / (np.exp(w - m) + np.exp(loser))
        expected = -np.log(share) + center * (w + loser) ** 2
        assert float(losses[i].detach()) == pytest.approx(expected, abs=1e-5)
        (gradient,) = torch.autograd.grad(losses[i], chosen, retain_graph=True)
        slope = -(1 - share) + 2 * center * (w + loser)
        assert float(gradient[i]) == pytest.approx(slope, abs=1e-5)


@pytest.mark.parametrize("center", [None, 0.01])
@pytest.mark.parametrize("has_margin", [True, False])
def test_bradley_terry_is_that_of_trl(center: float | None, has_margin: bool) -> None:
    chosen, rejected = drawn(1, 7), drawn(2, 7)
    margin = drawn(3, 7).abs() if has_margin else None
    inputs: dict[str, Any] = {"attention_mask": torch.ones(14, 3)}
    if margin is not None:
        inputs["margin"] = margin

    class Gives:
        training = True

        def __call__(self, **_: Any) -> Any:
            return SimpleNamespace(logits=torch.cat([chosen, rejected])[:, None])

    class Counted(dict[str, Any]):
        def __missing__(self, key: str) -> Any:
            self[key] = Counted() if key in ("train", "eval") else []
            return self[key]

    same = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer: Any = SimpleNamespace(
        model=Gives(), args=SimpleNamespace(center_rewards_coefficient=center), accelerator=same,
        _total_train_tokens=0, _tp_size=1, _metrics=Counted(),
    )  # fmt: skip
    theirs = RewardTrainer.compute_loss(trainer, trainer.model, inputs)
    ours = bradley_terry_loss(chosen, rejected, margin, center or 0.0).mean()
    assert float(ours) == pytest.approx(float(theirs), abs=1e-10)


@settings(max_examples=30)
@given(seed=st.integers(0, 999), num_levels=st.integers(2, 7))
def test_ratings_are_proportional_odds(seed: int, num_levels: int) -> None:
    """McCullagh 1980: p(level <= k) = 1 / (1 + exp(score - threshold_k))."""
    scores = drawn(seed, 9).requires_grad_()
    thresholds = drawn(seed + 1, num_levels - 1).sort().values
    levels = torch.arange(9) % num_levels
    losses = ordinal_loss(scores, levels, thresholds)

    def share(score: float, level: int) -> float:
        def up_to(k: int) -> float:
            if k < 0 or k >= num_levels - 1:
                return float(k >= 0)
            return 1 / (1 + np.exp(score - float(thresholds[k])))

        return up_to(level) - up_to(level - 1)

    for i in range(9):
        score, level = float(scores[i].detach()), int(levels[i])
        assert float(losses[i].detach()) == pytest.approx(-np.log(share(score, level)), abs=1e-5)
        slope = -(np.log(share(score + 1e-5, level)) - np.log(share(score - 1e-5, level))) / 2e-5
        (gradient,) = torch.autograd.grad(losses[i], scores, retain_graph=True)
        assert float(gradient[i]) == pytest.approx(slope, abs=1e-4)
    found = level_shares(scores.detach(), thresholds)
    expected = [[share(float(s), k) for k in range(num_levels)] for s in scores.detach()]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)


def test_scores_far_from_the_thresholds_stay_finite() -> None:
    scores = torch.tensor([-300.0, 300.0], requires_grad=True)
    losses = ordinal_loss(scores, torch.tensor([2, 0]), torch.tensor([-1.0, 1.0]))
    losses.sum().backward()
    assert losses.detach().tolist() == pytest.approx([301.0, 301.0], rel=1e-5)
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx([-1.0, 1.0])


def test_a_score_of_zero_gives_the_shares_of_the_ratings() -> None:
    levels = torch.tensor([0] * 5 + [1] * 20 + [2] * 75)
    thresholds = scale_thresholds(levels, 3)
    shares = level_shares(torch.zeros(1), thresholds)[0]
    assert shares.tolist() == pytest.approx([0.05, 0.2, 0.75])
    # and so the first loss is the entropy of the shares
    first = ordinal_loss(torch.zeros(100, dtype=torch.float64), levels, thresholds).mean()
    assert float(first) == pytest.approx(-sum(p * np.log(p) for p in (0.05, 0.2, 0.75)))


@settings(max_examples=20)
@given(a=st.floats(-4, 4), b=st.floats(-4, 4), seed=st.integers(0, 99))
def test_how_sure_the_model_is(a: float, b: float, seed: int) -> None:
    better, worse = torch.tensor([a]), torch.tensor([b])
    assert float(preference_share(better, worse)) == pytest.approx(
        1 / (1 + np.exp(float(worse) - float(better))), abs=1e-6
    )
    thresholds = drawn(seed, 4).sort().values
    first, second = (level_shares(x, thresholds)[0] for x in (better, worse))
    above = sum(float(first[i] * second[j]) for i in range(5) for j in range(i))
    below = sum(float(first[j] * second[i]) for i in range(5) for j in range(i))
    found = float(preference_share(better, worse, thresholds))
    assert found == pytest.approx(above / (above + below), abs=1e-9)
    assert found + float(preference_share(worse, better, thresholds)) == pytest.approx(1)
