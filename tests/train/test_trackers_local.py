"""What SwanLab and Trackio hold on disk: after a run, a resumed run, and without a network."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from cygnet.config import TrainConfig
from cygnet.train.trackers import JsonlTracker, make_trackers
from cygnet.train.trackers.trackio import free_name
from tests.train.test_trackers import FAKE_KEY, OF_A_KIND, ROWS, server, train


def swanlab_records(folder: Path) -> list[Any]:
    """Return what SwanLab's own reader finds in one of its folders."""
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    (file,) = folder.glob("*.swanlab")
    reader = DataStoreReader()
    reader.open(file)
    return [Record.FromString(content) for content in reader]


def swanlab_folders(run: Path) -> list[Path]:
    return sorted((run / "swanlog").glob("run-*"), key=lambda path: path.stat().st_ctime_ns)


def swanlab_losses(folder: Path, name: str = "loss") -> list[tuple[int, float]]:
    scalars = [r.scalar for r in swanlab_records(folder) if r.HasField("scalar")]
    return [(s.step, s.value.number) for s in scalars if s.key == name]


def test_swanlab_writes_all_offline_and_says_how_to_send_it(tmp_path):
    pytest.importorskip("swanlab")
    run = tmp_path / "first"
    config = {"tracker": "swanlab", "wandb_project": "my swans"}
    state, said = train(run, tmp_path, config=config, samples=ROWS)
    (folder,) = swanlab_folders(run)
    assert swanlab_losses(folder) == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert swanlab_losses(folder, OF_A_KIND) == [(1, 2.0), (2, 1.0), (3, pytest.approx(2 / 3))]
    started = next(r.start for r in swanlab_records(folder) if r.HasField("start"))
    assert (started.project, started.name, started.id) == (
        "my-swans",
        "first",
        state["swanlab_run_id"],
    )
    assert any(r.HasField("finish") for r in swanlab_records(folder))
    settings = (folder / "files" / "config.yaml").read_text()
    assert "hidden_size" in settings and "0.004" in settings
    assert said.count("\n") == 1
    assert f"swanlab sync {folder} --id {state['swanlab_run_id']}" in said


def test_swanlab_holds_the_samples_of_each_step_as_a_table(tmp_path):
    pytest.importorskip("swanlab")
    train(tmp_path / "first", tmp_path, config={"tracker": "swanlab"}, samples=ROWS)
    (folder,) = swanlab_folders(tmp_path / "first")
    media = [r.media for r in swanlab_records(folder) if r.HasField("media")]
    assert [(m.key, m.step) for m in media] == [("samples", 1), ("samples", 2), ("samples", 3)]
    for record in media:
        (item,) = record.value.items
        (file,) = (folder / "media").rglob(item.filename)
        shown = json.loads(file.read_text(encoding="utf-8"))["rowData"]
        assert [{k: v for k, v in row.items() if v != ""} for row in shown] == [
            {**row, "score": record.step} for row in ROWS
        ]


def test_the_parts_of_a_resumed_swanlab_run_carry_one_id(tmp_path):
    pytest.importorskip("swanlab")
    run = tmp_path / "first"
    config = {"tracker": "swanlab", "wandb_run_name": "tuesday"}
    before, _ = train(run, tmp_path, config=config)
    after, _ = train(run, tmp_path, config=config, state=before, steps=(2, 5))
    assert after == before
    first, second = swanlab_folders(run)
    assert [step for step, _ in swanlab_losses(second)] == [3, 4, 5]
    for folder in (first, second):
        started = next(r.start for r in swanlab_records(folder) if r.HasField("start"))
        assert (started.name, started.id) == ("tuesday", before["swanlab_run_id"])


def test_swanlab_asks_nobody_even_with_a_key(tmp_path):
    pytest.importorskip("swanlab")
    with server(None) as url:
        _, said = train(
            tmp_path / "run",
            tmp_path,
            config={"tracker": "swanlab"},
            SWANLAB_API_KEY=FAKE_KEY,
            SWANLAB_API_HOST=url,
            SWANLAB_MODE="online",
        )
    assert "writing offline" in said
    (folder,) = swanlab_folders(tmp_path / "run")
    assert len(swanlab_losses(folder)) == 3


def trackio_rows(home: Path, project: str = "swans") -> list[tuple[str, int, dict[str, Any]]]:
    """Return (run, step, metrics) of each row of Trackio's database, in the order of writing."""
    file = home / ".cache" / "huggingface" / "trackio" / f"{project}.db"
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id")
        return [(name, step, json.loads(metrics)) for name, step, metrics in rows]


