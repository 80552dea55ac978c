"""`cygnet board`: a live page of training runs, from their metrics.jsonl alone.

The page is Trackio's. Its database is a temporary folder that we fill from the logs, and go on
filling while a run writes.
"""

from __future__ import annotations

import io
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tyro

from cygnet.errors import UserError, require
from cygnet.evals.compare import LOG, Row, is_number, named_runs, read_log, settings_of
from cygnet.progress import say

PROJECT = "runs"
ORDER = (
    "loss,lr,tokens_per_second,epoch_time,grad_norm,mfu,peak_memory_bytes,heldout/loss,heldout/*,"
    "progress/*"
)
"""The order of the charts; a part before a slash is a group of its own."""
PROGRESS = {"tokens", "epoch", "seconds"}
"""What the other charts can be drawn against."""


@dataclass(frozen=True, kw_only=True)
class BoardCommand:
    """Which runs to show, and where."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs"),)
    """Run folders, or folders of them; runs that begin later appear by themselves."""
    port: int = 7860
    """Port of the page; 0 takes any that is free."""
    host: str = "127.0.0.1"
    """Address to serve on. Any other than this machine's own lets others read and delete runs of
    the page (the folders themselves are never written to)."""
    refresh_s: float = 2.0
    """Seconds between looks at the folders."""


def board_command(config: BoardCommand) -> None:
    """Serve the page until Ctrl-C or a termination signal.

    Raises:
        UserError: Trackio is missing, a folder is, or the port is taken.
    """
    if not 0 <= config.port <= 65_535:
        raise UserError(f"--port {config.port}: it must be from 0 to 65535")
    for path in config.runs:
        if path.exists() and not path.is_dir():
            raise UserError(f"{path}: not a folder; give a run folder or a folder of runs")
    if config.refresh_s <= 0:
        raise UserError(f"refresh_s is {config.refresh_s}: it must be above zero")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with tempfile.TemporaryDirectory(prefix="cygnet-board-") as folder:
        feed = Feed(config.runs, Path(folder))
        feed.update()
        server, url = _serve(config.host, config.port)
        say(f"{feed.summary()}\nthe page: {url}   (Ctrl-C ends it)")
        while not stop.wait(config.refresh_s):
            feed.update()
        server.close()


class Feed:
    """Copies what runs log into Trackio's database.

    Args:
        folders: where to look for runs, now and at each update.
        database: an empty folder, which Trackio takes for this process.
    """

    def __init__(self, folders: Sequence[Path], database: Path) -> None:
        # Trackio reads these when it is imported.
        os.environ |= {
            "TRACKIO_DIR": str(database),
            "TRACKIO_PLOT_ORDER": ORDER,
            "HF_HUB_OFFLINE": "1",
        }
        require("trackio", "board")
        self._folders = folders
        self._logs: dict[Path, RunLog] = {}
        self._said: set[str] = set()

    def update(self) -> None:
        """Take up new runs and new lines; a run whose log began anew is shown anew.

        What cannot be read is said once, and looked at again when it has changed.
        """
        for run, name in named_runs(self._folders).items():
            try:
                self._take(self._logs.setdefault(run, RunLog(run / LOG, name)), run)
            except (OSError, UserError) as error:
                if str(error) not in self._said:
                    self._said.add(str(error))
                    say(str(error))

    def _take(self, log: RunLog, run: Path) -> None:
        from trackio.sqlite_storage import SQLiteStorage

        rows, began_anew = log.news()
        if began_anew:
            SQLiteStorage.delete_run(PROJECT, log.name)
        if rows:
            values = [chart_values(row) for row in rows]
            steps = [row["step"] for row in rows]
            settings = settings_of(run)
            SQLiteStorage.bulk_log(PROJECT, log.name, values, steps, log.times(rows), settings)

    def summary(self) -> str:
        """Say which runs are shown."""
        names = ", ".join(log.name for log in self._logs.values())
        return f"showing {names}" if names else "no run yet: one will appear when it begins"


class RunLog:
    """A metrics.jsonl that may be growing, and what of it was taken up already."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self._path = path
        self._seen: tuple[float, int] | None = None
        self._rows: list[Row] = []

    def news(self) -> tuple[list[Row], bool]:
        """Return the rows to take up, and whether they replace all that were taken up before.

        Raises:
            OSError: the file cannot be read.
            UserError: a line is damaged.
        """
        status = self._path.stat()
        if (status.st_mtime, status.st_size) == self._seen:
            return [], False
        self._seen = (status.st_mtime, status.st_size)
        rows = [row for row in read_log(self._path) if isinstance(row.get("step"), int)]
        shared = min(len(rows), len(self._rows))
        began_anew = rows[:shared] != self._rows[:shared]
        # A log that only became shorter is that of a resumed run, which will make the rest again.
        news = rows if began_anew else rows[len(self._rows) :]
        if news:
            self._rows = rows
        return news, began_anew

    def times(self, rows: Sequence[Row]) -> list[str]:
        """Return when each row was written, counted back from the file's last change."""
        changed_s = self._seen[0] if self._seen else 0.0
        ended_s = self._rows[-1]["seconds"] if self._rows else 0.0
        return [
            datetime.fromtimestamp(changed_s - ended_s + row["seconds"], UTC).isoformat()
            for row in rows
        ]


def chart_values(row: Row) -> dict[str, float]:
    """Return the numbers of a row under the names of their charts."""
    values = {}
    for key, value in row.items():
        if key in ("step", "elapsed_s") or not is_number(value):
            continue
        group = "progress/" if key in PROGRESS else ""
        values[group + key.replace("heldout_", "heldout/")] = value
    return values


def _serve(host: str, port: int) -> tuple[Any, str]:
    """Begin to serve; return the server and the address of the page."""
    import trackio

    if port == 0:
        with socket.create_server((host, 0)) as probe:
            port = probe.getsockname()[1]
    try:
        # It tells of a token for writing, which nobody needs here.
        with redirect_stdout(io.StringIO()):
            server, url, *_ = trackio.show(
                project=PROJECT,
                open_browser=False,
                block_thread=False,
                host=host,
                server_port=port,
                share=False,
            )
    except OSError as error:
        raise UserError(f"port {port} on {host} cannot be had: give another with --port") from error
    return server, f"{url}?project={PROJECT}&smoothing=0"
