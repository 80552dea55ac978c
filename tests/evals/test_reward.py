"""How a reward model is judged: figures worked out by hand, and lengths told in plain words."""

import random
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from cygnet.errors import UserError
from cygnet.evals.report import write_report
from cygnet.evals.reward import RESULT, RewardResult, judge_reward, summary


def test_the_figures_of_four_pairs() -> None:
    scores = [2.0, 1.0, 0.0, 1.0, 3.0, 3.0, 5.0, 1.0]
    pairs = [(0, 1), (2, 3), (4, 5), (6, 7)]
    shares = [0.8, 0.3, 0.5, 0.9]
    found = judge_reward(scores, [3, 1, 2, 2, 1, 3, 4, 4], pairs, shares, [(0, 1)], list("aabb"))
    assert found.accuracy.value == (1 + 0 + 0.5 + 1) / 4
    assert found.by_kind["a"].value == 0.5
    assert found.by_kind["b"].value == 0.75
    assert found.accuracy_alike is not None
    assert found.accuracy_alike.value == 1
    assert found.brier.value == pytest.approx((0.04 + 0.49 + 0.25 + 0.01) / 4)
    assert found.log_loss.value == pytest.approx(-np.log([0.8, 0.3, 0.5, 0.9]).mean())
    # sure 0.5 (a tie, half right), 0.7 (wrong), 0.8 (right), 0.9 (right)
    assert [(b.sure, b.right, b.count) for b in found.bins] == [
        (pytest.approx(0.5), 0.5, 1), (pytest.approx(0.7), 0, 1),
        (pytest.approx(0.8), 1, 1), (pytest.approx(0.9), 1, 1),
    ]  # fmt: skip
    assert found.calibration_error == pytest.approx((0 + 0.7 + 0.2 + 0.1) / 4)
    # of unequal length are the first and the third: the longer wins, and a tie
    assert found.longer_preferred == 0.5
    assert found.length_correlation == pytest.approx(
        spearmanr(scores, [3, 1, 2, 2, 1, 3, 4, 4]).statistic
    )


def judged(scores: list[float], tokens: list[int]) -> RewardResult:
    pairs = [(n, n + 1) for n in range(0, len(scores), 2)]
    return judge_reward(scores, tokens, pairs, [0.7] * len(pairs))


def test_a_model_that_counts_tokens_is_named() -> None:
    """The better side is longer in 6 of 10 pairs; the model goes by length in all."""
    chooser = random.Random(0)
    tokens = [
        chooser.randint(10, 99) + 200 * ((n // 2 % 10 < 6) == (n % 2 == 0)) for n in range(80)
    ]
    counting = judged([float(n) for n in tokens], tokens)
    assert counting.length_correlation == pytest.approx(1)
    assert "only counts tokens" in counting.length_verdict
    assert "to ramble" in counting.length_verdict
    assert "100 % of the pairs the longer" in counting.length_verdict
    assert "to say little" in judged([-float(n) for n in tokens], tokens).length_verdict
    knowing = judged([float(n % 2 == 0) for n in range(80)], tokens)
    assert knowing.accuracy.value == 1
    assert "more than a count of tokens" in knowing.length_verdict


def test_pairs_that_length_tells_apart_show_nothing() -> None:
    tokens = [50 + n % 2 * 30 for n in range(40)]
    found = judged([-float(n) for n in tokens], tokens)
    assert found.accuracy.value == 1
    assert "can be told apart by counting tokens" in found.length_verdict


def test_a_model_no_better_than_length_is_told() -> None:
    """Four of five choices by length; the fifth is at random."""
    chooser = random.Random(1)
    tokens, scores = [], []
    for n in range(60):
        better, worse = (90, 40) if n % 10 < 7 else (40, 90)
        tokens += [better, worse]
        noise = 100 * chooser.randint(-1, 1) * (n % 5 == 0)
        scores += [float(better) + noise, float(worse)]
    assert "not clearly better than counting" in judged(scores, tokens).length_verdict


def test_all_right_is_not_certainty_and_no_pair_is_refused() -> None:
    found = judged([1.0, 0.0] * 10, [5] * 20)
    assert (found.accuracy.value, found.accuracy.low) == (1, pytest.approx(0.7))
    with pytest.raises(UserError, match="no held-out pair"):
        judge_reward([], [], [], [])


def test_the_result_is_kept_and_shown_in_the_report(tmp_path: Path) -> None:
    chooser = random.Random(0)
    scores = [chooser.gauss(0, 1) + (n % 2 == 0) for n in range(400)]
    pairs = [(n, n + 1) for n in range(0, 400, 2)]
    shares = [1 / (1 + np.exp(scores[b] - scores[a])) for a, b in pairs]
    found = judge_reward(scores, [10 + n % 7 for n in range(400)], pairs, shares, pairs[:50])
    found.save(tmp_path / RESULT)
    assert RewardResult.load(tmp_path / RESULT) == found
    found.as_stage().save(tmp_path / "eval.json")
    (tmp_path / "config.yaml").write_text("stage: reward\n")
    write_report(tmp_path, ("reward",))
    page, text = ((tmp_path / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "how sure it is, and how often right" in page
    assert "plots/calibration.png" in text
    assert (tmp_path / "plots/calibration.png").stat().st_size > 1000
    for shown in (page, text):
        assert "better side scored higher" in shown
        assert "above chance" in shown
    assert any("calibration: off by" in line for line in summary(found))
    (tmp_path / RESULT).write_text("{}")
    with pytest.raises(UserError, match=r"reward\.json: not a result"):
        RewardResult.load(tmp_path / RESULT)
