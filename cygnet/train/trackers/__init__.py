"""Where metrics go: metrics.jsonl always, and one of the known trackers where asked for.

A tracker never ends a run and never waits for a person: what is missing is said in one line, and
training goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cygnet.config import TrainConfig
from cygnet.train.trackers.base import METRICS, Samples, Tracker
from cygnet.train.trackers.jsonl import SAMPLES, JsonlTracker
from cygnet.train.trackers.swanlab import SWANLAB_RUN_ID, SwanLabTracker
from cygnet.train.trackers.tensorboard import TensorBoardTracker
from cygnet.train.trackers.trackio import TRACKIO_RUN_ID, TrackioTracker
from cygnet.train.trackers.wandb import WANDB_RUN_ID, WandbTracker

__all__ = [
    "METRICS",
    "SAMPLES",
    "SWANLAB_RUN_ID",
    "TRACKIO_RUN_ID",
    "WANDB_RUN_ID",
    "JsonlTracker",
    "Samples",
    "SwanLabTracker",
    "TensorBoardTracker",
    "Tracker",
    "TrackioTracker",
    "WandbTracker",
    "make_trackers",
]


def make_trackers(
    config: TrainConfig,
    run_dir: Path,
    resolved: dict[str, Any],
    state: dict[str, Any],
    step: int = 0,
) -> list[Tracker]:
    """Open the trackers that the settings ask for, metrics.jsonl first.

    Args:
        config: `tracker`, `use_wandb`, `wandb_project`, `wandb_run_name` are read.
        run_dir: the run folder.
        resolved: all settings of the run, kept beside its metrics.
        state: the merged `state()` of the trackers when the checkpoint was written, or empty.
        step: steps done; what was logged beyond it is dropped.
    """
    trackers: list[Tracker] = [JsonlTracker(run_dir / METRICS, step)]
    if config.use_wandb or config.tracker == "wandb":
        trackers.append(WandbTracker(config, run_dir, resolved, state))
    if config.tracker == "tensorboard":
        trackers.append(TensorBoardTracker(run_dir / "tensorboard", resolved, step))
    if config.tracker == "swanlab":
        trackers.append(SwanLabTracker(config, run_dir, resolved, state))
    if config.tracker == "trackio":
        trackers.append(TrackioTracker(config, run_dir, resolved, state))
    return trackers
