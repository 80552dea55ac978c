"""What leaves its healthy range is told once, with the step, when its patience is over."""

import json
import math

import pytest

from cygnet.stages.preference.config import DpoConfig
from cygnet.stages.preference.rules import PATIENCE, preference_rules
from cygnet.stages.watch import Metrics, Rule, Watch

HEALTHY = {
    "preference_loss": 0.5, "accuracy": 0.7, "margin": 0.8, "chosen_log_prob": -2.0,
    "rejected_log_prob": -2.5, "chosen_length": 40.0, "rejected_length": 45.0, "kl": 0.02,
}  # fmt: skip


def test_a_value_is_told_once_and_after_its_patience(capsys: pytest.CaptureFixture[str]) -> None:
    rule = Rule(
        metric="entropy", low=1, patience=20, sentence="{value} from {first}, {steps} steps"
    )
    watch = Watch("grpo", [rule])
    for step in range(0, 100, 10):
        watch(step, {"entropy": 2.0 if step in (0, 10, 30) else 0.5})
    assert watch.told == [(60, "0.5 from 2.0, 20 steps")]
    assert capsys.readouterr().err == "grpo: warning at step 60: 0.5 from 2.0, 20 steps\n"


def test_lines_without_the_value_are_passed_over() -> None:
    rules = [
        Rule(metric="kl", high=1, sentence="a"),
        Rule(metric=lambda now, _: now["a"] / now["b"], high=1, sentence="b"),
    ]
    watch = Watch("dpo", rules)
    for line in ({}, {"kl": math.nan}, {"heldout_kl": 9.0}, {"a": 5.0, "b": 0.0}, {"a": 5.0}):
        watch(1, line)
    assert watch.told == []
    watch(2, {"kl": 2.0, "a": 3.0, "b": 1.0})
    assert watch.told == [(2, "a"), (2, "b")]


def test_a_range_may_be_of_the_change_since_the_first_line() -> None:
    watch = Watch("dpo", [Rule(metric="x", low=-1, range_of="change", sentence="{first} {value}")])
    watch(1, {"x": -5.0})
    watch(2, {"x": -5.9})
    assert watch.told == []
    watch(3, {"x": -6.5})
    assert watch.told == [(3, "-5.0 -6.5")]


def test_a_range_may_be_of_the_share_of_the_first_line_and_keep_a_checkpoint() -> None:
    rule = Rule(metric="x", low=0.1, range_of="share", keeps_checkpoint=True, sentence="{value}")
    watch = Watch("grpo", [rule, Rule(metric="y", high=1, sentence="high")])
    assert not watch(1, {"x": 2.0, "y": 0.0})
    assert not watch(2, {"x": 0.21, "y": 2.0})
    assert watch(3, {"x": 0.19})
    assert not watch(4, {"x": 0.19})
    assert watch.told == [(2, "high"), (3, "0.19")]


def told(change: Metrics, config: DpoConfig | None = None, equal_share: float = 0.0) -> list[str]:
    """What is said of a run that was healthy in its first step, and then is not."""
    watch = Watch("dpo", preference_rules((config or DpoConfig()).resolved(), equal_share))
    watch(0, HEALTHY)
    for step in range(1, PATIENCE + 2):
        watch(step, {**HEALTHY, **change})
    assert all(step == PATIENCE + 1 for step, _ in watch.told)
    return [sentence for _, sentence in watch.told]


ILL = {
    "the model has hardly moved from the reference":
        {"preference_loss": 0.6931, "accuracy": 0.5, "margin": 0.0, "kl": 0.0},
    "which answer is chosen looks like chance":
        {"preference_loss": 0.6929, "accuracy": 0.52, "margin": 0.01},
    "the loss has stayed at 0.693 for 50 steps: the pairs carry no signal, because their "
    "log-probabilities hardly differ": {"preference_loss": 0.6933, "accuracy": 0.7, "margin": 2e-3},
    "look whether chosen and rejected are swapped": {"accuracy": 0.2},
    "chosen answers are becoming unlikely (-2.00 to -3.20 nats": {"chosen_log_prob": -3.2},
    "rejected answers have become all but impossible": {"rejected_log_prob": -13.0},
    "rejected answers are 3.0 times longer (40 tokens chosen, 120 rejected): the model may learn "
    "length": {"rejected_length": 120.0},
    "chosen answers are 2.5 times longer": {"rejected_length": 16.0},
    "0.70 nats a token away from the reference": {"kl": 0.7},
}  # fmt: skip


@pytest.mark.parametrize("said", ILL)
def test_each_ill_has_its_one_sentence(said: str) -> None:
    (sentence,) = told(ILL[said])
    assert said in sentence


@pytest.mark.parametrize("loss", ["dpo", "cdpo", "ipo", "simpo", "orpo", "kto"])
def test_a_healthy_run_hears_nothing(loss: str) -> None:
    assert told({}, DpoConfig(loss=loss)) == []


def test_pairs_left_out_for_equal_sides_are_named_as_a_cause() -> None:
    change = {"preference_loss": 0.6931, "accuracy": 0.5, "margin": 0.0}
    (sentence,) = told(change, equal_share=0.31)
    assert "(chosen and rejected were equal in 31%, which are left out)" in sentence


def test_a_loss_that_does_not_start_at_log_2_is_judged_by_its_accuracy() -> None:
    (sentence,) = told({"preference_loss": 0.6931, "accuracy": 0.5}, DpoConfig(loss="simpo"))
    assert sentence.startswith("the accuracy has stayed at 50% for 50 steps: the pairs carry no")


def test_kto_is_judged_by_its_margin_for_its_accuracy_hangs_on_the_labels() -> None:
    kto = DpoConfig(loss="kto")
    assert told({"accuracy": 0.2}, kto) == []
    (sentence,) = told({"margin": 0.001}, kto)
    assert sentence.startswith("the margin has stayed at 0.001 for 50 steps: the pairs carry no")
    (sentence,) = told({"margin": -0.5}, kto)
    assert sentence.startswith("the model prefers the rejected answer (margin -0.50)")


def test_what_was_seen_and_told_outlives_a_stop() -> None:
    rules = [
        Rule(metric="x", low=-1, range_of="change", sentence="fell to {value}"),
        Rule(metric="y", high=1, sentence="high"),
    ]
    before, after = Watch("dpo", rules), Watch("dpo", rules)
    before(1, {"x": -5.0, "y": 2.0})
    after.load_state(json.loads(json.dumps(before.state())))
    after(2, {"x": -6.5, "y": 2.0})
    assert after.told == [(2, "fell to -6.5")]


def test_of_other_rules_nothing_is_known_and_of_no_figure_that_none_names() -> None:
    watch = Watch("dpo", [Rule(metric="x", low=-1, range_of="change", sentence="fell")])
    for strange in ([], {}, {"first": {"x": 9.0}, "rules": [{}, {}]}):
        watch.load_state(strange)
        assert watch.state() == {"first": {}, "rules": [{"outside_since": None, "is_told": False}]}
    watch(1, {"x": 1.0, "elapsed_s": 3.0})
    assert watch.first == {"x": 1.0}
