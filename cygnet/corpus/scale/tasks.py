"""What every executor needs to know of its tasks."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path

THREAD_LIMITS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "ARROW_IO_THREADS",
    "RAYON_NUM_THREADS",
)


@dataclass(frozen=True, slots=True)
class Tasks:
    """The arguments of `run_tasks` that say what to do."""

    function: str
    folder: Path
    count: int
    title: str
    of: str = ""
    """What they are about, so that others are not taken for them."""

    def name(self, number: int) -> str:
        """Return what errors call a task."""
        return f"{self.title}: task {number} of {self.count}"


def run_task(function: str, folder: Path, number: int) -> None:
    """Run one task in this process."""
    module, _, name = function.partition(":")
    getattr(importlib.import_module(module), name)(folder, number)


def limit_threads(num_threads: int) -> None:
    """Keep libraries that are imported from now on from taking the cores of other workers."""
    os.environ.update(dict.fromkeys(THREAD_LIMITS, str(num_threads)))
