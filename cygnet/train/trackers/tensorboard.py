"""TensorBoard event files."""

from __future__ import annotations

import html
import textwrap
from pathlib import Path
from typing import Any

from cygnet.config import as_yaml
from cygnet.train.trackers.base import ForeignTracker, Samples, as_table

MARKDOWN = "\\`*_[]{}#|"
"""Marks that TensorBoard would read as markup inside a table."""


class TensorBoardTracker(ForeignTracker):
    """TensorBoard event files; `tensorboard --logdir RUN` shows them."""

    name = "tensorboard"

    def __init__(self, folder: Path, resolved: dict[str, Any], step: int = 0) -> None:
        self._folder, self._config = folder, resolved
        self._step = step
        # Events of steps that a resumed run makes again are hidden, all where it starts anew.
        self._purge_step = step + 1 if step else 0
        super().__init__()

    def _open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._run = SummaryWriter(str(self._folder), purge_step=self._purge_step)
        # Indented lines are shown as they are.
        self._run.add_text("config", textwrap.indent(as_yaml(self._config), " " * 4), self._step)

    def _log(self, metrics: dict[str, Any], step: int) -> None:
        for name, value in metrics.items():
            if isinstance(value, int | float) and name != "step":
                self._run.add_scalar(name, value, step)
        self._run.flush()

    def _log_samples(self, rows: Samples, step: int) -> None:
        columns, cells = as_table(rows)
        lines = [
            columns,
            ["---"] * len(columns),
            *([_plain(cell) for cell in row] for row in cells),
        ]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        self._run.add_text("samples", table, step)
        self._run.flush()

    def _finish(self, exit_code: int) -> None:
        self._run.close()


def _plain(cell: object) -> str:
    """Return a cell as Markdown that shows exactly its text, in one line."""
    text = html.escape(str(cell), quote=False)
    for mark in MARKDOWN:
        text = text.replace(mark, "\\" + mark)
    return text.replace("\n", "<br>")
