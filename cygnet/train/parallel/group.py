"""The processes of a run: who is there, how they wait for each other, and which one is missing.

`torchrun`, `deepspeed` and Slurm start processes and tell each its place in environment variables.
A run of one process needs none of them and connects to nothing.
"""

from __future__ import annotations

import atexit
import itertools
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, TCPStore
from torch.distributed.rendezvous import rendezvous

from cygnet.errors import UserError
from cygnet.progress import only_rank_zero_speaks

CONNECT_TIMEOUT_S = 300.0
PREPARATION_TIMEOUT = timedelta(days=7)
"""How long the others wait while rank 0 prepares data."""
HEARTBEAT_S = 1.0
STORE_ANSWERS_S = 10.0
"""How long rank 0's store may take to answer; that of a stopped rank 0 never does."""
SHARED_FOLDER_S = 30.0
"""How long a network file system may take to show one machine what another wrote."""
_ADDRESS = "cygnet/address"
_turns = itertools.count()
_shared: list[Any] = []
"""The store of the connected processes."""


@dataclass(frozen=True)
class World:
    """Where this process stands among all processes of the run."""

    rank: int
    """Its number; 0 speaks, writes and prepares."""
    size: int
    """How many processes there are."""
    local_rank: int
    """Its number on this machine, which is the number of its GPU."""
    local_size: int
    """How many processes share this machine."""


def world() -> World:
    """Read this process's place from the environment; without one it is alone.

    Raises:
        UserError: there are others, but this one does not know its number among them.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size > 1 and "RANK" not in os.environ:
        raise UserError(
            f"WORLD_SIZE is {size} but RANK is not set: start the processes with torchrun or "
            "deepspeed, give each its RANK, or unset WORLD_SIZE"
        )
    local_size = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or size
    return World(
        rank=int(os.environ.get("RANK", 0)),
        size=size,
        local_rank=int(os.environ.get("LOCAL_RANK", 0)),
        local_size=int(local_size),
    )


def connect(timeout_s: float) -> World:
    """Connect all processes, once; gloo between processors, NCCL between GPUs.

    Args:
        timeout_s: how long a process waits for the others inside a step before it gives up.

    Raises:
        UserError: the others cannot be found.
    """
    place = world()
    if place.size == 1 or dist.is_initialized():
        return place
    only_rank_zero_speaks(place.rank)
    has_gpus = torch.cuda.is_available()
    if has_gpus:
        torch.cuda.set_device(place.local_rank)
    try:
        store = _store(place)
        _show_life(store.clone(), place.rank)
        atexit.register(_leave)
        _shared[:] = [store]
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if has_gpus else "gloo",
            store=store,
            rank=place.rank,
            world_size=place.size,
            timeout=timedelta(seconds=timeout_s),
        )
    except (ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"rank {place.rank} of {place.size} cannot connect to the others ({error}); start all "
            "of them with torchrun or deepspeed"
        ) from error
    return place


def be_a_group() -> None:
    """Make a process that is alone a group of one, for what works in groups only."""
    if not dist.is_initialized():
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed reads it
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        atexit.register(_leave)


def is_restart() -> bool:
    """Say whether torchrun or Slurm has started this same job before."""
    names = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return any(os.environ.get(name, "0") != "0" for name in names)


def disconnect() -> None:
    """Leave the group, if there is one; the others are not waited for."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _leave() -> None:
    """End torch's threads while the interpreter is still open.

    One that comes back from torch's code into a closed interpreter aborts the process. A thread
    that waits for a process that is gone is not waited for long.
    """
    leaving = threading.Thread(target=disconnect, daemon=True)
    leaving.start()
    leaving.join(STORE_ANSWERS_S)


@contextmanager
def first(what: str, timeout_s: float) -> Iterator[None]:
    """Let rank 0 prepare something while the others wait; then they do it too and find it done.

    Args:
        what: names the work: the same in every process, and once in a run.
        timeout_s: see `connect`.

    Raises:
        UserError: rank 0 failed; in the other processes.
    """
    place = connect(timeout_s)
    if place.size == 1:
        yield
        return
    store, key = _default_store(), f"cygnet/prepared/{what}"
    if place.rank:
        store.wait([key], PREPARATION_TIMEOUT)
        if store.get(key) != b"well":
            raise UserError(f"rank {place.rank} stops: rank 0 could not prepare {what}")
        yield
        return
    outcome = "badly"
    try:
        yield
        outcome = "well"
    finally:
        store.set(key, outcome)


def gather(value: Any) -> list[Any]:
    """Return what every process gave, in the order of ranks."""
    size = world().size
    if size == 1:
        return [value]
    values: list[Any] = [None] * size
    dist.all_gather_object(values, value)
    return values


def on_rank_zero(function: Callable[[], Any]) -> Any:
    """Return in every process what a function gives in rank 0, which alone calls it.

    Raises:
        UserError: in every process, where the function raised one.
    """
    if world().size == 1:
        return function()
    # The others wait at the store, which takes longer to lose its patience than a collective.
    turn = f"cygnet/turn/{next(_turns)}"
    result: list[Any] = [None, None]
    if world().rank == 0:
        try:
            result = [function(), None]
        except UserError as error:
            result = [None, str(error)]
        _default_store().set(turn, "done")
    else:
        _default_store().wait([turn], PREPARATION_TIMEOUT)
    value, problem = gather(result)[0]
    if problem is not None:
        raise UserError(problem)
    return value


