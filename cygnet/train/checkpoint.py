"""Checkpoints: everything a run needs to go on as if it had never stopped.

A checkpoint is a folder `step_00001200` with

    model.safetensors        full-precision weights
    optimizer.safetensors    the optimizer's tensors, and the state of torch's generator
    state.json               step, tokens, optimizer counters, loss scale, tracker ids
    manifest.json            a SHA-256 of each of the above

It is written under a temporary name, synced to disk and renamed, so a crash or a full disk leaves
the earlier ones as they were. On resume the newest one whose checksums hold is taken.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cygnet.errors import UserError
from cygnet.files import folder_atomic, sha256_file, write_json
from cygnet.progress import say

MODEL, OPTIMIZER, STATE, MANIFEST = (
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "manifest.json",
)


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Write `folder/step_<step>` and delete all but the newest `keep`.

    Args:
        folder: the run's `checkpoints` folder.
        step: optimizer steps done.
        model: its state dict is saved as it is (float32 masters).
        optimizer: its state must be tensors by parameter.
        state: whatever else the run needs, as JSON.
        keep: how many checkpoints stay.

    Raises:
        UserError: the disk is full or cannot be written; earlier checkpoints stand.
    """
    target = folder / f"step_{step:08d}"
    for stale in folder.glob(".step_*"):
        shutil.rmtree(stale)
    tensors, counters = _optimizer_state(model, optimizer)
    tensors["torch_generator"] = torch.get_rng_state()
    try:
        with folder_atomic(target) as temporary:
            save_file(_contiguous(model.state_dict()), temporary / MODEL)
            save_file(_contiguous(tensors), temporary / OPTIMIZER)
            write_json(temporary / STATE, {**state, "step": step, "optimizer": counters})
            checksums = {name: sha256_file(temporary / name) for name in (MODEL, OPTIMIZER, STATE)}
            write_json(temporary / MANIFEST, checksums)
    except (OSError, SafetensorError) as error:
        newest = max((path.name for path in folder.glob("step_*")), default=None)
        stands = f"{newest} still stands" if newest else "there is no earlier one"
        raise UserError(
            f"{target}: the checkpoint could not be written ({error}); {stands}. "
            "Free some space and run the same command again"
        ) from error
    # A damaged one may have a higher number; what was just written stays.
    others = [path for path in sorted(folder.glob("step_*")) if path != target]
    for old in others[: len(others) - (keep - 1)]:
        shutil.rmtree(old)
    return target


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], list[int]]:
    tensors = {
        f"{key}/{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }
    return tensors, [group.get("steps", 0) for group in optimizer.param_groups]


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that is whole; name each damaged one and pass it over."""
    for path in sorted(folder.glob("step_*"), reverse=True):
        problem = damage(path)
        if problem is None:
            return path
        say(f"{path}: damaged ({problem}), skipped")
    return None


def damage(checkpoint: Path) -> str | None:
    """Say what is wrong with a checkpoint's files, or return None when every checksum holds."""
    try:
        checksums = json.loads((checkpoint / MANIFEST).read_bytes())
        for name in (MODEL, OPTIMIZER, STATE):
            if sha256_file(checkpoint / name) != checksums[name]:
                return f"{name} does not have the checksum of {MANIFEST}"
    except OSError as error:
        return f"{Path(error.filename).name}: {error.strerror}"
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return f"{MANIFEST} is not readable"
    return None


def load_checkpoint(
    checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Load weights, optimizer and generator in place; return what `state` was at the save.

    Raises:
        UserError: it belongs to a model of other sizes.
    """
    device = next(model.parameters()).device
    try:
        model.load_state_dict(load_file(checkpoint / MODEL, device=str(device)))
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise UserError(f"{checkpoint}: made by a model of other sizes ({first})") from error
    tensors = load_file(checkpoint / OPTIMIZER, device=str(device))
    torch.set_rng_state(tensors.pop("torch_generator").cpu())
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for name, tensor in tensors.items():
        key, parameter = name.split("/", 1)
        optimizer.state[parameters[parameter]][key] = tensor
    state: dict[str, Any] = json.loads((checkpoint / STATE).read_bytes())
    for group, steps in zip(optimizer.param_groups, state.pop("optimizer"), strict=True):
        group["steps"] = steps
    return state
