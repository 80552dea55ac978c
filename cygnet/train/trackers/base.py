"""What a tracker is, and what those made of other people's code share."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cygnet.config import TrainConfig
from cygnet.progress import say

Samples = Sequence[Mapping[str, Any]]
"""Rows of a table, column name to text or number; `prompt` and `answer` are among the columns."""


MAX_WAITING = 4096
"""What a tracker may leave waiting before it is given up; a line of metrics is one."""
FINISH_TIMEOUT_S = 60.0
"""How long a run that ends waits for a tracker to send what it has."""
METRICS = "metrics.jsonl"


class Tracker(Protocol):
    """Takes the metrics of a run. No method raises, and none but `finish` waits."""

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Take the metrics of one step."""
        ...

    def samples(self, rows: Samples, step: int) -> None:
        """Take what the model answered at a step: a table of prompts and answers."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what a resumed run must hand back to `make_trackers`; JSON, unique keys."""
        ...

    def finish(self, exit_code: int) -> None:
        """Write out what is left. `exit_code` is 0 for a run that ended well."""
        ...


class ForeignTracker(ABC):
    """A tracker made of a package of other people, whose first error drops it for good.

    A thread hands over what is logged, so that no step waits for a package that does not answer: a
    process that hangs, a disk or a network that is gone.

    Class attributes:
        name: of the package, and of the extra that brings it.
    """

    name: str

    def __init__(self) -> None:
        self._run: Any = None
        self._waiting: queue.Queue[Callable[[], None]] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._hand_over, name=self.name, daemon=True)
        if is_installed(self.name):
            self._try(self._open)
        else:
            say(
                f"{self.name} is not installed: pip install 'cygnet[{self.name}]'; "
                "training goes on without it"
            )
        if self._run is not None:
            self._thread.start()

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Hand the metrics over."""
        self._submit(lambda: self._guard(lambda: self._log(metrics, step)))

    def samples(self, rows: Samples, step: int) -> None:
        """Hand a table of prompts and answers over."""
        if rows:
            self._submit(lambda: self._guard(lambda: self._log_samples(rows, step)))

    def state(self) -> dict[str, Any]:
        """Return nothing, unless the tracker has an id to keep."""
        return {}

    def finish(self, exit_code: int) -> None:
        """Close the run; a package that does not answer for a minute is left to itself."""
        is_taken = threading.Event()
        self._submit(is_taken.set)
        if self._run is not None and not is_taken.wait(FINISH_TIMEOUT_S):
            self._give_up()
        # Not in the thread: packages that handle signals may do so in the main one alone.
        self._guard(lambda: self._finish(exit_code))

    def _submit(self, action: Callable[[], None]) -> None:
        if self._run is None:
            return
        try:
            self._waiting.put_nowait(action)
        except queue.Full:
            self._give_up()

    def _hand_over(self) -> None:
        while True:
            self._waiting.get()()

    def _give_up(self) -> None:
        self._drop(f"{self.name} does not answer: what it has not taken is in {METRICS} alone")

    def _drop(self, why: str) -> None:
        self._run = None
        say(why)
        threading.Thread(target=self._abandon, daemon=True).start()

    def _guard(self, action: Callable[[], None]) -> None:
        if self._run is not None:
            self._try(action)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 (foreign code must not end a run)
            self._drop(f"{self.name}: {first_line(error)}; training goes on without it")

    @abstractmethod
    def _open(self) -> None:
        """Begin or go on with the run, and set `_run`."""

    @abstractmethod
    def _log(self, metrics: dict[str, Any], step: int) -> None: ...

    @abstractmethod
    def _log_samples(self, rows: Samples, step: int) -> None: ...

    @abstractmethod
    def _finish(self, exit_code: int) -> None: ...

    def _abandon(self) -> None:  # noqa: B027 (most packages need nothing)
        """Keep a dropped package from holding up the end of the process; may itself hang."""


def is_installed(package: str) -> bool:
    """Say whether a package can be imported; a mere folder of its name is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def first_line(error: Exception) -> str:
    """Return the first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def run_name(config: TrainConfig, run_dir: Path) -> str:
    """Return what a run is called in a tracker's pages."""
    return config.wandb_run_name or run_dir.resolve().name


def as_table(rows: Samples) -> tuple[list[Any], list[list[Any]]]:
    """Return the columns of all rows, and the cells; what a row lacks is empty text."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return columns, [[row.get(name, "") for name in columns] for row in rows]


def relative(folder: Path) -> str:
    """Return a folder as one types it: relative to where we are, if it lies below."""
    return os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)


@contextlib.contextmanager
def without_prints() -> Iterator[None]:
    """Keep standard output, which is for results, free of what a package prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