def any_of(flag: bool) -> bool:
    """Say whether the flag is set in any process."""
    return largest(flag) > 0


def largest(value: float) -> float:
    """Return the largest that any process gave."""
    if world().size == 1:
        return value
    values = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return float(values)


def check_shared(folder: Path) -> None:
    """Make sure that what rank 0 writes to a folder is there for all processes.

    Raises:
        UserError: in every process; names those that do not see it.
    """
    if world().size == 1:
        return
    mark = folder / f".shared_{on_rank_zero(lambda: secrets.token_hex(4))}"
    if world().rank == 0:
        mark.touch()
    gather(None)
    give_up = time.monotonic() + SHARED_FOLDER_S
    while not mark.exists() and time.monotonic() < give_up:
        time.sleep(0.1)
    blind = [str(rank) for rank, sees in enumerate(gather(mark.exists())) if not sees]
    if world().rank == 0:
        mark.unlink()
    if blind:
        raise UserError(
            f"{folder}: rank {', '.join(blind)} does not see what rank 0 writes there; give an "
            "--out on a file system that all machines share"
        )


def note_step(step: int) -> None:
    """Leave word that this process begins a step, so that a hung one can be named."""
    if world().size > 1:
        _default_store().set(f"cygnet/step/{world().rank}", str(step))


@contextmanager
def explained_time_outs(step: Callable[[], int]) -> Iterator[None]:
    """Say which process is missing where this one has waited for it in vain.

    Raises:
        UserError: in place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if world().size == 1 or not _is_about_others(error):
            raise
        raise UserError(
            f"rank {world().rank}, step {step()}: the other processes do not answer ({missing()}); "
            "the last checkpoint stands, and the same command goes on from there"
        ) from error


def _is_about_others(error: RuntimeError) -> bool:
    words = ("gloo", "nccl", "timed out", "timeout", "connection", "peer")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


def missing() -> str:
    """Say which processes show no life, or are behind the others: for a time-out's message."""
    found: list[str] = []
    asking = threading.Thread(target=lambda: found.append(_ask_who_is_missing()), daemon=True)
    asking.start()
    asking.join(STORE_ANSWERS_S)
    return found[0] if found else "rank 0 is stopped"


def _ask_who_is_missing() -> str:
    store = _default_store()
    try:
        before = _read_all(store, "heart")
        time.sleep(2.5 * HEARTBEAT_S)
        after = _read_all(store, "heart")
        begun = _read_all(store, "step")
    except RuntimeError:
        return "rank 0 is gone"
    newest = max((step for step in begun if step is not None), default=0)
    found = []
    for rank, (heart, step) in enumerate(zip(after, begun, strict=True)):
        at = "before its first step" if step is None else f"at step {step}"
        if heart == before[rank]:
            found.append(f"rank {rank} is gone or stopped, {at}")
        elif step is None or step < newest:
            found.append(f"rank {rank} is still {at}")
    return ", ".join(found) or f"all ranks began step {newest}"


def _read_all(store: Any, what: str) -> list[int | None]:
    keys = [f"cygnet/{what}/{rank}" for rank in range(world().size)]
    return [int(store.get(key)) if store.check([key]) else None for key in keys]


def _show_life(store: Any, rank: int) -> None:
    """Count up at the store for as long as this process runs; for the end see `_leave`."""
    is_over = threading.Event()

    def beat() -> None:
        for count in itertools.count():
            try:
                store.set(f"cygnet/heart/{rank}", str(count))
            except RuntimeError:
                return  # the store is gone, and so is the run
            if is_over.wait(HEARTBEAT_S):
                return

    def end() -> None:
        is_over.set()
        beating.join(STORE_ANSWERS_S)

    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    atexit.register(end)


def _default_store() -> Any:
    assert _shared, "the processes are not connected"
    return _shared[0]


def _store(place: World) -> Any:
    """Return the key-value store through which the processes find each other.

    torchrun lends the processes its own store, and after a restart it holds the addresses of the
    dead attempt. So rank 0 opens a new one for each attempt and leaves its address in torchrun's;
    a process that finds the address of a dead attempt looks again.
    """
    lent, _, _ = next(rendezvous("env://", place.rank, place.size))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return lent
    timeout = timedelta(seconds=CONNECT_TIMEOUT_S)
    if place.rank == 0:
        host, word = _own_address(), secrets.token_hex(8)
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
        store.set("cygnet/word", word)
        lent.set(_ADDRESS, f"{host} {store.port} {word}")
        return store
    give_up = time.monotonic() + CONNECT_TIMEOUT_S
    while time.monotonic() < give_up:
        lent.wait([_ADDRESS], timeout)
        host, port, word = lent.get(_ADDRESS).decode().split()
        try:
            with socket.create_connection((host, int(port)), timeout=5):
                pass
            store = TCPStore(host, int(port), is_master=False, timeout=timeout)
            if store.check(["cygnet/word"]) and store.get("cygnet/word").decode() == word:
                return store
        except (OSError, RuntimeError):
            pass
        time.sleep(0.1)
    raise RuntimeError(f"rank 0 did not open its store within {CONNECT_TIMEOUT_S:.0f} s")


def _own_address() -> str:
    """Return the address under which the machine of torchrun's store can reach this one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
        return str(probe.getsockname()[0])
