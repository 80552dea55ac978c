"""Where metrics go: metrics.jsonl always, Weights & Biases or TensorBoard where asked for.

A tracker never ends a run and never waits for a person: what is missing is said in one line, and
training goes on.
"""

from __future__ import annotations

import json
import math
import netrc
import os
import secrets
import threading
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Protocol

from cygnet.config import TrainConfig
from cygnet.files import write_atomic
from cygnet.progress import say

METRICS = "metrics.jsonl"
WANDB_RUN_ID = "wandb_run_id"
PROBE_TIMEOUT_S = 4.0
INIT_TIMEOUT_S = 10.0
FINISH_TIMEOUT_S = 60.0


class Tracker(Protocol):
    """Takes the metrics of a run. No method raises."""

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Take the metrics of one step."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what a resumed run must hand back to `make_trackers`; JSON, unique keys."""
        ...

    def finish(self, exit_code: int) -> None:
        """Write out what is left. `exit_code` is 0 for a run that ended well."""
        ...


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
        trackers.append(TensorBoardTracker(run_dir / "tensorboard", step))
    return trackers


class JsonlTracker:
    """One JSON object a logged step, appended to a file and flushed at once.

    On opening, lines beyond `step` (a run that was killed after its last checkpoint) and a
    half-written line are dropped, so that no step is there twice. At step 0 the file starts anew.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        self.path = path
        self._broken = False
        try:
            self._repair(step)
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by finish)
        except OSError as error:
            self._give_up(error)

    def _repair(self, step: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        lines = content.splitlines(keepends=True) if step > 0 else []
        kept = b"".join(line for line in lines if _is_whole(line, step))
        if kept != content:
            write_atomic(self.path, kept)

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Append one line; numbers that are not finite become null, which JSON can hold."""
        if self._broken:
            return
        values = {name: _json_value(value) for name, value in {"step": step, **metrics}.items()}
        try:
            self._file.write(json.dumps(values, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            self._give_up(error)

    def state(self) -> dict[str, Any]:
        """Return nothing: the file itself is the state."""
        return {}

    def finish(self, exit_code: int) -> None:
        """Close the file."""
        if not self._broken:
            try:
                self._file.close()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._broken = True
        say(f"{self.path}: cannot be written ({error.strerror}); training goes on without it")


def _is_whole(line: bytes, step: int) -> bool:
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class WandbTracker:
    """Weights & Biases: online with a login and network, in a folder to sync later without.

    A resumed run keeps its id. Nothing is ever asked on standard input.
    """

    def __init__(
        self, config: TrainConfig, run_dir: Path, resolved: dict[str, Any], state: dict[str, Any]
    ) -> None:
        self.run_id: str = state.get(WANDB_RUN_ID) or secrets.token_hex(4)
        self._run: Any = None
        try:
            import wandb

            wandb.init  # noqa: B018 (a folder named wandb imports as an empty package)
        except (ImportError, AttributeError):
            say("wandb is not installed: pip install 'cygnet[wandb]'; training goes on without it")
            return
        arguments = {
            "project": config.wandb_project,
            "name": config.wandb_run_name or run_dir.resolve().name,
            "config": resolved,
            "dir": str(run_dir),
            "id": self.run_id,
        }
        try:
            self._open(arguments)
        except Exception as error:  # noqa: BLE001 (foreign code must not end a run)
            self._drop(error)

    def _open(self, arguments: dict[str, Any]) -> None:
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
                self._run = wandb.init(**arguments, resume="allow", settings=settings)
                say(f"wandb: {self._run.url}")
                return
            except Exception as error:  # noqa: BLE001 (whatever it is, there is a way without)
                problem = _first_line(error)
                # Else the failed attempt still holds the run's id.
                wandb.teardown()
        offline: Any = "disabled" if mode == "disabled" else "offline"
        settings = wandb.Settings(**quiet, mode=offline)
        self._run = wandb.init(**arguments, settings=settings)
        if offline == "offline":
            say(f"wandb: {problem}; writing offline, later: wandb sync {self._folder()}")

    def _folder(self) -> str:
        folder = Path(self._run.settings.sync_dir)
        return os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Hand the metrics over; sending them happens in another process."""
        if self._run is None:
            return
        try:
            self._run.log({**metrics, "step": step}, step=step)
        except Exception as error:  # noqa: BLE001 (foreign code must not end a run)
            self._drop(error)

    def state(self) -> dict[str, Any]:
        """Return the id of the run."""
        return {WANDB_RUN_ID: self.run_id}

    def finish(self, exit_code: int) -> None:
        """Close the run; what cannot be sent within a minute stays on disk."""
        if self._run is None:
            return
        try:
            self._run.finish(exit_code=exit_code)
        except Exception as error:  # noqa: BLE001 (foreign code must not end a run)
            self._drop(error)

    def _drop(self, error: Exception) -> None:
        self._run = None
        say(f"wandb: {_first_line(error)}; training goes on without it")


class TensorBoardTracker:
    """TensorBoard event files; `tensorboard --logdir RUN` shows them."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter

            # Events of steps that a resumed run makes again are hidden.
            purge = step + 1 if step else None
            self._writer = SummaryWriter(str(folder), purge_step=purge)
        except ImportError:
            say(
                "tensorboard is not installed: pip install 'cygnet[tensorboard]'; "
                "training goes on without it"
            )
        except OSError as error:
            self._drop(error)

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Write each number as a scalar."""
        if self._writer is None:
            return
        try:
            for name, value in metrics.items():
                if isinstance(value, int | float) and name != "step":
                    self._writer.add_scalar(name, value, step)
            self._writer.flush()
        except Exception as error:  # noqa: BLE001 (foreign code must not end a run)
            self._drop(error)

    def state(self) -> dict[str, Any]:
        """Return nothing: the folder itself is the state."""
        return {}

    def finish(self, exit_code: int) -> None:
        """Close the file."""
        if self._writer is None:
            return
        try:
            self._writer.close()
        except Exception as error:  # noqa: BLE001 (foreign code must not end a run)
            self._drop(error)

    def _drop(self, error: Exception) -> None:
        self._writer = None
        say(f"tensorboard: {_first_line(error)}; training goes on without it")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


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
