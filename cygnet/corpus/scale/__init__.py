"""One list of tasks on all cores of this machine, on a Slurm cluster or on a Ray cluster.

A task is a number from 0 up. What it does is a function that is named, `module:function`, with the
signature `(folder: Path, number: int) -> None`. It reads all it needs from `folder`, writes its
result there atomically, and does nothing where the result is already there. So a run that was
stopped anywhere continues when it is started again, on another executor too, and no executor has to
remember what is done.

On a cluster each node needs the same environment and sees `folder` under the same path.
"""

from __future__ import annotations

from pathlib import Path

from cygnet.corpus.scale.config import ScaleConfig
from cygnet.corpus.scale.local import run_local
from cygnet.corpus.scale.ray import run_ray
from cygnet.corpus.scale.slurm import run_slurm
from cygnet.corpus.scale.tasks import Tasks
from cygnet.progress import progress

__all__ = ["ScaleConfig", "run_tasks"]


def run_tasks(
    function: str, folder: Path, num_tasks: int, scale: ScaleConfig, title: str, of: str = ""
) -> None:
    """Run the tasks 0 to `num_tasks` - 1, each once, in any order; return when all are done.

    On the first error the rest is stopped. What is finished stays, so that the next call goes on.

    Args:
        function: `module:function`, importable wherever a task may run; see the module docstring.
        folder: what each task gets.
        num_tasks: how many there are.
        scale: where and how many at a time.
        title: a word or two for the progress bar and for errors.
        of: a hash of what the tasks are about; Slurm's job of other tasks is not waited for.

    Raises:
        UserError: a worker was killed; the cluster cannot be reached or refuses; on Slurm, any
            error of a task.
        Exception: whatever a task raises, as itself (local, Ray).
    """
    if not num_tasks:
        return
    tasks = Tasks(function, folder.resolve(), num_tasks, title, of)
    run = {"local": run_local, "slurm": run_slurm, "ray": run_ray}[scale.executor]
    with progress(title, num_tasks) as advance:
        run(tasks, scale, advance)
