"""Trackio: a local database and its own local pages."""

from __future__ import annotations

import os
import shlex
from collections.abc import Container
from pathlib import Path
from typing import Any

from cygnet.config import TrainConfig
from cygnet.progress import say
from cygnet.train.trackers.base import ForeignTracker, Samples, as_table, run_name, without_prints

TRACKIO_RUN_ID = "trackio_run_id"
ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
"""Variables by which a person asks Trackio to send its data away."""


class TrackioTracker(ForeignTracker):
    """Trackio's local database; `trackio show` serves its pages.

    A run is known by its name: a new run whose name is taken gets a number behind it, a resumed
    one goes on under the name that it had. What it makes again was logged already, and is left out.
    """

    name = "trackio"

    def __init__(
        self, config: TrainConfig, run_dir: Path, resolved: dict[str, Any], state: dict[str, Any]
    ) -> None:
        self.run: str = state.get(TRACKIO_RUN_ID, "")
        self._project = config.wandb_project
        self._wanted = run_name(config, run_dir)
        self._config = resolved
        self._logged = -1
        super().__init__()

    def state(self) -> dict[str, Any]:
        """Return the name of the run."""
        return {TRACKIO_RUN_ID: self.run} if self.run else {}

    def _open(self) -> None:
        if not any(os.environ.get(name) for name in ELSEWHERE):
            # Else it asks Hugging Face who we are, and waits for the answer.
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        taken = set(SQLiteStorage.get_runs(self._project))
        if not self.run:
            self.run = free_name(self._wanted, taken)
        elif self.run in taken:
            self._logged = SQLiteStorage.get_last_step(self._project, self.run) or 0
        with without_prints():
            self._run = trackio.init(
                project=self._project,
                name=self.run,
                config=self._config,
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        project = shlex.quote(self._project)
        say(f"trackio: run {self.run}; to look at it: trackio show --project {project}")

    def _log(self, metrics: dict[str, Any], step: int) -> None:
        if step > self._logged:
            # The step is given beside the metrics, where its name is reserved.
            self._run.log({k: v for k, v in metrics.items() if k != "step"}, step=step)

    def _log_samples(self, rows: Samples, step: int) -> None:
        import trackio

        if step > self._logged:
            columns, cells = as_table(rows)
            self._run.log({"samples": trackio.Table(columns=columns, data=cells)}, step=step)

    def _finish(self, exit_code: int) -> None:
        import trackio

        with without_prints():
            self._run.finish()
        # Else it finishes the run again when Python ends, and prints that it does.
        trackio.context_vars.current_run.set(None)


def free_name(wanted: str, taken: Container[str]) -> str:
    """Return the name, with the first number behind it that makes it new where it is taken."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    return name
