"""Task sets: right answers, nothing held out that is learnt, the same files twice."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from cygnet.errors import UserError
from cygnet.files import read_jsonl
from cygnet.messages import validate
from cygnet.stages.reinforcement.environments.environment import Toolbox
from cygnet.stages.reinforcement.rewards.judge import Judge
from cygnet.stages.reinforcement.tasks import REWARD_OF, Task, TaskConfig, build_tasks

PARTS = ("sft", "prompts", "heldout")
TASKS = get_args(Task)


def made(folder: Path, task: Task, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    config = TaskConfig(
        task=task, num_sft=150, num_prompts=400, num_heldout=60, two_calls=0.3, seed=seed
    )
    build_tasks(folder / task, config)
    return {part: list(read_jsonl(folder / task / f"{part}.jsonl")) for part in PARTS}


@pytest.mark.parametrize("task", TASKS)
def test_what_is_shown_is_right(tmp_path: Path, task: Task) -> None:
    """The conversations of sft.jsonl earn all when their questions are prompts."""
    rows = {row["prompt"]: row for row in _many_prompts(tmp_path, task)}
    judged = []
    with Judge([REWARD_OF[task]]) as judge:
        for shown in made(tmp_path, task)["sft"]:
            messages = shown["messages"]
            validate(messages)
            if row := rows.get(messages[0]["content"]):
                judged.append(judge.judge(messages[-1]["content"], row, messages).total)
    assert len(judged) >= 5 and set(judged) == {1}


def _many_prompts(folder: Path, task: Task) -> list[dict[str, Any]]:
    config = TaskConfig(task=task, num_sft=1, num_prompts=12_000, num_heldout=1, two_calls=0.3)
    return list(read_jsonl(build_tasks(folder / "many", config) / "prompts.jsonl"))


@pytest.mark.parametrize("task", TASKS)
def test_no_prompt_that_is_held_out_is_learnt(tmp_path: Path, task: Task) -> None:
    found = made(tmp_path, task)
    learnt = {row["prompt"] for row in found["prompts"]}
    learnt |= {row["messages"][0]["content"] for row in found["sft"]}
    held_out = {row["prompt"] for row in found["heldout"]}
    assert held_out and not held_out & learnt
    if task == "arithmetic":
        other = {row["prompt"] for row in made(tmp_path / "other", task, seed=1)["prompts"]}
        assert other != learnt and not held_out & other


@pytest.mark.parametrize("task", TASKS)
def test_the_same_settings_give_the_same_files(tmp_path: Path, task: Task) -> None:
    made(tmp_path / "first", task)
    made(tmp_path / "second", task)
    for part in PARTS:
        first, second = (tmp_path / name / task / f"{part}.jsonl" for name in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()


def test_the_tools_of_the_conversations_answer_as_they_say(tmp_path: Path) -> None:
    calls = 0
    with Toolbox() as box:
        for row in made(tmp_path, "tools")["sft"]:
            assert all(tool == box.schemas[tool["function"]["name"]] for tool in row["tools"])
            for message, told in zip(row["messages"], row["messages"][1:], strict=False):
                for call in message.get("tool_calls") or []:
                    function = call["function"]
                    arguments = json.dumps(function["arguments"])
                    assert box.call(function["name"], arguments) == told["content"]
                    calls += 1
    assert calls > 150


def test_another_set_is_not_overwritten(tmp_path: Path) -> None:
    out = build_tasks(tmp_path / "set", TaskConfig(num_sft=3, num_prompts=3, num_heldout=3))
    before = (out / "sft.jsonl").read_bytes()
    with pytest.raises(UserError, match="holds something else"):
        build_tasks(out, TaskConfig(task="spelling", num_sft=3, num_prompts=3, num_heldout=3))
    assert (out / "sft.jsonl").read_bytes() == before
    build_tasks(out, TaskConfig(num_sft=3, num_prompts=3, num_heldout=3))


def test_settings_that_make_no_set_are_refused() -> None:
    with pytest.raises(UserError, match="at least 1"):
        TaskConfig(num_sft=0)
    with pytest.raises(UserError, match="a share from 0 to 1"):
        TaskConfig(two_calls=2)
