"""Tasks on a Ray cluster."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from cygnet.corpus.scale.config import ScaleConfig
from cygnet.corpus.scale.tasks import Tasks, limit_threads, run_task
from cygnet.errors import UserError, require
from cygnet.progress import Advance, say

MAX_ATTEMPTS = 3
"""How often a task is started when its worker or node dies."""
CONNECT_S = 10
"""How long a cluster's head may take to answer."""
MAX_IN_FLIGHT = 1000
"""Tasks that Ray is told of at a time."""


def run_ray(tasks: Tasks, scale: ScaleConfig, advance: Advance) -> None:
    """Run them on the cluster that this process is connected to, or else on `scale.ray_address`.

    Ray's own retries are off and counted here, since it repeats for ever what ran out of memory.

    Raises:
        UserError: there is no cluster; a task lost its worker or node too often.
        Exception: whatever a task raises, as itself.
    """
    ray = require("ray", "scale")
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, scale.ray_address)
    remote = ray.remote(_run_on_ray).options(
        num_cpus=scale.cpus_per_task,
        memory=round(scale.memory_per_task_gb * 2**30),
        max_retries=0,
    )
    waiting = list(reversed(range(tasks.count)))
    attempts = [0] * tasks.count
    running: dict[Any, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < (scale.workers or MAX_IN_FLIGHT):
                number = waiting.pop()
                attempts[number] += 1
                reference = remote.remote(
                    tasks.function, str(tasks.folder), number, scale.cpus_per_task
                )
                running[reference] = number
            (done,), _ = ray.wait(list(running))
            number = running.pop(done)
            if _is_lost(ray, done, tasks, number, attempts[number]):
                waiting.append(number)
            else:
                advance()
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if ours:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdigit() and "://" not in host:
            # Ray itself waits for minutes where nobody answers.
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        ray.init(address=address, logging_level="warning", log_to_driver=False)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"no Ray cluster at {address}: {reason}; start one (ray start --head), or give "
            "ray_address"
        ) from error


def _run_on_ray(function: str, folder: str, number: int, num_threads: int) -> None:
    limit_threads(num_threads)
    run_task(function, Path(folder), number)


def _is_lost(ray: Any, reference: Any, tasks: Tasks, number: int, attempt: int) -> bool:
    """Say whether a task that ended must run again, since its worker or node died.

    Raises:
        UserError: it died too often.
        Exception: what the task raised.
    """
    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None
    except ray.exceptions.RayError as error:
        reason = f"{type(error).__name__}: {str(error).partition('.')[0]}"
        if attempt == MAX_ATTEMPTS:
            raise UserError(
                f"{tasks.name(number)}: lost {attempt} times ({reason}); start again to go on, "
                "what is finished stays"
            ) from error
        say(f"{tasks.name(number)}: started again, for its worker died ({reason})")
        return True
    return False
