"""Runs side by side: what is the same stays unsaid, what is better is marked, all is drawn."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from cygnet.errors import UserError
from cygnet.evals.bootstrap import Estimate
from cygnet.evals.compare import (
    CompareCommand,
    TrainingRun,
    compare_command,
    differences,
    draw_losses,
    figures,
    find_runs,
    group_by_stage,
    load_runs,
    read_log,
)
from cygnet.evals.result import StageResult

ORANGE = (1.0, 127 / 255, 14 / 255)
"""The second colour of matplotlib's cycle."""


def make_run(
    folder: Path, losses: list[float], stage: str = "pretrain", rate: float = 0.004
) -> Path:
    folder.mkdir(parents=True)
    rows = [
        {"step": 5 * i, "tokens": 500 * i, "loss": loss, "lr": rate, "tokens_per_second": 90 + i,
         "mfu": 0.4, "elapsed_s": 2.0 * i}
        for i, loss in enumerate(losses, 1)
    ]  # fmt: skip
    rows.insert(0, {"step": 0, "tokens": 0, "heldout_loss": 9.0})
    rows[-1]["heldout_loss"] = losses[-1] + 0.5
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(
        f"stage: {stage}\nrequested: {{minutes: {rate}}}\n"
        f"train: {{learning_rate: {rate}, seed: 0}}\n"
    )
    return folder


def cells(rows, label: str) -> list[str | None]:
    return next(row.cells for row in rows if row.label == label)


def best(rows, label: str) -> int | None:
    return next(row.best for row in rows if row.label == label)


def test_figures_are_those_of_the_log(tmp_path):
    make_run(tmp_path / "a", [4.0, 2.0, 3.0])
    make_run(tmp_path / "b", [4.0, 2.5])
    rows = figures(load_runs([tmp_path / "a", tmp_path / "b"]))
    assert cells(rows, "loss, last") == ["3.0000", "2.5000"]
    assert cells(rows, "loss, best") == ["2.0000", "2.5000"]
    assert (best(rows, "loss, last"), best(rows, "loss, best")) == (1, 0)
    assert cells(rows, "held-out loss, last") == ["3.5000", "3.0000"]
    assert cells(rows, "tokens") == ["1,500", "1,000"]
    assert cells(rows, "tokens per second, median") == ["92", "92"]
    assert best(rows, "tokens per second, median") is None
    assert cells(rows, "mfu, median") == ["40.0\u00a0%"] * 2
    assert cells(rows, "seconds of training") == ["6", "4"]


def test_only_settings_that_differ_are_told_and_each_once(tmp_path):
    runs = load_runs([make_run(tmp_path / "a", [2.0]), make_run(tmp_path / "b", [1.0], rate=0.002)])
    assert [(row.label, row.cells) for row in differences(runs)] == [
        ("train.learning_rate", ["0.004", "0.002"])
    ]
    assert differences([runs[0], runs[0]]) == []


def test_a_metric_is_better_only_beyond_the_others_intervals(tmp_path):
    def evaluated(name: str, value: float, width: float) -> TrainingRun:
        found = Estimate(value, value - width, value + width, 40)
        result = StageResult(metrics={"bits_per_byte": found, "bits_per_byte/notes": found})
        return TrainingRun(name, "pretrain", [], {}, result)

    near = figures([evaluated("a", 1.9, 0.1), evaluated("b", 2.0, 0.1)])
    far = figures([evaluated("a", 2.9, 0.1), evaluated("b", 2.0, 0.1)])
    assert best(near, "bits per byte") is None
    assert best(far, "bits per byte") == 1
    assert cells(far, "bits per byte, notes") == [
        "2.900 (2.800 to 3.000)",
        "2.000 (1.900 to 2.100)",
    ]


