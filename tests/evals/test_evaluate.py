from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cygnet.errors import UserError
from cygnet.evals.evaluate import distinct_shares, evaluate
from cygnet.evals.result import EvalConfig, StageResult
from cygnet.text.forms import text_units

CONFIG = EvalConfig(
    num_poems=3, num_recipes=2, num_others=1, max_new_tokens=8, bootstrap_resamples=50
)
DOCUMENTS = [
    {"text": f"A comet is a small body of ice, number {i}.", "domain": "articles"} for i in range(6)
] + [{"text": f"床前明月光，疑是地上霜。{i}", "domain": "poems"} for i in range(6)]


def instruction(kind: str, question: str, answer: str, form: str | None = None) -> dict:
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    return {"messages": messages, "kind": kind, "subject": question, "form": form}


INSTRUCTIONS = [
    *(instruction("poem", f"写一首五言绝句 {i}", "床前明月光", "五言绝句") for i in range(5)),
    instruction("poem", "写一首词", "明月几时有", "水调歌头"),
    *(instruction("recipe", f"How do I make dish {i}?", "# Dish") for i in range(4)),
    *(instruction("smalltalk", f"Hello {i}", "Hello!") for i in range(3)),
]
PAIRS = [
    {
        "prompt": [{"role": "user", "content": f"写一首诗 {i}"}],
        "chosen": "床前明月光，疑是地上霜。",
        "rejected": "床前",
        "kind": "poem",
    }
    for i in range(4)
]


@pytest.fixture(scope="module")
def result(module_model, tokenizer) -> StageResult:
    return evaluate(module_model, tokenizer, DOCUMENTS, INSTRUCTIONS, PAIRS, CONFIG)


def test_all_is_measured_on_as_many_as_asked_for(result):
    counts = {name: found.count for name, found in result.metrics.items()}
    assert counts == {
        "bits_per_byte/articles": 6,
        "bits_per_byte/poems": 6,
        "bits_per_byte": 12,
        "answer_log_likelihood": 13,
        "preference_accuracy": 4,
        "preference_margin": 4,
        "poem_form_accuracy": 3,
        "recipe_completeness": 2,
        "repetition_rate": 6,
        "distinct_2": 6,
    }
    kinds = [sample.kind for sample in result.samples]
    assert kinds == ["poem"] * 3 + ["recipe"] * 2 + ["smalltalk"] + ["opening"] * 2
    assert all((s.passed is None) == (s.kind not in ("poem", "recipe")) for s in result.samples)
    assert all(math.isfinite(found.value) for found in result.metrics.values())


def test_a_prompt_longer_than_the_context_is_left_out(module_model, tokenizer):
    long = instruction("chat", "word " * 4000, "Yes.")
    found = evaluate(module_model, tokenizer, [], [long, *INSTRUCTIONS], [], CONFIG)
    assert found.samples and all(len(sample.prompt) < 4000 for sample in found.samples)


def test_whole_bits_per_byte_is_weighted_by_bytes(result):
    shares = [
        share
        for name in ("bits_per_byte/articles", "bits_per_byte/poems")
        for share in result.items[name]["shares"]
    ]
    expected = sum(bits for bits, _ in shares) / sum(size for _, size in shares)
    assert result.metrics["bits_per_byte"].value == pytest.approx(expected, abs=1e-4)
    assert set(result.yardsticks) == {"articles", "poems", "all"}


def test_result_comes_back_from_its_file(result, tmp_path):
    result.save(tmp_path / "eval.json")
    again = StageResult.load(tmp_path / "eval.json")
    assert again.metrics == result.metrics and again.samples == result.samples
    assert again.yardsticks == result.yardsticks
    assert again.items.keys() == result.items.keys()


def test_order_of_the_heldout_files_does_not_matter(result, module_model, tokenizer):
    shuffled = [
        random.Random(3).sample(rows, len(rows)) for rows in (DOCUMENTS, INSTRUCTIONS, PAIRS)
    ]
    again = evaluate(module_model, tokenizer, *shuffled, CONFIG)
    assert again.as_dict() == result.as_dict()


def test_what_is_not_there_is_not_measured(module_model, tokenizer):
    nothing = evaluate(module_model, tokenizer, [], [], [], CONFIG)
    assert nothing.metrics == {} and nothing.samples == []
    text_alone = evaluate(module_model, tokenizer, DOCUMENTS[:2], [], [], CONFIG)
    assert set(text_alone.metrics) == {"bits_per_byte", "bits_per_byte/articles"}
    assert [sample.kind for sample in text_alone.samples] == ["opening"]
    talk = [{"messages": INSTRUCTIONS[-1]["messages"]}]
    conversations = evaluate(module_model, tokenizer, [], talk, [], CONFIG)
    assert set(conversations.metrics) == {"answer_log_likelihood", "repetition_rate", "distinct_2"}
    assert [sample.kind for sample in conversations.samples] == ["other"]


def distinct_2(texts):
    pairs = [pair for text in texts for pair in pairwise(text_units(text))]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


@given(st.lists(st.text("ab c。秋水1\n", max_size=20), max_size=6))
def test_shares_add_up_to_distinct_2(texts):
    shares = distinct_shares(texts)
    total = sum(bottom for _, bottom in shares)
    found = sum(top for top, _ in shares) / total if total else 0.0
    assert found == pytest.approx(distinct_2(texts))


def test_settings_out_of_range_are_named():
    with pytest.raises(UserError, match=r"eval\.num_poems is -1"):
        EvalConfig(num_poems=-1)
    with pytest.raises(UserError, match=r"eval\.context is 0"):
        EvalConfig(context=0)
