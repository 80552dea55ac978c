"""Tasks as one Slurm job array.

An element of the array leaves NUMBER.done or NUMBER.error for each of its tasks beside its log,
since a cluster without accounting says nothing about a job that has left the queue.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

from cygnet.corpus.scale.config import ScaleConfig
from cygnet.corpus.scale.tasks import Tasks, limit_threads, run_task
from cygnet.errors import UserError
from cygnet.files import read_json, write_atomic, write_json
from cygnet.progress import Advance, say

SETTLE_POLLS = 3
"""A shared disk may show a file some seconds after the job that wrote it has left the queue."""


def run_slurm(tasks: Tasks, scale: ScaleConfig, advance: Advance) -> None:
    """Submit an array, wait for its end, and cancel it if the waiting is broken off.

    A job of an earlier run whose waiting process was killed is waited for instead.

    Raises:
        UserError: Slurm cannot be reached or refuses; tasks failed or were killed (with the log).
    """
    logs = tasks.folder / "slurm" / tasks.function.replace(":", ".")
    job = _job_of_earlier_run(tasks, logs, scale.poll_s)
    if job is None:
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir(parents=True)
        job = _submit(tasks, scale, logs)
    else:
        say(f"{tasks.title}: job {job} of an earlier run is still at it")
    all_done = False
    try:
        all_done = _wait_for_job(job, tasks, logs, scale.poll_s, advance)
    finally:
        if not all_done:
            _cancel(job, logs)
    if not all_done:
        raise _failure(tasks, logs)


def _job_of_earlier_run(tasks: Tasks, logs: Path, poll_s: float) -> str | None:
    """Return the array of a run whose waiting process was killed, if it goes on."""
    record = read_json(logs / "job.json")
    if not record:
        return None
    job = str(record["job"])
    while record["cancelled"] and _queue_state(job):
        time.sleep(poll_s)
    if not _queue_state(job):
        return None
    if (record["num_tasks"], record["of"]) != (tasks.count, tasks.of):
        raise UserError(
            f"{tasks.title}: Slurm job {job} of an earlier run with other settings is still at "
            f"work in {tasks.folder}; wait for it, or scancel it"
        )
    return job


def _cancel(job: str, logs: Path) -> None:
    _run(["scancel", job])
    write_json(logs / "job.json", {**read_json(logs / "job.json"), "cancelled": True})


def _submit(tasks: Tasks, scale: ScaleConfig, logs: Path) -> str:
    num_elements = min(tasks.count, _max_array_size())
    limit = f"%{scale.workers}" if scale.workers else ""
    options = [
        f"--array=0-{num_elements - 1}{limit}",
        f"--job-name=cygnet-{tasks.title}",
        f"--output={logs}/%5a.log",
        f"--cpus-per-task={scale.cpus_per_task}",
        f"--mem={round(scale.memory_per_task_gb * 1024)}M",
    ]
    for name in ("partition", "time", "qos", "account"):
        if value := getattr(scale, name):
            options.append(f"--{name}={value}")
    command = [sys.executable, "-m", "cygnet.corpus.scale.slurm"]
    command += [tasks.function, str(tasks.folder), str(tasks.count), str(logs)]
    script = f"#!/bin/bash\n{scale.setup}\nexec {shlex.join(command)}\n"
    answer = _slurm(["sbatch", "--parsable", *options, *scale.sbatch_arguments], script)
    job = answer.strip().partition(";")[0]
    record = {"job": job, "num_tasks": tasks.count, "of": tasks.of, "num_elements": num_elements}
    write_json(logs / "job.json", {**record, "cancelled": False})
    return job


def _slurm(command: list[str], script: str = "") -> str:
    done = _run(command, script)
    if done.returncode:
        raise UserError(f"{command[0]}: {_one_line(done.stderr)}")
    return done.stdout


def _run(command: list[str], script: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, input=script, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UserError(
            f"{command[0]}: not found; start on a node from which jobs can be submitted, or choose "
            "another executor"
        ) from error


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _max_array_size() -> int:
    for line in _slurm(["scontrol", "show", "config"]).splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "MaxArraySize":
            return int(value)
    return 1001


def _queue_state(job: str) -> str:
    """Return a line on the part of a job that the queue lists first, or nothing if it is over."""
    command = ["squeue", "--noheader", "--jobs", job, "--format=%T (%r)"]
    found = _run(command)
    if found.returncode:
        ended = "Invalid job id" in found.stderr
        # Otherwise the controller is busy or restarts; it will answer another time.
        return "" if ended else _one_line(found.stderr)
    return found.stdout.partition("\n")[0]


def _wait_for_job(job: str, tasks: Tasks, logs: Path, poll_s: float, advance: Advance) -> bool:
    """Return true when all tasks are done, false when one failed or the job is over before."""
    num_done = polls_since_end = 0
    while polls_since_end <= SETTLE_POLLS:
        state = _queue_state(job)
        suffixes = [file.suffix for file in logs.iterdir()]
        advance(suffixes.count(".done") - num_done, f"job {job} {state}")
        num_done = suffixes.count(".done")
        if num_done == tasks.count:
            return True
        if ".error" in suffixes:
            return False
        polls_since_end = 0 if state else polls_since_end + 1
        time.sleep(poll_s)
    return False


def _failure(tasks: Tasks, logs: Path) -> UserError:
    failed = sorted(int(file.stem) for file in logs.glob("*.error"))
    killed = [n for n in range(tasks.count) if not (logs / f"{n:05d}.done").exists()]
    first = (failed or killed)[0]
    error = read_json(logs / f"{first:05d}.error")
    if error.get("kind") == "UserError":
        return UserError(error["message"])
    message = error.get("message", "was killed (did its memory or time run out?)")
    others = len(failed or killed) - 1
    more = f", and {others} more" if others else ""
    log = logs / f"{first % read_json(logs / 'job.json')['num_elements']:05d}.log"
    return UserError(
        f"{tasks.name(first)}{more}: {message}; see {log}; start again to go on, what is "
        "finished stays"
    )


def _run_element(function: str, folder: str, num_tasks: str, logs: str) -> int:
    """Run the tasks of one element of the array; return the exit code."""
    element = int(os.environ["SLURM_ARRAY_TASK_ID"])
    stride = int(os.environ["SLURM_ARRAY_TASK_COUNT"])
    limit_threads(int(os.environ.get("SLURM_CPUS_PER_TASK", 1)))
    code = 0
    for number in range(element, int(num_tasks), stride):
        try:
            run_task(function, Path(folder), number)
        except Exception as error:  # noqa: BLE001 (whoever waits for the array says it)
            traceback.print_exc()
            kind, message = type(error).__name__, _one_line(str(error))
            if not isinstance(error, UserError):
                message = f"{kind}: {message}"
            write_json(Path(logs, f"{number:05d}.error"), {"kind": kind, "message": message})
            code = 1
        else:
            write_atomic(Path(logs, f"{number:05d}.done"), "")
    return code


if __name__ == "__main__":
    sys.exit(_run_element(*sys.argv[1:]))
