"""Checkpoints: everything a run needs to go on as if it had never stopped.

A checkpoint is a folder `step_00001200` with

    rank_00000.safetensors   full-precision weights and optimizer state, as far as rank 0 holds
                             them; so for each process
    rank_00000.json          a SHA-256 of that file
    state.json               step, tokens, optimizer counters, loss scale, tracker ids, generator
    manifest.json            how many processes wrote it, and a SHA-256 of state.json

A tensor is kept under `kind/parameter`; a part of one under `kind/parameter@dim:start`, and the
parts join to the whole whatever process wrote them. So a checkpoint can be loaded by any number of
processes that cut the model in any other way.

The tensors are copied, and a thread writes the copies while training goes on. All is written under
a hidden name, synced to disk and renamed by rank 0 when every process's file is there, so a crash
of any process or a full disk leaves the earlier ones as they were. On resume the newest one whose
checksums hold is taken.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cygnet.errors import UserError
from cygnet.files import fsync, read_json, sha256_file, write_json
from cygnet.progress import say

STATE, MANIFEST = "state.json", "manifest.json"
KEPT = "kept"
POLL_S = 0.02
Read = Callable[[str, int, int, int], Tensor]
"""(kind/parameter, dim, start, length) -> that part of the tensor."""


@dataclass(frozen=True)
class Piece:
    """A tensor that a process writes, or its part of one.

    Attributes:
        kind: `model`, or the optimizer's name for its state.
        parameter: name of the parameter in the whole model.
        tensor: the part.
        dim: dimension in which the whole is cut.
        start: where the part begins in it.
        size: the whole's size in it.
    """

    kind: str
    parameter: str
    tensor: Tensor
    dim: int = 0
    start: int = 0
    size: int | None = None

    @property
    def key(self) -> str:
        """Its name in the file."""
        name = f"{self.kind}/{self.parameter}"
        is_whole = self.size is None or self.tensor.shape[self.dim] == self.size
        return name if is_whole else f"{name}@{self.dim}:{self.start}"


class CheckpointWriter:
    """Writes checkpoints beside the training that goes on.

    Args:
        folder: the run's `checkpoints` folder, which all processes see.
        keep: how many checkpoints stay.
        rank, size: this process among those of the run.
        attempt: a word that the processes share and that no earlier attempt had.
        timeout_s: how long rank 0 waits for the other processes' files.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        rank: int = 0,
        size: int = 1,
        attempt: str = "0",
        timeout_s: float = 600.0,
    ) -> None:
        self.folder, self.keep, self.rank, self.size = folder, keep, rank, size
        self.attempt, self.timeout_s = attempt, timeout_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        if rank == 0:
            for stale in folder.glob(".step_*"):
                shutil.rmtree(stale, ignore_errors=True)

    def save(
        self, step: int, pieces: Iterable[Piece], state: dict[str, Any], kept: bool = False
    ) -> None:
        """Copy the pieces, and write them as `step_<step>` in the background.

        Waits first for the checkpoint before this one.

        Args:
            step: optimizer steps done.
            pieces: what this process holds.
            state: whatever else the run needs, as JSON; that of rank 0 is kept.
            kept: it stays, however many come after it.

        Raises:
            UserError: the checkpoint before could not be written; earlier ones stand.
        """
        self.wait()
        tensors = {
            piece.key: piece.tensor.detach().to("cpu", copy=True).contiguous() for piece in pieces
        }
        state = {**state, "step": step, "generator": torch.get_rng_state().tolist(), KEPT: kept}
        self._writing = self._thread.submit(self._write, step, tensors, state)

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is there.

        Raises:
            UserError: it could not be written; earlier ones stand.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        target = self.folder / f"step_{step:08d}"
        hidden = self.folder / f".{target.name}.{self.attempt}"
        name = f"rank_{self.rank:05d}"
        try:
            hidden.mkdir(parents=True, exist_ok=True)
            path = hidden / f"{name}.safetensors"
            save_file(tensors, path)
            fsync(path)
            write_json(hidden / f"{name}.json", {"sha256": sha256_file(path)})
            if self.rank == 0:
                write_json(hidden / STATE, state)
                manifest = {"processes": self.size, "state_sha256": sha256_file(hidden / STATE)}
                write_json(hidden / MANIFEST, manifest)
                self._wait_for_others(hidden)
                _rename(hidden, target)
                # A damaged one may have a higher number; what was just written stays.
                others = [
                    p for p in sorted(self.folder.glob("step_*"))
                    if p != target and not read_json(p / STATE).get(KEPT)
                ]  # fmt: skip
                for old in others[: max(len(others) - (self.keep - 1), 0)]:
                    shutil.rmtree(old)
        except (OSError, SafetensorError) as error:
            if self.size == 1:
                shutil.rmtree(hidden, ignore_errors=True)
            elif self.rank:
                with suppress(OSError):  # rank 0 need not wait for this file
                    write_json(hidden / f"{name}.json", {"failed": str(error)})
            newest = max((path.name for path in self.folder.glob("step_*")), default=None)
            stands = f"{newest} still stands" if newest else "there is no earlier one"
            raise UserError(
                f"{target}: the checkpoint could not be written ({error}); {stands}. "
                "Free some space and run the same command again"
            ) from error

    def _wait_for_others(self, hidden: Path) -> None:
        give_up = time.monotonic() + self.timeout_s
        waiting = set(range(self.size))
        while waiting:
            for rank in sorted(waiting):
                written = read_json(hidden / f"rank_{rank:05d}.json")
                if "failed" in written:
                    raise OSError(f"rank {rank}: {written['failed']}")
                if written:
                    waiting.remove(rank)
            if waiting and time.monotonic() > give_up:
                ranks = ", ".join(map(str, sorted(waiting)))
                raise OSError(f"nothing from rank {ranks} for {self.timeout_s:.0f} s")
            if waiting:
                time.sleep(POLL_S)