TRACKIO = {"tracker": "trackio", "wandb_project": "swans"}


def test_trackio_holds_metrics_settings_and_samples(tmp_path):
    pytest.importorskip("trackio")
    state, said = train(tmp_path / "first", tmp_path, config=TRACKIO, samples=ROWS)
    rows = trackio_rows(tmp_path)
    assert {name for name, _, _ in rows} == {"first"} == {state["trackio_run_id"]}
    assert [(step, m["loss"]) for _, step, m in rows if "loss" in m] == [
        (1, 1.0), (2, 0.5), (3, 1 / 3),
    ]  # fmt: skip
    assert [m[OF_A_KIND] for _, _, m in rows if OF_A_KIND in m] == [2.0, 1.0, 2 / 3]
    tables = [(step, m["samples"]["_value"]) for _, step, m in rows if "samples" in m]
    assert [step for step, _ in tables] == [1, 2, 3]
    for step, shown in tables:
        assert [{k: v for k, v in row.items() if v != ""} for row in shown] == [
            {**row, "score": step} for row in ROWS
        ]
    file = tmp_path / ".cache" / "huggingface" / "trackio" / "swans.db"
    with sqlite3.connect(file) as database:
        (settings,) = database.execute("SELECT config FROM configs").fetchone()
    assert json.loads(settings)["model"] == {"hidden_size": 512}
    assert said == "trackio: run first; to look at it: trackio show --project swans\n"


def test_a_resumed_trackio_run_holds_every_step_once(tmp_path):
    pytest.importorskip("trackio")
    before, _ = train(tmp_path / "first", tmp_path, config=TRACKIO, steps=(0, 4), samples=ROWS)
    after, _ = train(
        tmp_path / "first", tmp_path, config=TRACKIO, state=before, steps=(2, 6), samples=ROWS
    )
    assert after == before
    rows = trackio_rows(tmp_path)
    assert {name for name, _, _ in rows} == {"first"}
    assert [step for _, step, m in rows if "loss" in m] == [1, 2, 3, 4, 5, 6]
    assert [step for _, step, m in rows if "samples" in m] == [1, 2, 3, 4, 5, 6]


def test_two_trackio_runs_of_one_name_stay_apart(tmp_path):
    pytest.importorskip("trackio")
    one, _ = train(tmp_path / "a" / "pretrain", tmp_path, config=TRACKIO)
    other, _ = train(tmp_path / "b" / "pretrain", tmp_path, config=TRACKIO)
    assert (one["trackio_run_id"], other["trackio_run_id"]) == ("pretrain", "pretrain-2")
    rows = trackio_rows(tmp_path)
    assert [name for name, _, _ in rows] == ["pretrain"] * 3 + ["pretrain-2"] * 3
    assert free_name("pretrain", {"pretrain", "pretrain-2"}) == "pretrain-3"


def test_trackio_asks_nobody_even_with_a_key(tmp_path):
    pytest.importorskip("trackio")
    with server(None) as url:
        train(tmp_path / "first", tmp_path, config=TRACKIO, HF_TOKEN="hf_x", HF_ENDPOINT=url)
    assert len(trackio_rows(tmp_path)) == 3


def test_an_error_of_a_tracker_is_said_once_and_drops_it(tmp_path, capsys):
    """A folder that cannot be made stands for whatever may go wrong inside a package."""
    pytest.importorskip("swanlab")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "swanlog").write_text("")
    jsonl, swanlab = make_trackers(TrainConfig(tracker="swanlab"), tmp_path / "run", {}, {})
    for tracker in (jsonl, swanlab):
        for step in (1, 2):
            tracker.log({"loss": 1.0}, step)
            tracker.samples(ROWS, step)
        tracker.finish(0)
    assert isinstance(jsonl, JsonlTracker)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("swanlab: ") and "training goes on without it" in said
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 2


def test_an_error_while_logging_is_said_once_too(tmp_path, capsys, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    _, wandb = make_trackers(TrainConfig(tracker="wandb"), tmp_path / "run", {}, {})
    wandb._run.finish()
    for step in (1, 2):
        wandb.log({"loss": 1.0}, step)
    wandb.finish(1)
    assert capsys.readouterr().err.count("training goes on without it") == 1
