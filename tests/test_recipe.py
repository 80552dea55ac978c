"""The whole way on a person's own text, twice, and after a change."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cygnet import cli, recipe, steps
from cygnet.config import read_yaml
from cygnet.errors import UserError
from cygnet.files import read_jsonl, sha256_file
from cygnet.progress import say
from cygnet.train.hardware import choose_device

WORDS = "the old swan sleeps near a cold lake while grey rain falls on reeds and stones".split()


@pytest.fixture(scope="module")
def own_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    chooser = random.Random(4)
    for number in range(40):
        sentences = [" ".join(chooser.choices(WORDS, k=12)).capitalize() for _ in range(12)]
        (folder / f"note_{number}.txt").write_text(". ".join(sentences) + ".")
    turns = [
        {
            "messages": [
                {"role": "user", "content": f"What about {' '.join(chooser.choices(WORDS, k=4))}?"},
                {"role": "assistant", "content": " ".join(chooser.choices(WORDS, k=8))},
            ]
        }
        for _ in range(60)
    ]
    # A question without an answer, and one longer than the context: each costs itself alone.
    turns[:2] = [
        {"messages": [*turns[0]["messages"], {"role": "user", "content": "And then?"}]},
        {"messages": [{"role": "user", "content": "rain " * 900}, turns[1]["messages"][1]]},
    ]
    lines = [json.dumps(row) for row in turns]
    (folder / "chats.jsonl").write_text("\n".join([*lines, "{broken"]))
    return folder


SMALL = (
    "--model.hidden-size 32 --model.num-layers 1 --model.num-heads 2 --model.num-kv-heads 1 "
    "--model.intermediate-size 48 --model.vocab-size 400 --model.max-position 256 "
    "--pretrain.minutes None --pretrain.steps 6 --pretrain.batch-tokens 512 "
    "--pretrain.max-seq-len 64 --sft.batch-tokens 512 --sft.max-seq-len 256 "
    "--dpo.batch-tokens 512 --dpo.max-seq-len 256 --corpus.heldout-share 0.15 "
    "--pairs.num-own-prompts 8 --pairs.max-new-tokens 24 --eval.max-new-tokens 24 "
    "--pretrain.compile off --sft.compile off --dpo.compile off"
).split()


def run(data: Path, out: Path, *more: str) -> None:
    cli.main(["run", "--data", str(data), "--out", str(out), *SMALL, *more])


def contents(out: Path) -> dict[str, str]:
    files = (path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): sha256_file(path) for path in files}


def test_the_whole_way_and_then_only_what_changed(
    own_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    run(own_text, out)
    first = contents(out)
    for name in ("report.html", "report.md", "model/model.safetensors", "dpo/metrics.jsonl"):
        assert name in first
    assert "chats.jsonl:61" in (out / "data/report.md").read_text()
    said = capsys.readouterr().err
    assert f"cygnet chat {out}" in said
    assert "small talk that Cygnet brings along" in said
    assert "--instructions.small_talk_repeats 0" in said

    run(own_text, out)
    said = capsys.readouterr().err
    for step in ("data", "tokenizer", "pretrain", "instructions", "sft", "pairs", "dpo"):
        assert f"{step}: up to date" in said, step
    assert contents(out) == first

    run(own_text, out, "--sft.learning-rate", "0.0123")
    said = capsys.readouterr().err
    assert "pretrain: up to date" in said
    assert "sft: made again, for learning_rate was" in said
    assert (out / "sft.old-1/model/model.safetensors").exists()
    assert "pairs: made again, for the model to start from changed" in said
    assert "evaluation of pretrain: made again, for the held-out pairs changed" in said
    assert not re.search("[0-9a-f]{16}", said), "a bare hash says nothing"

    run(own_text, out, "--instructions.max-continuations", "30", "--eval.num-others", "2")
    said = capsys.readouterr().err
    assert "instructions: made again, for max_continuations was 2000, now 30" in said
    assert "sft: made again, for the data changed" in said
    assert re.search("evaluation of pretrain: made again, for .*num_others was 4, now 2", said)
    assert not re.search("[0-9a-f]{16}", said)


def test_a_recipe_trains_adapters_where_it_is_told_to(
    own_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each stage has its own and leaves a whole model; what they leave alone stays as it was."""
    out = tmp_path / "run"
    run(own_text, out, "--lora.lora", "--lora.lora_rank", "2")
    before, tuned, last = (
        load_file(out / stage / "model/model.safetensors") for stage in ("pretrain", "sft", "dpo")
    )
    changed = {name for name, value in before.items() if not torch.equal(value, last[name])}
    assert changed and all(".layers." in name and "_proj" in name for name in changed)
    assert any(not torch.equal(value, last[name]) for name, value in tuned.items())
    for stage in ("sft", "dpo"):
        assert json.loads((out / stage / "adapter/adapter_config.json").read_text())["r"] == 2
    with pytest.raises(SystemExit):
        run(own_text, out, "--lora.lora", "--lora.lora_targets", "nothing")
    assert "--lora.lora_targets" in capsys.readouterr().err


