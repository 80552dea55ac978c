"""Prompts: of a person's files, and of a folder of instructions."""

import json
from pathlib import Path
from typing import Any

import pytest

from cygnet.errors import UserError
from cygnet.files import JsonlWriter, digest_of, fair_draw
from cygnet.stages.reinforcement.prompts import asked_prompts, prompt_of, read_prompts

ASKED, SAID = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_prompts_are_split_by_a_hash_whatever_else_is_in_the_file(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {number}"} for number in range(200)]
    file = write(tmp_path / "prompts.jsonl", *rows, rows[0], {"messages": [ASKED, SAID]})
    train, heldout = read_prompts([file], 0.05)
    assert len(train) + len(heldout) == 201 and 3 <= len(heldout) <= 25
    assert [ASKED] in [row["prompt"] for row in train + heldout]
    fewer = read_prompts([write(file, *rows[:100])], 0.05)[1]
    assert [row for row in fewer if row in heldout] == fewer


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": ', "not JSON"),
        ('["a"]', "list given; an object"),
        ('{"text": "b"}', 'needs "prompt"'),
        ('{"prompt": [1]}', "neither a text nor a list of messages"),
        ('{"prompt": [{"role": "who", "content": "a"}]}', "unknown role 'who'"),
        ('{"prompt": "a \\ud800"}', "half of a character"),
        ('{"prompt": "a", "tools": "none"}', "tools: text that is not JSON"),
    ],
)
def test_a_line_that_is_no_prompt_is_named(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "a"}}\n\n{line}\n')
    with pytest.raises(UserError, match=f"prompts.jsonl:3: .*{said}"):
        read_prompts([file], 0.1)


def test_a_file_that_is_not_there_or_holds_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no.jsonl: cannot be read"):
        read_prompts([tmp_path / "no.jsonl"], 0.1)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match=r"empty\.jsonl: holds no prompt"):
        read_prompts([tmp_path / "empty.jsonl"], 0.1)


def test_what_occurs_twice_is_taken_once_and_rows_for_other_rewards_stay(tmp_path: Path) -> None:
    file = write(
        tmp_path / "prompts.jsonl", {"prompt": "x", "answer": 1}, {"answer": 1, "prompt": [ASKED]},
        {"prompt": "x", "answer": 2},
    )  # fmt: skip
    assert read_prompts([file], 0.0)[0] == [
        {"prompt": "x", "answer": 1}, {"prompt": "x", "answer": 2},
    ]  # fmt: skip
    assert read_prompts([file], 0.0, prompt_alone=True)[0] == [{"prompt": "x", "answer": 1}]


def test_prompts_with_tools_are_left_out_by_choice(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    file = write(tmp_path / "p.jsonl", {"prompt": "a", "tools": json.dumps(tools)}, {"prompt": "b"})
    assert read_prompts([file], 0.0)[0][0]["tools"] == tools
    assert read_prompts([file], 0.0, with_tools=False)[0] == [{"prompt": "b"}]


def test_a_folder_is_asked_up_to_the_last_answers_each_prompt_once(tmp_path: Path) -> None:
    other = {"role": "user", "content": "z"}
    with JsonlWriter(tmp_path / "train.jsonl.zst") as file:
        for asked in (ASKED, ASKED, other):
            file.write({"messages": [asked, SAID], "form": "free"})
    with JsonlWriter(tmp_path / "heldout.jsonl.zst") as file:
        file.write({"messages": [other, SAID]})
    assert asked_prompts(tmp_path) == ([{"form": "free", "prompt": [ASKED]}], [{"prompt": [other]}])


def test_a_question_is_what_comes_before_the_last_answer() -> None:
    said = [ASKED, SAID, ASKED, SAID]
    assert prompt_of({"messages": said}) == {"prompt": said[:3]}
    assert prompt_of({"messages": said[1:2]}) is None
    assert prompt_of({"prompt": "a", "answer": "b"}) == {"prompt": "a", "answer": "b"}


def test_a_draw_is_fair_and_hangs_on_each_value_alone() -> None:
    values = [{"b": number, "a": "\ud800"} for number in range(1000)]
    drawn = fair_draw(values, 100)
    assert drawn == fair_draw(values[::-1], 100) and 400 < sum(v["b"] for v in drawn) / 100 < 600
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1}) != digest_of({"a": 1})
