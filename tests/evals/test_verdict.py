from __future__ import annotations

import random

from cygnet.evals.bootstrap import Item, estimate
from cygnet.evals.result import StageResult
from cygnet.evals.verdict import judge

XZ = {"notes": {"xz": 3.0, "zstd": 3.2, "num_bytes": 10000.0}}


def result(measured_on: str = "same", **metrics: list[Item]) -> StageResult:
    found = StageResult(yardsticks=XZ)
    for name, items in metrics.items():
        name = name.replace("__", "/")
        interval = estimate(items)
        assert interval
        found.metrics[name] = interval
        found.items[name] = {"of": measured_on, "shares": items}
    return found


def passed(share: float, count: int = 48) -> list[Item]:
    return [(float(i < share * count), 1.0) for i in range(count)]


def likelihood(mean: float, seed: int = 0) -> list[Item]:
    generator = random.Random(seed)
    return [(50 * (mean + generator.gauss(0, 1)), 50.0) for _ in range(100)]


def test_pretraining_is_held_against_xz():
    below = judge("pretrain", result(bits_per_byte__notes=[(1500, 1000), (1700, 1000)]), None)
    assert below.outcome == "improved" and "0.53 of the 3.00 that xz -9 needs" in str(below)
    above = judge("pretrain", result(bits_per_byte__notes=[(3500, 1000), (3700, 1000)]), None)
    assert above.outcome == "not" and "did not improve" in above.headline
    astride = judge("pretrain", result(bits_per_byte__notes=[(1500, 1000), (4000, 1000)]), None)
    assert astride.outcome == "not"


def test_planted_regression_is_named():
    before = result(answer_log_likelihood=likelihood(-2), poem_form_accuracy=passed(0.8))
    after = result(answer_log_likelihood=likelihood(-2.2), poem_form_accuracy=passed(0.3))
    verdict = judge("sft", after, ("pretrain", before))
    assert verdict.outcome == "not"
    assert verdict.headline == "did not improve what it is for"
    assert all("did not improve, it became worse" in f.text for f in verdict.findings)


def test_small_gain_counts_where_the_same_items_show_it_and_not_elsewhere():
    before = result(answer_log_likelihood=likelihood(-2))
    same = result(answer_log_likelihood=likelihood(-1.9))
    assert judge("sft", same, ("pretrain", before)).findings[0].outcome == "improved"
    other = result("other items", answer_log_likelihood=likelihood(-1.9))
    unclear = judge("sft", other, ("pretrain", before)).findings[0]
    assert unclear.outcome == "not" and "within chance" in unclear.text


def test_some_goals_reached():
    before = result(preference_accuracy=passed(0.5), poem_form_accuracy=passed(0.9))
    after = result(preference_accuracy=passed(0.9), poem_form_accuracy=passed(0.9))
    verdict = judge("dpo", after, ("sft", before))
    assert verdict.outcome == "partly"
    assert verdict.headline == "improved 1 of the 2 things it is for"
    missing = [f for f in verdict.findings if f.outcome == "unknown"]
    assert len(missing) == 1 and "no held-out pairs" in missing[0].text


def test_at_the_top_there_is_no_room():
    full = result(poem_form_accuracy=passed(1.0))
    assert "hardly room left" in str(judge("dpo", full, ("sft", full)).findings)


def test_what_a_stage_cost_is_told():
    before = result(bits_per_byte=likelihood(2), answer_log_likelihood=likelihood(-3))
    after = result(bits_per_byte=likelihood(2.5), answer_log_likelihood=likelihood(-2))
    verdict = judge("sft", after, ("pretrain", before))
    assert verdict.outcome == "improved"
    assert len(verdict.prices) == 1 and verdict.prices[0].startswith("bits per byte: from 1.9")


def test_nothing_to_judge_by():
    assert judge("sft", result(), None).outcome == "unknown"
    assert judge("dpo", None, None).headline == "was not evaluated"
    assert judge("a stage of one's own", result(), None).outcome == "unknown"
