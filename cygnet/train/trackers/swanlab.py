"""SwanLab, written offline: its cloud wants an account, and its local pages are kept no more."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Any

from cygnet.config import TrainConfig
from cygnet.progress import say
from cygnet.train.trackers.base import (
    ForeignTracker,
    Samples,
    as_table,
    relative,
    run_name,
    without_prints,
)

SWANLAB_RUN_ID = "swanlab_run_id"
NOT_IN_A_PROJECT = re.compile(r"[^0-9a-zA-Z_\-+.]+")


class SwanLabTracker(ForeignTracker):
    """SwanLab in its offline mode: files in RUN/swanlog, which `swanlab sync` sends later.

    Every start of a run writes a folder of its own; all of a resumed run carry one id, under which
    `swanlab sync --id` joins them.
    """

    name = "swanlab"

    def __init__(
        self, config: TrainConfig, run_dir: Path, resolved: dict[str, Any], state: dict[str, Any]
    ) -> None:
        self.run_id: str = state.get(SWANLAB_RUN_ID) or secrets.token_hex(8)
        self._arguments: dict[str, Any] = {
            "project": NOT_IN_A_PROJECT.sub("-", config.wandb_project)[:100] or "cygnet",
            "name": run_name(config, run_dir),
            "config": resolved,
            "log_dir": str(run_dir / "swanlog"),
            "id": self.run_id,
        }
        super().__init__()

    def state(self) -> dict[str, Any]:
        """Return the id of the run."""
        return {SWANLAB_RUN_ID: self.run_id}

    def _open(self) -> None:
        import swanlab

        settings = swanlab.Settings(
            interactive=False,
            # Its own console capture would break the progress bar.
            terminal=swanlab.Settings.Terminal(proxy_type="none"),
            # config.yaml says what the run was made with; measuring the machine takes its time.
            probe=swanlab.Settings.Probe(requirements=False, git=False, monitor=False),
        )
        with without_prints():
            self._run = swanlab.init(**self._arguments, mode="offline", settings=settings)
        folder = relative(Path(self._run.dir))
        say(f"swanlab: writing offline, later: swanlab sync {folder} --id {self.run_id}")

    def _log(self, metrics: dict[str, Any], step: int) -> None:
        self._run.log({**metrics, "step": step}, step=step)

    def _log_samples(self, rows: Samples, step: int) -> None:
        import swanlab

        columns, cells = as_table(rows)
        table = swanlab.echarts.Table().add(columns, cells)
        self._run.log({"samples": swanlab.ECharts(table)}, step=step)

    def _finish(self, exit_code: int) -> None:
        state = "success" if exit_code == 0 else "crashed"
        with without_prints():
            self._run.finish(state=state, error=f"exit code {exit_code}" if exit_code else None)