def test_training_time_goes_on_after_a_restart(tmp_path):
    elapsed = [None, 10.0, 20.0, 5.0, 15.0, 1.0]
    lines = [json.dumps({"step": i, "elapsed_s": s}) + "\n" for i, s in enumerate(elapsed)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    rows = read_log(tmp_path / "metrics.jsonl")
    assert [row["seconds"] for row in rows] == [0, 10, 20, 25, 35, 36]


def test_a_line_half_written_is_left_out_and_a_damaged_one_is_named(tmp_path):
    log = make_run(tmp_path / "run", [3.0, 2.0]) / "metrics.jsonl"
    whole = read_log(log)
    with open(log, "a") as file:
        file.write('{"step": 15, "lo')
    assert read_log(log) == whole
    with open(log, "a") as file:
        file.write("\n")
    with pytest.raises(UserError, match=r"metrics.jsonl:4: not a line of metrics"):
        read_log(log)


def test_a_run_that_cannot_be_read_is_said_and_the_others_are_compared(tmp_path, capsys):
    make_run(tmp_path / "runs" / "whole", [3.0, 2.0])
    broken = make_run(tmp_path / "runs" / "broken", [3.0, 2.0])
    (broken / "metrics.jsonl").write_text("no JSON\n")
    assert [run.name for run in load_runs([tmp_path / "runs"])] == ["whole"]
    assert capsys.readouterr().err == (
        f"left out: {broken}/metrics.jsonl:1: not a line of metrics; delete it\n"
    )
    with pytest.raises(UserError, match=r"broken/metrics.jsonl:1: not a line"):
        load_runs([broken])


def test_a_recipe_run_is_its_stages_in_order_without_those_kept_aside(tmp_path):
    for name in ("sft", "pretrain", "dpo", "sft.old-1"):
        make_run(tmp_path / "demo" / name, [2.0], stage=name.split(".")[0])
    found = find_runs(tmp_path / "demo")
    assert [path.name for path in found] == ["pretrain", "sft", "dpo"]
    assert [run.name for run in load_runs([tmp_path / "demo"])] == ["pretrain", "sft", "dpo"]
    assert len(group_by_stage(load_runs([tmp_path / "demo"]))) == 1


def test_two_recipe_runs_are_compared_stage_by_stage(tmp_path):
    for name in ("x/demo", "y/demo"):
        make_run(tmp_path / name / "pretrain", [3.0, 2.0])
        make_run(tmp_path / name / "sft", [1.5, 1.0], stage="sft")
    groups = group_by_stage(load_runs([tmp_path / "x" / "demo", tmp_path / "y" / "demo"]))
    assert [[run.name for run in group] for group in groups] == [
        ["x/demo/pretrain", "y/demo/pretrain"],
        ["x/demo/sft", "y/demo/sft"],
    ]


def test_losses_of_different_stages_are_not_ranked(tmp_path):
    runs = load_runs(
        [make_run(tmp_path / "a", [3.0]), make_run(tmp_path / "b", [1.0], stage="dpo")]
    )
    assert best(figures(runs), "loss, last") is None


def test_a_run_given_twice_is_shown_once(tmp_path):
    make_run(tmp_path / "runs" / "a", [3.0])
    runs = load_runs([tmp_path / "runs", tmp_path / "runs" / "a", tmp_path / "runs" / "." / "a"])
    assert len(runs) == 1


@pytest.mark.parametrize("key", ["loss", "heldout_loss"])
def test_every_run_is_in_each_drawing(tmp_path, key):
    """The second run's colour is in the middle of each: steps, tokens and seconds."""
    first, second = load_runs(
        [make_run(tmp_path / "a", [3.0, 2.0, 1.0]), make_run(tmp_path / "b", [3.0, 2.9, 2.8])]
    )
    places = [{k: v for k, v in row.items() if "loss" not in k} for row in second.log]
    for log in ([{**place, key: 2.9} for place in places], []):
        group = [first, TrainingRun("b", "pretrain", log, {}, None)]
        picture = image.imread(io.BytesIO(draw_losses([group])))
        is_orange = (abs(picture[..., :3] - ORANGE) < 0.01).all(-1).any(0)
        # The legend stands to the right of the drawings.
        thirds = np.array_split(is_orange[: int(0.85 * len(is_orange))], 3)
        middles = [np.array_split(third, 4)[1:3] for third in thirds]
        assert [bool(np.concatenate(middle).any()) for middle in middles] == [bool(log)] * 3


def test_equal_runs_give_equal_pictures(tmp_path):
    runs = load_runs([make_run(tmp_path / "a", [3.0, 2.0])])
    assert draw_losses([runs]) == draw_losses([runs])


def test_the_command_prints_to_a_pipe_unfolded_and_writes_the_picture(tmp_path):
    names = ["first", "second", "third", "a_run_with_quite_a_long_name_that_must_not_be_folded"]
    runs = [str(make_run(tmp_path / name, [3.0, 2.0])) for name in names]
    out = tmp_path / "new" / "picture.png"
    command = [sys.executable, "-m", "cygnet", "compare", *runs, "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    heading = next(line for line in result.stdout.splitlines() if "first" in line)
    assert all(name in heading for name in names)
    assert str(out) in result.stderr
    width, height = struct.unpack(">II", out.read_bytes()[16:24])
    assert width > 1000 and height > 300


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "give the run folders"),
        (("gone",), "there is no such folder"),
        (("empty",), "no metrics.jsonl in it or below"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, arguments, problem):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=problem) as error:
        compare_command(CompareCommand(runs=tuple(tmp_path / name for name in arguments)))
    assert "\n" not in str(error.value)


def test_a_picture_of_another_format_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"must end in .png"):
        compare_command(CompareCommand(runs=(tmp_path,), out=tmp_path / "picture.jpg"))
