"""The run folder's config.yaml: what a run was made from, and whether that is still the same."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path
from typing import Any

from cygnet import __version__
from cygnet.config import TrainConfig, as_yaml, read_yaml
from cygnet.errors import UserError
from cygnet.files import write_atomic
from cygnet.progress import say

FREE_TO_CHANGE = {
    "resume", "checkpoint_every", "keep_checkpoints", "log_every", "threads",
    "parallel", "model_processes", "deepspeed", "timeout_s",
    "use_wandb", "wandb_project", "wandb_run_name", "tracker",
}  # fmt: skip
"""Settings that a resumed run may change: none decides more of the weights than rounding."""

TRAINING_FILES = (
    "config.yaml", "metrics.jsonl", "samples.jsonl", "plots", "checkpoints", "model",
    "eval.json", "eval_inputs.json", "tensorboard", "wandb",
)  # fmt: skip


def plain(settings: Any) -> dict[str, Any]:
    """Return a settings dataclass as a mapping of its fields."""
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}


def write_config(
    run: Path, origin: dict[str, Any], requested: TrainConfig, resolved: TrainConfig
) -> dict[str, Any]:
    """Write config.yaml and return what it says.

    Args:
        run: the run folder.
        origin: all that decides the result besides the training settings.
        requested: the training settings as asked for.
        resolved: the same with every choice made.
    """
    settings = {
        **origin,
        "requested": plain(requested),
        "train": plain(resolved),
        "version": __version__,
        "commit": _commit(),
    }
    write_atomic(run / "config.yaml", as_yaml(settings))
    return read_yaml(run / "config.yaml")


def changes(run: Path, origin: dict[str, Any], requested: TrainConfig) -> list[str]:
    """List how the settings differ from those that the run folder was made with."""
    recorded = read_yaml(run / "config.yaml")
    return _differences(recorded, {**origin, "requested": plain(requested)}, "")


def is_finished(run: Path, origin: dict[str, Any], requested: TrainConfig) -> bool:
    """Say whether the run folder holds the finished model of exactly these settings."""
    if not (run / "model" / "model.safetensors").exists():
        return False
    return not changes(run, origin, requested)


def keep_aside(run: Path) -> None:
    """Move what training wrote in a run folder to a new folder beside it; data stays."""
    number = 1
    while (kept := run.with_name(f"{run.name}.old-{number}")).exists():
        number += 1
    kept.mkdir()
    for name in TRAINING_FILES:
        if (run / name).exists():
            (run / name).rename(kept / name)
    say(f"{run}: the earlier run is kept as {kept}")


def make_room(run: Path, origin: dict[str, Any], requested: TrainConfig) -> None:
    """Let a run start, or go on, in this folder, and lose nothing that is there.

    Raises:
        UserError: the folder holds a run with other settings and `resume` is not `never`.
    """
    if not (run / "config.yaml").exists():
        if requested.resume == "must":
            raise UserError(f"{run}: --resume must, but there is no run here")
        return
    if requested.resume == "never":
        keep_aside(run)
        return
    changed = changes(run, origin, requested)
    if changed:
        raise UserError(
            f"{run}: holds a run with other settings ({'; '.join(changed)}); give another --out, "
            "or --resume never to keep that run aside and start anew"
        )


def _differences(before: dict[str, Any], now: dict[str, Any], where: str) -> list[str]:
    found = []
    for name, value in now.items():
        old = before.get(name)
        if name in FREE_TO_CHANGE:
            continue
        if isinstance(value, dict):
            inside = old if isinstance(old, dict) else {}
            found += _differences(inside, value, "" if name == "requested" else f"{where}{name}.")
        elif (list(value) if isinstance(value, tuple) else value) != old:
            found.append(f"{where}{name} was {old}, now {value}")
    return found


def _commit() -> str | None:
    """Return the git commit of this code where it runs from a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
