"""Tasks in processes of this machine."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

from cygnet.cores import usable_cores
from cygnet.corpus.scale.config import ScaleConfig
from cygnet.corpus.scale.tasks import Tasks, limit_threads, run_task
from cygnet.errors import UserError
from cygnet.progress import Advance

STOP_S = 5.0
"""How long a worker has to clear up after it was asked to stop."""


def run_local(tasks: Tasks, scale: ScaleConfig, advance: Advance) -> None:
    """Run them in `scale.workers` processes; in this one if that is one.

    Raises:
        UserError: a worker was killed.
        Exception: whatever a task raises, as itself.
    """
    num_workers = min(scale.workers or usable_cores(), tasks.count)
    if num_workers <= 1:
        for number in range(tasks.count):
            run_task(tasks.function, tasks.folder, number)
            advance()
        return
    numbers = iter(range(tasks.count))
    with _workers(tasks, num_workers) as workers:
        busy = {worker.pipe: worker for worker in workers}
        for worker in workers:
            worker.start(next(numbers))
        while busy:
            for pipe in connection.wait(list(busy)):
                assert isinstance(pipe, Connection)
                busy[pipe].finish()
                advance()
                following = next(numbers, None)
                if following is None:
                    del busy[pipe]
                else:
                    busy[pipe].start(following)


@contextmanager
def _workers(tasks: Tasks, count: int) -> Iterator[list[_Worker]]:
    # Spawned rather than forked: the parent may have threads (arrow, progress bars), and a fork
    # in the middle of one of their locks hangs.
    context = get_context("spawn")
    workers: list[_Worker] = []
    try:
        for _ in range(count):
            workers.append(_Worker(context, tasks))
        yield workers
    except BaseException:
        for worker in workers:
            worker.stop()
        raise
    finally:
        for worker in workers:
            worker.pipe.close()
        for worker in workers:
            worker.wait()


class _Worker:
    """A process that runs one task at a time."""

    def __init__(self, context: SpawnContext, tasks: Tasks) -> None:
        self.pipe, theirs = context.Pipe()
        self._tasks = tasks
        self._number = -1
        self._process = context.Process(
            target=_serve, args=(theirs, tasks.function, tasks.folder), daemon=True
        )
        self._process.start()
        theirs.close()

    def start(self, number: int) -> None:
        """Let it begin a task."""
        self._number = number
        try:
            self.pipe.send(number)
        except OSError as error:
            raise self._death() from error

    def finish(self) -> None:
        """Take the outcome of its task.

        Raises:
            UserError: it is dead.
            Exception: what the task raised.
        """
        try:
            error = self.pipe.recv()
        except (EOFError, OSError) as end:
            raise self._death() from end
        if error is not None:
            raise error

    def stop(self) -> None:
        """Ask it to leave, whatever it does; without a pipe it leaves when it has nothing to do."""
        self._process.terminate()

    def wait(self) -> None:
        """Return when it has left; one that does not listen is killed."""
        self._process.join(STOP_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _death(self) -> UserError:
        self._process.join()
        code = self._process.exitcode or 0
        what = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"left with {code}"
        hint = "most likely the memory ran out: use fewer workers; " if code == -9 else ""
        return UserError(
            f"{self._tasks.name(self._number)}: its process {what}; {hint}"
            "start again to go on, what is finished stays"
        )


def _serve(pipe: Connection, function: str, folder: Path) -> None:
    """Run the tasks whose numbers come through the pipe; answer with None or an exception."""
    # Ctrl-C reaches every process of the terminal; the parent alone decides what then happens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    limit_threads(1)
    while True:
        try:
            number = pipe.recv()
        except EOFError:
            os._exit(0)  # nothing is left to clear up, and to unload all takes a fifth of a second
        answer = None
        try:
            run_task(function, folder, number)
        except Exception as error:  # noqa: BLE001 (the parent raises it)
            answer = _sendable(error)
        pipe.send(answer)


def _leave(signal_number: int, _: object) -> None:
    """Leave through the `finally` clauses, so that temporary files are removed."""
    sys.exit(128 + signal_number)


def _die_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _sendable(error: Exception) -> Exception:
    error.add_note("".join(["in a worker:\n", *traceback.format_exception(error)]))
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:  # noqa: BLE001 (exceptions of libraries may hold anything)
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
