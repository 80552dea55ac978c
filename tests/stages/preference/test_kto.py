"""KTO's baseline is that of the whole batch, from answers to other prompts than their own."""

import dataclasses
import math
import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cygnet.config import TrainConfig
from cygnet.model.transformer import Transformer
from cygnet.stages.preference.answer_rows import answer_log_probs, encode_answer, with_reference
from cygnet.stages.preference.dpo import DpoConfig, KtoStage
from cygnet.stages.preference.kto import LabelledRows, as_answers, labelled_batch, mismatches
from cygnet.text.tokenizer import Tokenizer
from cygnet.train.stage import OnlineStage, WatchedStage
from cygnet.train.window import Window
from tests.models import random_model

SEQ_LEN = 256
WORDS = "soup water salt 白日 黄河 make add boil".split()
SETTINGS = DpoConfig(loss="kto", beta=0.4, desirable_weight=1.3, undesirable_weight=0.7)
Row = dict[str, Any]


@pytest.fixture(scope="module")
def answers() -> list[Row]:
    chooser = random.Random(2)

    def say(most: int) -> str:
        return " ".join(chooser.choices(WORDS, k=chooser.randint(1, most)))

    prompts = [[{"role": "user", "content": f"{say(5)} {i}"}] for i in range(8)]
    return [
        {"prompt": prompts[i % 8], "answer": say(8), "label": chooser.random() < 0.4}
        for i in range(24)
    ]


@pytest.fixture(scope="module")
def rows(answers: list[Row], tokenizer: Tokenizer) -> LabelledRows:
    return LabelledRows(answers, tokenizer, SEQ_LEN)


@pytest.fixture(scope="module")
def stage(rows: LabelledRows) -> KtoStage:
    reference = random_model(seed=1)
    both = []
    with torch.no_grad():
        for packed in (rows.rows, rows.mismatched):
            found, _ = answer_log_probs(reference, packed)
            # The mismatched ones lowered, so that the baseline is well above zero.
            both.append(with_reference(packed, found - 4 * (packed is rows.mismatched)))
    train = (labelled_batch(both[0], rows.desirable), both[1])
    config = TrainConfig(batch_tokens=100 * SEQ_LEN, max_seq_len=SEQ_LEN)
    return KtoStage(train, train, config, SETTINGS)


def log_ratio(
    model: Transformer, reference: Transformer, tokenizer: Tokenizer, prompt: Any, answer: str
) -> tuple[torch.Tensor, int]:
    """Return log(model / reference) of an answer alone in its row, and its number of tokens."""
    ids, is_label = encode_answer(tokenizer, prompt, answer)
    learnt = torch.tensor(is_label[1:])
    found = []
    for each in (model, reference):
        logits = each.logits(each(torch.tensor([ids])))[0].log_softmax(-1)
        found.append(logits[:-1].gather(1, torch.tensor(ids[1:])[:, None])[learnt].sum())
    return found[0] - found[1].detach(), int(learnt.sum())


@given(prompts=st.lists(st.integers(0, 4), max_size=9))
def test_no_answer_is_to_its_own_prompt_and_none_comes_twice(prompts: list[int]) -> None:
    found = mismatches(list(range(len(prompts))), prompts)
    assert all(prompts[i] != prompts[j] for i, j in found)
    assert len({j for _, j in found}) == len({i for i, _ in found}) == len(found)
    assert bool(found) == (len(set(prompts)) > 1)
    if len(set(prompts)) == len(prompts) > 1:
        assert len(found) == len(prompts)


def test_mismatched_rows_hold_the_answers_of_their_row(
    rows: LabelledRows, answers: list[Row], tokenizer: Tokenizer
) -> None:
    def labelled(batch: Any, row: int) -> set[str]:
        ids = batch.labels[row][batch.labels[row] >= 0].tolist()
        return set(tokenizer.decode(ids).split("<|im_end|>")) - {""}

    for row, numbers in enumerate(rows.numbers):
        own = {answers[i]["answer"] for i in numbers}
        assert labelled(rows.rows, row) == own
        assert labelled(rows.mismatched, row) <= own
    assert int((rows.mismatched.labels >= 0).sum()) > int((rows.rows.labels >= 0).sum()) / 2