def test_a_stage_of_a_run_is_measured_on_the_runs_held_out_text(
    own_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    run(own_text, out, "--stages", "sft")
    (out / "sft/eval.json").unlink()
    capsys.readouterr()
    cli.main(["eval", str(out / "sft"), "--max-new-tokens", "24"])
    assert "bits per byte" in capsys.readouterr().out
    assert (out / "sft/eval.json").exists()


@pytest.fixture(scope="module")
def own_poems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, chooser = tmp_path_factory.mktemp("poems"), random.Random(5)
    characters = "山水月风花雪云雨江河天地人心春秋夜日鸟鱼"
    rows = []
    for number in range(60):
        lines = ["".join(chooser.choices(characters, k=5)) for _ in range(4)]
        title = "".join(chooser.choices(characters, k=3)) + characters[number % 20]
        text = f"{lines[0]}，{lines[1]}。\n{lines[2]}，{lines[3]}。"
        rows.append(json.dumps({"title": title, "form": "五言绝句", "text": text}))
    (folder / "poems.jsonl").write_text("\n".join(rows))
    return folder


def test_a_recipe_takes_the_stages_that_it_names(
    own_poems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    more = ["--stages", "sft", "reward", "ppo", "grpo", "--pairs.num-poem-prompts", "6"]
    for stage in ("reward", "ppo", "grpo"):
        more += [f"--{stage}.batch-tokens", "512", f"--{stage}.max-seq-len", "128"]
        more += [f"--{stage}.steps", "2", f"--{stage}.compile", "off"]
    more += ["--rlhf.answers-per-rollout", "4", "--rlhf.max-new-tokens", "12"]
    more += ["--reinforcement.prompts-per-step", "2", "--reinforcement.group-size", "2"]
    more += ["--reinforcement.max-new-tokens", "12", "--corpus.min-chars", "5"]
    run(own_poems, out, *more)
    first = contents(out)
    for name in ("reward/model/config.json", "ppo/metrics.jsonl", "grpo/model/model.safetensors"):
        assert name in first
    # The reward model judges; what goes on answering is the last one that answers.
    assert first["model/model.safetensors"] == first["grpo/model/model.safetensors"]
    assert read_yaml(out / "grpo/config.yaml")["inputs"]["start"] == sha256_file(
        out / "ppo/model/model.safetensors"
    )
    report = (out / "report.md").read_text()
    places = [report.index(f"**{stage}**") for stage in ("pretrain", "sft", "ppo", "grpo")]
    assert places == sorted(places)
    capsys.readouterr()
    run(own_poems, out, *more)
    said = capsys.readouterr().err
    for step in ("sft", "pairs", "reward", "ppo", "grpo"):
        assert f"{step}: up to date" in said, step
    assert contents(out) == first


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ("sft sft", "sft stands there twice"),
        ("sft ppo", "put reward before it"),
        ("distill", "distill needs a model to learn from"),
    ],
)
def test_a_recipe_that_cannot_be_followed_says_why(
    stages: str, said: str, own_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(own_text, tmp_path / "run", "--stages", *stages.split())
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run" / "sft").exists()


def test_a_single_stage_is_evaluated_and_reported(
    own_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sizes = tmp_path / "base", SMALL[:14]
    train = "--steps 4 --batch-tokens 512 --max-seq-len 64 --compile off".split()
    cli.main(["pretrain", "--data", str(own_text), "--out", str(out), *sizes, *train])
    cli.main(["eval", str(out), "--max-new-tokens", "8"])
    shown = capsys.readouterr().out
    assert "bits per byte" in shown and "**pretrain**" in shown
    assert (out / "eval.json").exists() and (out / "report.html").exists()
    assert "(plots/" in shown and list((out / "plots").glob("*.png"))
    assert f"{out}/config.yaml --pretrain" not in shown  # its config.yaml is no recipe
    cli.main(["eval", str(out), "--max-new-tokens", "8"])
    assert "evaluation of pretrain: up to date" in capsys.readouterr().err

    shutil.rmtree(out / "data")
    for extra, said in (
        ([], "no held-out data there to measure on; give --data FOLDER"),
        (["--data", str(tmp_path)], f"{tmp_path}: no held-out data there"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["eval", str(out), *extra])
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["eval", str(tmp_path)])
    assert "holds no finished stage" in capsys.readouterr().err


def test_tuning_without_data_takes_what_the_model_learnt_from(
    own_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    def nothing_builtin(*_: Any) -> Any:
        raise UserError("the built-in text was taken")

    base, tuned, aligned = (tmp_path / name for name in ("base", "tuned", "aligned"))
    train = "--steps 2 --batch-tokens 512 --max-seq-len 256 --compile off".split()
    cli.main(["pretrain", "--data", str(own_text), "--out", str(base), *SMALL[:14], *train])
    monkeypatch.setattr(steps, "prepare", nothing_builtin)
    capsys.readouterr()
    no_talk = ["--instructions.small-talk-repeats", "0"]
    cli.main(["sft", "--from", str(base), "--out", str(tuned), *train, *no_talk])
    said = capsys.readouterr().err
    assert f"sft: no --data given: taking {base}/data, which {base}/model learnt from" in said
    assert "small talk" not in said and "smalltalk" not in said
    few = ["--pairs.num-own-prompts", "2", "--pairs.max-new-tokens", "8"]
    cli.main(["dpo", "--from", str(tuned), "--out", str(aligned), *train, *few])
    said = capsys.readouterr().err
    assert f"taking {tuned}/instructions, which {tuned}/model learnt from" in said
    sources = [row["source"] for row in read_jsonl(aligned / "pairs/train.jsonl.zst")]
    assert sources and all(source.startswith(f"{own_text.name}/") for source in sources)

    shutil.rmtree(base / "data")
    with pytest.raises(SystemExit):
        cli.main(["sft", "--from", str(base), "--out", str(tmp_path / "other"), *train])
    said = capsys.readouterr().err
    assert f"what {base}/model learnt from is not known: taking Cygnet's built-in text" in said
    assert "the built-in text was taken" in said


def test_errors_name_the_flags_of_a_whole_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give --sft\.device auto"), recipe._flags_of("sft"):
        choose_device("cuda:99")
    with pytest.raises(UserError, match="give another --out"), recipe._flags_of("sft"):
        raise UserError("give another --out")
    with (
        pytest.raises(UserError, match=r"--grpo\.steps, not --reinforcement\.max_turns$"),
        recipe._flags_of("grpo"),
    ):
        raise UserError("--steps, not --max_turns")


def test_warnings_name_the_flags_of_a_whole_run(capsys: pytest.CaptureFixture[str]) -> None:
    with recipe._flags_of("dpo"):
        say("raise --beta, or lower --learning_rate")
    say("raise --beta")
    told = "raise --preference.beta, or lower --dpo.learning_rate\nraise --beta\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("verb", ["pretrain", "run"])
def test_how_processes_share_is_checked_before_the_data(
    verb: str, own_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, out = tmp_path / "mine.json", tmp_path / "out"
    mine.write_text('{"zero_optimization": {"stage": 7}}')
    flag = "--deepspeed" if verb == "pretrain" else "--dpo.deepspeed"
    with pytest.raises(SystemExit):
        cli.main([verb, "--data", str(own_text), "--out", str(out), flag, str(mine)])
    assert "mine.json: zero_optimization.stage is 7" in capsys.readouterr().err
    assert not out.exists()


def test_a_length_that_a_later_stage_cannot_have_is_refused_before_the_data(
    own_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, out = ["run", "--data", str(own_text), "--out", str(tmp_path / "out")], tmp_path / "out"
    with pytest.raises(SystemExit):
        cli.main([*given, "--stages", "grpo", "--grpo.steps", "None", "--grpo.tokens", "4096"])
    assert "--grpo.tokens 4096: how many tokens a step of grpo" in capsys.readouterr().err
    assert not out.exists()


def test_a_tokenizer_keeps_its_text_inside_and_is_made_once(
    own_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tokenizer"
    command = ["tokenizer", "--data", str(own_text), "--out", str(out), "--vocab-size"]
    cli.main([*command, "400"])
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]
    assert (out / "data/report.md").exists() and (out / "tokenizer.json").exists()
    first = contents(out)
    capsys.readouterr()
    cli.main([*command, "400"])
    assert "tokenizer: up to date" in capsys.readouterr().err
    assert contents(out) == first
    cli.main([*command, "380"])
    assert "tokenizer: made again, for vocab_size was 400, now 380" in capsys.readouterr().err
    assert (out / "data/report.md").exists()


def test_a_single_short_text_is_told_what_it_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = tmp_path / "note.txt"
    note.write_text("The old swan sleeps near a cold lake while grey rain falls on the reeds.")
    for verb in ("data", "tokenizer"):
        with pytest.raises(SystemExit):
            cli.main([verb, "--data", str(note), "--out", str(tmp_path / verb)])
        said = capsys.readouterr().err
        assert "all the text is one document, and one more is needed" in said
        assert ("a flag of cygnet data" in said) == (verb == "tokenizer")


def test_titled_texts_go_the_whole_way(tmp_path: Path) -> None:
    chooser = random.Random(5)
    rows = []
    for number in range(60):
        title = f"{chooser.choice(WORDS)} {number}".capitalize()
        text = ". ".join(" ".join(chooser.choices(WORDS, k=12)).capitalize() for _ in range(6))
        rows.append({"title": f"{title} \ud83d", "text": f"{title} is a thing. {text}."})
    data = tmp_path / "articles.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    run(data, tmp_path / "run")
    assert (tmp_path / "run/report.html").exists()


def test_two_runs_give_the_same_model(own_text: Path, tmp_path: Path) -> None:
    for name in "ab":
        run(own_text, tmp_path / name)
    one, two = (contents(tmp_path / name) for name in "ab")
    for name in ("data/train.jsonl.zst", "tokenizer/tokenizer.json", "model/model.safetensors",
                 "pairs/train.jsonl.zst", "dpo/eval.json"):  # fmt: skip
        assert one[name] == two[name], name


def test_a_stopped_command_goes_on_and_ends_with_the_same_model(
    own_text: Path, tmp_path: Path
) -> None:
    arguments = [
        sys.executable, "-m", "cygnet", "pretrain", "--data", str(own_text), "--steps", "150",
        "--batch-tokens", "512", "--max-seq-len", "64", "--compile", "off", "--log-every", "1",
        *SMALL[:14],
    ]  # fmt: skip

    def start(out: Path) -> "subprocess.Popen[str]":
        command = [*arguments, "--out", str(out)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    whole = start(tmp_path / "whole")
    assert whole.wait() == 0
    stopped = start(tmp_path / "stopped")
    metrics = tmp_path / "stopped/metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        assert stopped.poll() is None
        time.sleep(0.01)
    stopped.send_signal(signal.SIGTERM)
    _, said = stopped.communicate()
    assert stopped.returncode == cli.TRY_AGAIN
    assert "the same command goes on from there" in said and "Traceback" not in said
    again = start(tmp_path / "stopped")
    assert again.wait() == 0
    one, two = (contents(tmp_path / name) for name in ("whole", "stopped"))
    assert one["model/model.safetensors"] == two["model/model.safetensors"]
