"""`cygnet grpo` from prompts and a function of one's own to a model folder."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from cygnet.commands.grpo import GrpoCommand, grpo_command
from cygnet.config import TrainConfig
from cygnet.errors import UserError
from cygnet.export.huggingface import load_folder, save_folder
from cygnet.files import JsonlWriter
from cygnet.stages.reinforcement.grpo import GrpoConfig
from cygnet.stages.reinforcement.grpo_run import sources
from cygnet.stages.reinforcement.prompts import checkable_prompts
from cygnet.text.tokenizer import Tokenizer
from cygnet.train.guards import RunStopped
from tests.models import SMALL, random_model

METHOD = GrpoConfig(prompts_per_step=4, group_size=4, max_new_tokens=10, heldout_share=0.3)
TRAIN = TrainConfig(
    steps=3, learning_rate=3e-3, max_seq_len=64, batch_tokens=256, dtype="fp32", device="cpu",
    tracker="none", log_every=1, eval_every=2, checkpoint_every=1,
)  # fmt: skip
REWARDS = """
def letters(answer, row):
    return answer.count(row["letter"])

def broken(answer, row):
    raise ValueError("no idea")
"""
WORLD = """
class World:
    def reset(self, row):
        return [{"role": "user", "content": row["prompt"]}], None

    def step(self, message): ...
