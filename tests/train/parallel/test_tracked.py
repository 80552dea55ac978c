"""A run of two processes, typed as people type it, stopped and resumed: what its trackers hold."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from cygnet.config import read_yaml
from cygnet.train.checkpoint import Checkpoint, newest_checkpoint
from tests.train.conftest import sentences
from tests.train.parallel.conftest import environment, torchrun
from tests.train.test_trackers import records

pytestmark = pytest.mark.slow

STEPS = 60
EVERY = 20
FLAGS = (
    f"--steps {STEPS} --batch_tokens 256 --max_seq_len 64 --compile off --log_every 1 "
    f"--eval_every {EVERY} --checkpoint_every 25 --model.hidden-size 32 --model.num-layers 1 "
    "--model.num-heads 2 --model.num-kv-heads 1 --model.intermediate-size 48 "
    "--model.vocab-size 300 --model.max-position 64 --use_wandb --wandb_project swans "
    "--wandb_run_name try-1 --tracker tensorboard"
).split()
WATCHED = {
    "tokens", "loss", "lr", "grad_norm", "tokens_per_second", "mfu", "epoch", "epoch_time",
    "elapsed_s", "peak_memory_bytes",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stop a run by SIGTERM after some steps, and start it again."""
    for package in ("wandb", "tensorboard"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("tracked")
    notes = folder / "notes"
    notes.mkdir()
    chooser = random.Random(2)
    for number in range(60):
        text = ". ".join(chooser.sample(sentences(400, 3), 5))
        (notes / f"{number}.txt").write_text(f"{number}. {text}.")
    run = folder / "run"
    words = ["train_pretrain.py", "--data", str(notes), "--out", str(run), *FLAGS]
    quiet = {k: v for k, v in environment().items() if not k.startswith("WANDB")}
    start = {
        "env": {**quiet, "HOME": str(folder), "NETRC": str(folder / ".netrc")},
        "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, "text": True,
    }  # fmt: skip
    stopped: Any = subprocess.Popen(torchrun(*words), **start)
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < EVERY + 5:
        assert stopped.poll() is None, stopped.communicate()[1]
        time.sleep(0.01)
    stopped.send_signal(signal.SIGTERM)
    _, said = stopped.communicate()
    assert "the same command goes on from there" in said, said
    assert said.count("wandb sync") == 1, said
    again = subprocess.run(torchrun(*words), **start)
    assert again.returncode == 0, again.stderr
    assert "going on from step" in again.stderr
    return run


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_and_samples_are_whole_over_both_starts(run: Path) -> None:
    lines = read(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(STEPS + 1))
    evaluated = list(range(0, STEPS + 1, EVERY))
    assert [line["step"] for line in lines if "heldout_loss" in line] == evaluated
    for line in lines[1:]:
        assert line.keys() >= WATCHED
        assert 0 < line["mfu"] < 1
        assert line["peak_memory_bytes"] > 50_000_000
    samples = read(run / "samples.jsonl")
    each = len(samples) // len(evaluated)
    assert each > 0
    assert [row["step"] for row in samples] == [step for step in evaluated for _ in range(each)]
    assert samples[0]["prompt"] == samples[each]["prompt"]


def test_wandb_holds_one_run_whole_over_both_starts(run: Path) -> None:
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime_ns)
    assert len(files) == 2, "rank 0 alone tracks, once a start"
    found = [records(file) for file in files]
    started = [next(r["run"] for r in part if r["type"] == "run") for part in found]
    checkpoint = newest_checkpoint(run / "checkpoints")
    assert checkpoint
    with Checkpoint(checkpoint) as opened:
        kept = opened.state["trackers"]["wandb_run_id"]
    assert [part["run_id"] for part in started] == [kept, kept]
    assert {(part["project"], part["display_name"]) for part in started} == {("swans", "try-1")}
    assert started[0]["config"]["update"]["train"] == read_yaml(run / "config.yaml")["train"]
    history = [r["history"]["item"] for part in found for r in part if r["type"] == "history"]
    # SIGTERM lost nothing, and no step is there twice.
    for line, item in zip(read(run / "metrics.jsonl"), history, strict=True):
        assert {name: item.get(name) for name in line} == line
    tables = {item["step"]: item["samples.path"] for item in history if "samples.path" in item}
    samples = read(run / "samples.jsonl")
    assert list(tables) == list(range(0, STEPS + 1, EVERY))
    for step, path in tables.items():
        (file,) = run.glob(f"wandb/offline-run-*/files/{path}")
        table = json.loads(file.read_text(encoding="utf-8"))
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        assert rows == [
            {"prompt": r["prompt"], "answer": r["answer"]} for r in samples if r["step"] == step
        ]


def test_tensorboard_holds_the_same(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    lines = read(run / "metrics.jsonl")
    assert set(events.Tags()["scalars"]) == WATCHED | {"heldout_loss"}
    for name in WATCHED | {"heldout_loss"}:
        expected = [(line["step"], line[name]) for line in lines if name in line]
        scalars = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in scalars] == [step for step, _ in expected]
        assert [v for _, v in scalars] == pytest.approx([v for _, v in expected], rel=1e-6)
    texts = {
        name: [event.step for event in events.Tensors(f"{name}/text_summary")]
        for name in ("samples", "config")
    }
    assert texts["samples"] == list(range(0, STEPS + 1, EVERY))
    assert len(texts["config"]) == 2
    shown = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert f"steps: {STEPS}" in shown
