"""Where tasks run, and how many at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cygnet.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """Where the tasks run, and how many at a time.

    Raises:
        UserError: a value is out of its range.
    """

    executor: Literal["local", "slurm", "ray"] = "local"
    """local: processes of this machine. slurm: one job array. ray: tasks of a Ray cluster."""
    workers: int = 0
    """Tasks at a time; 0 for as many as this process may use cores, or as the cluster allows."""
    cpus_per_task: int = 1
    """Slurm, Ray: cores, and threads, for each task."""
    memory_per_task_gb: float = 2.0
    """Slurm, Ray: memory reserved for each task."""
    partition: str = ""
    """Slurm: where to run; empty for the cluster's default."""
    time: str = ""
    """Slurm: limit for one task, such as 2:00:00; empty for the partition's default."""
    qos: str = ""
    """Slurm: quality of service; empty for the default."""
    account: str = ""
    """Slurm: who pays; empty for the default."""
    sbatch_arguments: tuple[str, ...] = ()
    """Slurm: further options of sbatch, such as --constraint=avx512."""
    setup: str = ""
    """Slurm: a line of shell that runs before each task, such as `module load python`."""
    poll_s: float = 10.0
    """Slurm: how often the queue is asked."""
    ray_address: str = "auto"
    """Ray: the head's address; auto for RAY_ADDRESS or the cluster that this machine is part of."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("workers", 0, 100_000),
            ("cpus_per_task", 1, 1024),
            ("memory_per_task_gb", 0.1, 10_000),
            ("poll_s", 0.1, 3600),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"{name} is {value}; give a value from {low} to {high}")
