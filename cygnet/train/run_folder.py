"""The run folder's config.yaml: what a run was made from, and whether that is still the same."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cygnet import __version__
from cygnet.config import TrainConfig, as_yaml, plain, read_yaml, stages_of_run
from cygnet.errors import UserError
from cygnet.files import read_json, sha256_file, write_atomic
from cygnet.progress import say

FREE_TO_CHANGE = {
    "resume", "checkpoint_every", "keep_checkpoints", "log_every", "threads",
    "parallel", "model_processes", "deepspeed", "timeout_s",
    "use_wandb", "wandb_project", "wandb_run_name", "tracker",
}  # fmt: skip
"""Settings that a resumed run may change: none decides more of the weights than rounding."""

UNNAMED = {"requested", "settings"}
"""Sections whose settings are told by their own names alone."""

HASHED = {
    "data": "the data",
    "instructions": "the conversations",
    "pairs": "the pairs",
    "heldout_pairs": "the held-out pairs",
    "tokenizer": "the tokenizer",
    "start": "the model to start from",
    "teacher": "the teacher",
    "model": "the model",
    "heldout.data": "the held-out text",
    "heldout.instructions": "the held-out conversations",
    "heldout.pairs": "the held-out pairs",
}
"""What an input is that is recorded by its hash."""

_HASH = re.compile("[0-9a-f]{64}")

TRAINING_FILES = (
    "config.yaml", "metrics.jsonl", "samples.jsonl", "plots", "checkpoints", "model",
    "adapter", "eval.json", "eval_inputs.json", "reward.json", "tensorboard", "wandb",
)  # fmt: skip


SOURCES = "inputs.sources."
"""Where a run keeps the hashes of a person's own code: rewards, environments."""


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
    return differences(recorded, {**origin, "requested": plain(requested)})


def is_finished(run: Path, origin: dict[str, Any], requested: TrainConfig) -> bool:
    """Say whether the run folder holds the finished model of exactly these settings."""
    if not (run / "model" / "model.safetensors").exists():
        return False
    return not changes(run, origin, requested)


def hold(run: Path) -> int:
    """Keep other runs out of a folder until the handle that is returned is closed.

    The end of this process, however it comes, closes it too.

    Raises:
        UserError: another run is writing there, or the folder cannot be made.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        handle = os.open(run, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{run}: cannot be written to ({error.strerror})") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(
            f"{run}: another run is writing there; wait for its end or give another --out"
        ) from None
    except OSError:
        pass  # a file system that has no locks
    return handle


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


def stage_folders(run: Path, stages: Sequence[str]) -> dict[str, Path]:
    """Return the folder of each stage of a run that is there.

    The stages of a whole run have folders of their own in it; where a single stage was trained,
    the run folder itself is the stage's.
    """
    own = own_stage(run)
    inside = {name: run / name for name in stages if (run / name).is_dir()}
    return ({own: run} if own is not None else {}) | inside


def own_stage(run: Path) -> str | None:
    """Return the stage that was trained in a run folder itself; none of a whole run."""
    config = run / "config.yaml"
    return read_yaml(config).get("stage") if config.exists() else None


def data_of(model: Path) -> Path | None:
    """Return the folder `instructions` or `data` that a model's run learnt from.

    None where that is not known, or the folder is gone or has changed since.
    """
    run = model.parent
    stage = own_stage(run)
    if stage is None:
        inside = (run / name for name in reversed(stages_of_run(run)))
        last = next((folder for folder in inside if own_stage(folder) == folder.name), None)
        return data_of(last / "model") if last else None
    known = [read_yaml(run / "config.yaml").get("inputs") or {}]
    for place in (run, run.parent):
        made = [read_json(place / name / "inputs.json") for name in ("pairs", "prompts")]
        hashes = {inputs.get(key) for inputs in known + made for key in ("instructions", "data")}
        for name in ("instructions", "data"):
            manifest = place / name / "manifest.json"
            if manifest.is_file() and sha256_file(manifest) in hashes:
                return place / name
    return None


def claim_run_folder(run: Path, origin: dict[str, Any], requested: TrainConfig) -> None:
    """Let a run start, or go on, in this folder, and lose nothing that is there.

    Raises:
        UserError: the folder holds a run with other settings and `resume` is not `never`. With
            `must`, the code of a reward or an environment may have been mended since.
    """
    if not (run / "config.yaml").exists():
        if requested.resume == "must":
            raise UserError(f"{run}: --resume must, but there is no run here")
        return
    if requested.resume == "never":
        keep_aside(run)
        return
    changed = changes(run, origin, requested)
    is_mended = bool(changed) and all(change.startswith(SOURCES) for change in changed)
    if is_mended and requested.resume == "must":
        say(f"{run}: going on, though {'; '.join(changed)}")
    elif changed:
        mended = ", --resume must to go on with it as it is now" if is_mended else ""
        raise UserError(
            f"{run}: holds a run with other settings ({'; '.join(changed)}); give another --out"
            f"{mended}, or --resume never to keep that run aside and start anew"
        )


def differences(before: dict[str, Any], now: dict[str, Any], where: str = "") -> list[str]:
    """List in words how what is now differs from what was recorded before.

    Settings are told with both values, what is known by its hash alone by what it is.
    """
    found = []
    for name, value in now.items():
        old = before.get(name)
        if name in FREE_TO_CHANGE:
            continue
        if isinstance(value, dict):
            inside = old if isinstance(old, dict) else {}
            found += differences(inside, value, "" if name in UNNAMED else f"{where}{name}.")
        elif value != old:
            found.append(_difference(f"{where}{name}", old, value))
    return found


def _difference(name: str, old: Any, new: Any) -> str:
    if not (_is_hash(old) or _is_hash(new)):
        return f"{name} was {old}, now {new}"
    what = HASHED.get(name.removeprefix("inputs."), name)
    if old is None:
        return f"{what} was not there before"
    return f"{what} changed" if new is not None else f"{what} is no longer there"


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and bool(_HASH.fullmatch(value))


def _commit() -> str | None:
    """Return the git commit of this code where it runs from a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