def test_the_loss_is_that_of_each_answer_alone_against_the_mismatched_mean(
    stage: KtoStage, rows: LabelledRows, answers: list[Row], tokenizer: Tokenizer
) -> None:
    model, reference = random_model(seed=3), random_model(seed=1)
    collected = stage.collect(0, lambda: model)
    total, metrics = stage.loss(model, stage.batch(0))
    total.backward()
    gradient = model.output_weight.grad.clone()
    model.zero_grad()
    apart = []
    with torch.no_grad():
        for row in rows.numbers:
            for i, j in mismatches(row, [answers[n]["prompt"] for n in row]):
                ratio, _ = log_ratio(
                    model, reference, tokenizer, answers[i]["prompt"], answers[j]["answer"]
                )
                apart.append(float(ratio) + 4)
    z = max(sum(apart) / len(apart), 0)
    assert z > 1
    assert collected == {"kl_baseline": pytest.approx(z, rel=1e-4)}
    expected, right, rewards = 0.0, 0, {True: [], False: []}
    for row in answers:
        ratio, _ = log_ratio(model, reference, tokenizer, row["prompt"], row["answer"])
        sign, weight = (1, 1.3) if row["label"] else (-1, 0.7)
        loss = weight * (1 - torch.sigmoid(0.4 * sign * (ratio - z)))
        loss.backward()
        expected += float(loss.detach())
        right += (float(ratio.detach()) > z) == row["label"]
        rewards[row["label"]].append(0.4 * float(ratio.detach()))
    assert float(total.detach()) == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(gradient, model.output_weight.grad, rtol=1e-3, atol=1e-4)
    means = {name: float(value) / len(answers) for name, value in metrics.items()}
    assert means["accuracy"] == pytest.approx(right / len(answers))
    mean = {label: sum(found) / len(found) for label, found in rewards.items()}
    assert means["chosen_reward"] == pytest.approx(mean[True], rel=1e-3)
    assert means["rejected_reward"] == pytest.approx(mean[False], rel=1e-3)
    assert means["margin"] == pytest.approx(mean[True] - mean[False], rel=1e-3)


def test_parts_of_a_batch_sum_to_the_batch(stage: KtoStage) -> None:
    model = random_model(seed=3)
    stage.collect(0, lambda: model)
    batch = stage.batch(0)
    whole, metrics = stage.loss(model, batch)
    size = len(batch.tokens)
    filled = batch.padded(size + 1)  # a process may have no row of its own
    parts = [stage.loss(model, filled.rows(i, i + 1)) for i in range(size + 1)]
    torch.testing.assert_close(sum(part[0] for part in parts), whole, rtol=1e-4, atol=1e-4)
    for name, value in metrics.items():
        found = sum(part[1][name] for part in parts)
        torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-3)


def test_a_batch_without_wanted_answers_logs_no_numbers_for_them(stage: KtoStage) -> None:
    rows = dataclasses.replace(
        stage.train, desirable=stage.train.desirable * 0, share=stage.train.share * 0
    )
    loss, metrics = stage.loss(random_model(), rows)
    assert math.isfinite(float(loss))
    assert math.isfinite(float(metrics["rejected_reward"]))
    window = Window()
    window.add(rows, {name: float(value) for name, value in metrics.items()})
    assert "chosen_reward" not in window.means()
    _, metrics = stage.loss(random_model(), stage.train)
    window.add(rows, {name: float(value) for name, value in metrics.items()})
    assert window.means()["chosen_reward"] == float(metrics["chosen_reward"])
    assert all(math.isfinite(value) for value in window.means().values())


def test_heldout_answers_have_a_baseline_of_their_own(stage: KtoStage) -> None:
    model = random_model(seed=3)
    stage.baseline = 99.0
    with torch.no_grad():
        found = stage.heldout(model)
    stage.collect(0, lambda: model)  # the batch is the whole set, as is what is held out
    loss, _ = stage.loss(model, stage.batch(0))
    weight = stage.weight(stage.batch(0))
    assert found["heldout_loss"] == pytest.approx(float(loss.detach()) / weight, rel=1e-4)


def test_the_engine_knows_it_for_an_online_and_a_watched_stage(stage: KtoStage) -> None:
    assert isinstance(stage, OnlineStage) and isinstance(stage, WatchedStage)


def test_a_pair_is_two_answers_to_one_prompt() -> None:
    pair = {"prompt": "p", "chosen": "a", "rejected": "b", "source": "f:1"}
    own = {"prompt": "q", "answer": "c", "label": False}
    found = as_answers([pair, own])
    assert [(row["answer"], row["label"]) for row in found] == [
        ("a", True), ("b", False), ("c", False),
    ]  # fmt: skip
    assert [row.get("source") for row in found] == ["f:1", "f:1", None]