def _rename(hidden: Path, target: Path) -> None:
    fsync(hidden)
    if target.exists():
        shutil.rmtree(target)
    os.rename(hidden, target)
    fsync(target.parent)


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
    name = MANIFEST
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_bytes())
        sums = {STATE: manifest["state_sha256"]}
        for rank in range(manifest["processes"]):
            name = f"rank_{rank:05d}.json"
            sums[f"rank_{rank:05d}.safetensors"] = json.loads((checkpoint / name).read_bytes())[
                "sha256"
            ]
    except OSError as error:
        return f"{Path(error.filename).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError):
        return f"{name} is not readable"
    for name, checksum in sums.items():
        try:
            if sha256_file(checkpoint / name) != checksum:
                return f"{name} does not have its checksum"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


class Checkpoint:
    """A checkpoint on disk, open for reading; a context manager.

    Attributes:
        state: what `save` was given as state, with `step`.
        generator: state of torch's generator on the CPU of rank 0. That on its GPU, from which
            dropout draws there, is in `state`.
        keys: `kind/parameter` of every tensor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state: dict[str, Any] = read_json(path / STATE)
        self.generator = torch.tensor(self.state.pop("generator"), dtype=torch.uint8)
        self._files = ExitStack()
        self._parts: dict[str, list[tuple[int, int, Any, str]]] = {}
        for file in sorted(path.glob("rank_*.safetensors")):
            opened = self._files.enter_context(safe_open(file, "pt"))
            for key in opened.keys():  # noqa: SIM118 (no mapping)
                name, _, place = key.partition("@")
                dim, start = (int(n) for n in place.split(":")) if place else (0, 0)
                self._parts.setdefault(name, []).append((dim, start, opened, key))

    @property
    def keys(self) -> set[str]:
        """`kind/parameter` of every tensor."""
        return set(self._parts)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exception: object) -> None:
        self._files.close()

    def whole(self, kind: str) -> dict[str, Tensor]:
        """Return every tensor of a kind by its parameter's name."""
        names = [key for key in self._parts if key.startswith(f"{kind}/")]
        return {name.partition("/")[2]: self._join(name) for name in names}

    def read(self, name: str, dim: int, start: int, length: int) -> Tensor:
        """Return positions `start` to `start + length` in `dim` of the tensor `kind/parameter`.

        Raises:
            UserError: there is no such tensor, or it is smaller.
        """
        if name not in self._parts:
            raise UserError(f"{self.path}: made by a model of other sizes (no {name})")
        # Only what is asked for is read: each of many processes takes its part of a large file.
        found, begin, size = [], 0, 0
        for cut_dim, at, file, key in self._sorted(name):
            part = file.get_slice(key)
            here, begin = part.get_shape()[dim], at if cut_dim == dim else 0
            size = max(size, begin + here)
            low, high = max(start - begin, 0), min(start + length - begin, here)
            if low < high:
                found.append(part[(slice(None),) * dim + (slice(low, high),)])
        if start + length > size:
            raise UserError(
                f"{self.path}: made by a model of other sizes ({name} has {size} in dimension "
                f"{dim}, {start + length} are needed)"
            )
        if not found:
            return self._join(name).narrow(dim, start, length)
        return torch.cat(found, dim=self._sorted(name)[0][0])

    def _join(self, name: str) -> Tensor:
        parts = self._sorted(name)
        return torch.cat([file.get_tensor(key) for _, _, file, key in parts], dim=parts[0][0])

    def _sorted(self, name: str) -> list[tuple[int, int, Any, str]]:
        """Return the parts of a tensor, (dim, start, file, key), in their order."""
        return sorted(self._parts[name], key=lambda part: part[:2])
