"""Weights & Biases."""

from __future__ import annotations

import contextlib
import netrc
import os
import secrets
import threading
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from cygnet.config import TrainConfig
from cygnet.progress import say
from cygnet.train.trackers.base import (
    FINISH_TIMEOUT_S,
    ForeignTracker,
    Samples,
    as_table,
    first_line,
    relative,
    run_name,
)

WANDB_RUN_ID = "wandb_run_id"
PROBE_TIMEOUT_S = 4.0
INIT_TIMEOUT_S = 10.0


class WandbTracker(ForeignTracker):
    """Weights & Biases: online with a login and network, in a folder to sync later without.

    A resumed run keeps its id. Nothing is ever asked on standard input. What cannot be sent within
    a minute at the end stays on disk.
    """

    name = "wandb"

    def __init__(
        self, config: TrainConfig, run_dir: Path, resolved: dict[str, Any], state: dict[str, Any]
    ) -> None:
        self.run_id: str = state.get(WANDB_RUN_ID) or secrets.token_hex(4)
        self._arguments: dict[str, Any] = {
            "project": config.wandb_project,
            "name": run_name(config, run_dir),
            "config": resolved,
            "dir": str(run_dir),
            "id": self.run_id,
        }
        super().__init__()

    def state(self) -> dict[str, Any]:
        """Return the id of the run."""
        return {WANDB_RUN_ID: self.run_id}

    def _open(self) -> None:
        import wandb

        # Reports about wandb itself would hold up the end of a run without network by ten seconds.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        # Its own console capture would swallow the progress bar.
        quiet: dict[str, Any] = {
            "console": "off",
            "silent": True,
            "init_timeout": INIT_TIMEOUT_S,
            "login_timeout": INIT_TIMEOUT_S,
            "finish_timeout": FINISH_TIMEOUT_S,
        }
        url = str(wandb.setup(wandb.Settings(silent=True)).settings.base_url)
        mode = os.environ.get("WANDB_MODE", "online")
        problem = f"WANDB_MODE is {mode}" if mode != "online" else _offline_reason(url)
        if problem is None:
            try:
                settings = wandb.Settings(**quiet, mode="online")
                self._run = wandb.init(**self._arguments, resume="allow", settings=settings)
                say(f"wandb: {self._run.url}")
                return
            except Exception as error:  # noqa: BLE001 (whatever it is, there is a way without)
                problem = first_line(error)
                # Else the failed attempt still holds the run's id.
                wandb.teardown()
        offline: Any = "disabled" if mode == "disabled" else "offline"
        settings = wandb.Settings(**quiet, mode=offline)
        self._run = wandb.init(**self._arguments, settings=settings)
        if offline == "offline":
            folder = relative(Path(self._run.settings.sync_dir))
            say(f"wandb: {problem}; writing offline, later: wandb sync {folder}")

    def _log(self, metrics: dict[str, Any], step: int) -> None:
        self._run.log({**metrics, "step": step}, step=step)

    def _log_samples(self, rows: Samples, step: int) -> None:
        import wandb

        columns, cells = as_table(rows)
        table = wandb.Table(columns=columns, data=cells, allow_mixed_types=True)
        self._run.log({"samples": table, "step": step}, step=step)

    def _finish(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)

    def _abandon(self) -> None:
        import wandb

        # Else it waits for its own process when Python ends, also for one that hangs or is gone.
        with contextlib.suppress(Exception):
            wandb.teardown()


def _offline_reason(url: str) -> str | None:
    """Say why wandb cannot be online, or return None when login and network seem to be there."""
    if not _has_login(url):
        return "no login (wandb login makes one)"
    if not _answers(url):
        return f"no answer from {url}"
    return None


def _has_login(url: str) -> bool:
    import wandb

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    if wandb.setup(wandb.Settings(silent=True)).settings.api_key:
        return True
    given = os.environ.get("NETRC")
    names = [Path(given)] if given else [Path.home() / name for name in (".netrc", "_netrc")]
    hosts = {urllib.parse.urlsplit(url).netloc, "api.wandb.ai"}
    for path in names:
        try:
            if hosts & set(netrc.netrc(path).hosts):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _answers(url: str) -> bool:
    """Say whether any HTTP answer comes within a few seconds, name look-up included."""
    answered = threading.Event()

    def probe() -> None:
        try:
            with urllib.request.urlopen(url, timeout=PROBE_TIMEOUT_S):
                answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except (OSError, ValueError):
            pass

    # A name look-up cannot be told to give up, so it is left behind in its thread.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_TIMEOUT_S)
    return answered.is_set()
