"""Pairs say what they claim to say, and a person's own are checked line by line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cygnet.corpus import small_talk
from cygnet.errors import UserError
from cygnet.files import JsonlWriter, read_jsonl
from cygnet.generate.generator import Generator
from cygnet.stages.preference.pairs import (
    NoPairsError,
    PairConfig,
    build_pairs,
    read_pairs,
    take_pairs,
)
from cygnet.text.forms import is_poem_of_form, recipe_checks
from cygnet.text.tokenizer import Tokenizer
from tests.models import random_model

POEM = "白日依山尽，黄河入海流。\n欲穷千里目，更上一层楼。"


def recipe(name: str) -> str:
    return (
        f"# {name}\n\n## Ingredients\n- {name}\n- salt\n- water\n\n## Steps\n"
        f"1. Wash the {name}.\n2. Boil the water with salt.\n3. Add the {name} and serve."
    )


def row(kind: str, question: str, answer: str, **more: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "kind": kind, "subject": question, **more}


@pytest.fixture
def instructions(tmp_path: Path) -> Path:
    folder = tmp_path / "instructions"
    folder.mkdir()
    rows = [row("poem", f"写一首五言绝句 {i}", POEM, form="五言绝句") for i in range(4)]
    rows += [row("poem", "写一首诗。", POEM)]
    rows += [row("recipe", f"How do I make {x}?", recipe(x)) for x in ("soup", "rice", "peas")]
    rows += [row("continuation", f"Continue this text: {i}", "and so it went on.") for i in "ab"]
    for name in ("train.jsonl.zst", "heldout.jsonl.zst"):
        with JsonlWriter(folder / name) as writer:
            for item in rows:
                writer.write(item)
    return folder


def made(
    instructions: Path, tokenizer: Tokenizer, out: Path, max_seq_len: int = 1024
) -> list[dict[str, Any]]:
    config = PairConfig(max_new_tokens=12, samples_per_prompt=2, heldout_share=1.0)
    build_pairs(instructions, Generator(random_model(), tokenizer), out, config, max_seq_len)
    return list(read_jsonl(out / "train.jsonl.zst"))


def test_each_pair_is_what_it_says(
    instructions: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    pairs = made(instructions, tokenizer, tmp_path / "pairs")
    assert {pair["kind"] for pair in pairs} == {"poem", "recipe", "continuation"}
    for pair in pairs:
        assert pair["chosen"] != pair["rejected"]
        if pair["kind"] == "poem":
            assert is_poem_of_form(pair["chosen"], pair["form"])
            assert not is_poem_of_form(pair["rejected"], pair["form"])
        if "shuffled" in pair["why"]:
            split = (pair[name].partition("## Steps")[2] for name in ("chosen", "rejected"))
            real, spoilt = (sorted(line[3:] for line in part.splitlines()) for part in split)
            assert real == spoilt
        if "part missing" in pair["why"]:
            checks = recipe_checks(pair["rejected"])
            assert not (checks.has_ingredients and checks.has_steps)


def test_spoilt_poems_break_the_form_in_each_way_and_cost_no_answer(
    instructions: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row("poem", f"写一首五言绝句 {i}", POEM, form="五言绝句") for i in range(40)]
    with JsonlWriter(instructions / "train.jsonl.zst") as writer:
        for item in rows:
            writer.write(item)
    config = PairConfig(
        num_poem_prompts=0, num_recipe_pairs=0, num_own_prompts=0, num_spoilt_poems=30
    )
    silent = Generator(random_model(), tokenizer)
    monkeypatch.setattr(silent, "generate", None)
    build_pairs(instructions, silent, tmp_path / "pairs", config, 1024)
    pairs = list(read_jsonl(tmp_path / "pairs" / "train.jsonl.zst"))
    assert len(pairs) == 30 and all(pair["chosen"] == POEM for pair in pairs)
    assert not any(is_poem_of_form(pair["rejected"], "五言绝句") for pair in pairs)
    couplet = len(POEM) // 2 + 1  # with its line end
    assert {len(pair["rejected"]) - len(POEM) for pair in pairs} == {-1, 1, -couplet, couplet}


def test_the_same_model_gives_the_same_pairs(
    instructions: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    made(instructions, tokenizer, tmp_path / "a")
    made(instructions, tokenizer, tmp_path / "b")
    for name in ("train.jsonl.zst", "heldout.jsonl.zst", "manifest.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_where_no_pair_can_fit_the_model_is_not_asked(
    instructions: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: Any, **__: Any) -> Any:
        raise AssertionError("hours of work for nothing")

    with monkeypatch.context() as patch:
        patch.setattr(Generator, "generate", asked)
        with pytest.raises(NoPairsError, match="no preference pair fits max_seq_len 30") as caught:
            made(instructions, tokenizer, tmp_path / "pairs", max_seq_len=30)
    (enough,) = re.findall(r"--max_seq_len (\d+)", str(caught.value))
    with pytest.raises(NoPairsError):
        made(instructions, tokenizer, tmp_path / "pairs", max_seq_len=int(enough) - 13)
    assert made(instructions, tokenizer, tmp_path / "pairs", max_seq_len=int(enough) - 12)


def test_small_talk_is_no_one_s_own_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "instructions"
    folder.mkdir()
    rows = [row(small_talk.KIND, f"Hi {i}!", "Hello.") for i in range(5)]
    rows += [row("article", "What is a swan?", "A bird.", source="mine.jsonl:7")]
    for name in ("train.jsonl.zst", "heldout.jsonl.zst"):
        with JsonlWriter(folder / name) as writer:
            for item in rows:
                writer.write(item)
    pairs = made(folder, tokenizer, tmp_path / "pairs")
    assert {(pair["kind"], pair["source"]) for pair in pairs} == {("article", "mine.jsonl:7")}


GOOD = {"prompt": "soup?", "chosen": "yes", "rejected": "no"}


def write(path: Path, rows: list[Any]) -> str:
    lines = [item if isinstance(item, str) else json.dumps(item) for item in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({**GOOD, "chosen": ""}, "p.jsonl:2: `chosen` is missing or empty"),
        ({"prompt": "x", "chosen": "y"}, "p.jsonl:2: `rejected` is missing"),
        ("{broken", "p.jsonl:2: not JSON"),
        ([], "p.jsonl:2: `prompt`"),
        ({**GOOD, "prompt": {"role": "user"}}, "p.jsonl:2: `chosen`"),
        ({**GOOD, "prompt": [{"role": "robot", "content": "x"}]}, "p.jsonl:2: `chosen`: .*role"),
    ],
)
def test_a_damaged_pair_is_named_and_nothing_is_replaced(
    tmp_path: Path, wrong: Any, message: str
) -> None:
    kept = take_pairs([write(tmp_path / "good.jsonl", [GOOD, {**GOOD, "prompt": "rice?"}])],
                      tmp_path / "out")  # fmt: skip
    before = (kept / "train.jsonl.zst").read_bytes()
    with pytest.raises(UserError, match=message):
        take_pairs([write(tmp_path / "p.jsonl", [GOOD, wrong])], tmp_path / "out")
    assert (kept / "train.jsonl.zst").read_bytes() == before


def test_heldout_pairs_share_no_prompt_with_training(tmp_path: Path) -> None:
    rows = [{**GOOD, "prompt": f"question {i // 2}", "chosen": f"{i}"} for i in range(80)]
    out = take_pairs([write(tmp_path / "p.jsonl", rows)], tmp_path / "out")
    train, heldout = (
        [str(pair["prompt"]) for pair in read_pairs(out / f"{name}.jsonl.zst")]
        for name in ("train", "heldout")
    )
    assert len(train) + len(heldout) == 80 and heldout
    assert not set(train) & set(heldout)
    kept = [*read_pairs(out / "train.jsonl.zst"), *read_pairs(out / "heldout.jsonl.zst")]
    sources = {pair["source"] for pair in kept}
    assert sources == {f"p.jsonl:{line}" for line in range(1, 81)}