"""


@pytest.fixture
def place(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    save_folder(random_model(), tokenizer, tmp_path / "start")
    with JsonlWriter(tmp_path / "prompts.jsonl") as file:
        for number in range(20):
            file.write({"prompt": f"soup {number}", "letter": "ao"[number % 2]})
    (tmp_path / "mine.py").write_text(REWARDS)
    return tmp_path


def command(place: Path, reward: str = "letters", **settings: object) -> GrpoCommand:
    return GrpoCommand(
        data=(str(place / "prompts.jsonl"),), from_=place / "start", out=place / "run",
        reward=(f"{place / 'mine.py'}:{reward}=0.5",), method=METHOD, grpo=TRAIN,
        **settings,  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_run_learns_tells_and_is_done_once(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grpo_command(command(place))
    lines = [json.loads(line) for line in (place / "run" / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert all("reward" in line and "rollout_tokens_per_second" in line for line in lines[1:])
    assert "heldout_reward" in lines[0] and "heldout_reward" in lines[-1]
    part = "reward_mine.letters"
    assert lines[1]["reward"] == pytest.approx(0.5 * lines[1][part])
    samples = [json.loads(line) for line in (place / "run" / "samples.jsonl").open()]
    assert samples and all(row["prompt"].startswith("soup ") for row in samples)

    before, _ = load_folder(place / "start")
    after, _ = load_folder(place / "run" / "model")
    assert not torch.equal(before.output_weight, after.output_weight)
    capsys.readouterr()
    grpo_command(command(place))
    assert "up to date" in capsys.readouterr().err


def test_what_decides_the_rewards_decides_whether_a_run_is_up_to_date(place: Path) -> None:
    grpo_command(command(place))
    (place / "mine.py").write_text(REWARDS.replace("return answer", "return -answer"))
    with pytest.raises(UserError, match="sources"):
        grpo_command(command(place))
    (place / "mine.py").write_text(REWARDS)
    grpo_command(command(place))  # is up to date
    (place / "world.py").write_text(WORLD)
    named = f"{place / 'world.py'}:World"
    with pytest.raises(UserError, match="environment"):
        grpo_command(command(place, environment=named))

    before = sources([], f"calculator,{named}")
    assert list(before) == [f"{place / 'world.py'}"]
    (place / "world.py").write_text(f"{WORLD}\n")
    assert sources([], f"calculator,{named}") != before


def test_a_reward_that_always_fails_stops_the_run_with_a_checkpoint(place: Path) -> None:
    with pytest.raises(RunStopped, match=r"broken: .*no idea"):
        grpo_command(command(place, "broken"))
    assert list((place / "run" / "checkpoints").glob("step_*"))


def test_a_mended_reward_goes_on_where_it_is_told_to(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunStopped, match=r"broken: .*no idea"):
        grpo_command(command(place, "broken"))
    (place / "mine.py").write_text(REWARDS.replace('raise ValueError("no idea")', "return 1.0"))
    with pytest.raises(UserError, match="--resume must to go on with it as it is now"):
        grpo_command(command(place, "broken"))
    must = dataclasses.replace(TRAIN, resume="must")
    grpo_command(dataclasses.replace(command(place, "broken"), grpo=must))
    assert "going on, though inputs.sources." in capsys.readouterr().err
    assert (place / "run" / "model" / "model.safetensors").exists()


def test_a_length_in_tokens_is_refused(place: Path) -> None:
    in_tokens = dataclasses.replace(TRAIN, steps=None, tokens=4096)
    with pytest.raises(UserError, match=r"--tokens 4096: how many tokens a step of grpo"):
        grpo_command(dataclasses.replace(command(place), grpo=in_tokens))


def test_tools_go_with_a_run(place: Path) -> None:
    settings = command(place, environment="calculator")
    with pytest.raises(UserError, match=r"no prompt leaves room .*the shortest has 5"):
        grpo_command(settings)  # the description of the tools fills the rows
    save_folder(
        random_model(dataclasses.replace(SMALL, max_position=1024)),
        load_folder(place / "start")[1], place / "larger",
    )  # fmt: skip
    object.__setattr__(settings, "from_", place / "larger")
    object.__setattr__(
        settings, "grpo", dataclasses.replace(TRAIN, max_seq_len=700, batch_tokens=700)
    )
    grpo_command(settings)
    assert (place / "run" / "model" / "model.safetensors").exists()


def test_prompts_without_room_are_refused_and_some_skipped(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with JsonlWriter(place / "prompts.jsonl") as file:
        file.write({"prompt": "soup", "letter": "a"})
        file.write({"prompt": "salt " * 100, "letter": "a"})
    method = GrpoConfig(prompts_per_step=1, group_size=2, max_new_tokens=4, heldout_share=0.0)
    settings = command(place)
    object.__setattr__(settings, "method", method)
    grpo_command(settings)
    assert "grpo: 1 of 2 prompts leave no room" in capsys.readouterr().err
    with JsonlWriter(place / "prompts.jsonl") as file:
        file.write({"prompt": "salt " * 100, "letter": "a"})
    object.__setattr__(settings, "out", place / "other")
    with pytest.raises(UserError, match="no prompt leaves room for an answer in 65 tokens"):
        grpo_command(settings)


def test_prompts_of_instructions_are_those_that_a_reward_can_check(tmp_path: Path) -> None:
    def conversation(kind: str, question: str, **more: str) -> dict[str, object]:
        asked = {"role": "user", "content": question}
        return {"messages": [asked, {"role": "assistant", "content": "x"}], "kind": kind, **more}

    poem = conversation("poem", "write", form="五言绝句")
    with JsonlWriter(tmp_path / "train.jsonl.zst") as file:
        for row in (poem, poem, conversation("poem", "free"), conversation("article", "what"),
                    conversation("poem", "both", form="五言绝句"),
                    conversation("recipe", "soup", subject="Soup")):  # fmt: skip
            file.write(row)
    with JsonlWriter(tmp_path / "heldout.jsonl.zst") as file:
        file.write(conversation("poem", "both", form="七言绝句"))
    train, heldout = checkable_prompts(tmp_path, ["poem_form", "recipe"])
    assert [(row["prompt"][0]["content"], row["rewards"]) for row in train] == [
        ("write", ["poem_form"]), ("soup", ["recipe"]),
    ]  # fmt: skip
    assert train[0]["form"] == "五言绝句" and train[1]["subject"] == "Soup"
    assert [row["form"] for row in heldout] == ["七言绝句"]
    for asked, named in (("recipe", "recipe"), ("rhyme", "poem_form")):
        (row,) = checkable_prompts(tmp_path, [asked])[0]
        assert row["rewards"] == [named]
