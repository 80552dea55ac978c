"""Functions that are not ours, called in a process of their own that can be ended at any time.

Rewards and tools run here: an endless loop, a crash or too much output ends the process and not
the training. `docs/post-training/tools.md` says what is guaranteed and what is not.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cygnet
from cygnet.errors import UserError

START_S = 120.0
"""Python and a user's file may need so long to begin, on a busy machine."""
LOAD_ALL = "cygnet.stages.reinforcement.functions:load_all"
CHILD = "cygnet.stages.reinforcement.sandbox_child"
INSIDE = "CYGNET_INSIDE_SANDBOX"
"""Set in the environment of the processes that are started."""
_CHUNK_BYTES = 65_536


class CallFailed(Exception):
    """A call gave no result; the text is one line.

    Attributes:
        said: the text without the place in the code.
        ended: the process had to be ended for it (or ended itself), and was not only told of an
            exception.
    """

    def __init__(self, said: str, where: str = "", ended: bool = False) -> None:
        super().__init__(said + where)
        self.said = said
        self.ended = ended


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the functions of a sandbox may use."""

    timeout_s: float
    """Longest time of one call."""
    output_bytes: int = 1 << 20
    """Longest result, as JSON."""
    memory_bytes: int | None = None
    """Address space of the process; none sets no limit."""
    file_bytes: int | None = None
    """Longest file that it may write; none sets no limit."""
    network: bool = True
    """It may reach the network."""
    quiet: bool = False
    """What it prints is thrown away; else it goes to stderr."""
    own_folder: bool = False
    """It works in an empty temporary folder, removed at the end."""
    variables: tuple[str, ...] | None = None
    """What it sees of the environment's variables; none lets it see all."""


class Sandbox:
    """A process that calls functions by reference (see `cygnet.stages.reinforcement.functions`).

    It starts with the first call, and again after it was ended. Calls from several threads wait
    for each other. Close it, or use it in a `with`.

    Attributes:
        references: what a new process loads before its first call, so that the call's time is its
            own; to be added to once each is known to load.
        network: how the network is kept away: `namespace`, `hook`, or `open`.
        processes: what ends with the process: all in its `namespace`, or its process `group`.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.references: list[str] = []
        self.network = self.processes = "not started"
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._lock = threading.Lock()
        self._number = 0  # of the last call to this process, which its answer repeats
        self._ends: weakref.finalize[..., Any] | None = None

    def call(
        self, function: str, arguments: list[Any] | dict[str, Any], timeout_s: float | None = None
    ) -> Any:
        """Call a function and return its result, as JSON has it.

        Args:
            function: the reference.
            arguments: by place or by name; what JSON can hold.
            timeout_s: other than that of the limits.

        Raises:
            CallFailed: it raised, took too long, wrote too much, or the process ended.
            UserError: the reference names nothing that can be called.
        """
        with self._lock:
            process = self._started()
            timeout_s = self.limits.timeout_s if timeout_s is None else timeout_s
            answer = self._asked(process, function, arguments, timeout_s)
        if answer.get("by_us"):
            raise UserError(answer["error"])
        if "error" in answer:
            raise CallFailed(answer["error"], answer.get("where", ""))
        return answer["result"]

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()
            if self._folder is not None:
                self._folder.cleanup()
                self._folder = None

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        if INSIDE in os.environ:
            raise UserError(
                "a file whose functions Cygnet calls must not start Cygnet itself when it is read; "
                'put what does so behind if __name__ == "__main__":'
            )
        if self.limits.own_folder and self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="cygnet-tools-")
        package = str(Path(cygnet.__file__).parents[1])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                CHILD,
                json.dumps(asdict(self.limits)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self._folder.name if self._folder else None,
            env={**self._variables(), "PYTHONPATH": os.pathsep.join(paths), INSIDE: "1"},
            start_new_session=True,  # so that what it starts is ended with it
        )
        process = self._process
        self._ends = weakref.finalize(self, _end, process)
        self._number = 0
        told = self._answer(process, b"", START_S)
        self.network, self.processes = told["network"], told["processes"]
        if self.references:
            self._asked(process, LOAD_ALL, [self.references], START_S)
        return process

    def _variables(self) -> dict[str, str]:
        names = self.limits.variables
        return {name: value for name, value in os.environ.items() if names is None or name in names}

    def _asked(
        self,
        process: subprocess.Popen[bytes],
        function: str,
        arguments: list[Any] | dict[str, Any],
        timeout_s: float,
    ) -> dict[str, Any]:
        self._number += 1
        call = {"number": self._number, "function": function, "arguments": arguments}
        return self._answer(process, (json.dumps(call) + "\n").encode(), timeout_s)

    def _answer(
        self, process: subprocess.Popen[bytes], request: bytes, timeout_s: float
    ) -> dict[str, Any]:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(request)
            process.stdin.flush()
        except BrokenPipeError:
            raise self._ended("its process had ended") from None
        found, deadline = bytearray(), time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not found.endswith(b"\n"):
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    raise self._ended(f"took longer than {timeout_s:g} s and was ended")
                chunk = os.read(process.stdout.fileno(), _CHUNK_BYTES)
                if not chunk:
                    raise self._ended(f"its process ended ({_how_ended(process)})")
                found += chunk
                if len(found) > self.limits.output_bytes:
                    raise self._ended(
                        f"gave more than {self.limits.output_bytes:,} bytes and was ended"
                    )
        try:
            answer: dict[str, Any] = json.loads(found)
            is_own = answer["number"] == self._number
        except (ValueError, TypeError, KeyError):
            is_own = False
        if not is_own:
            raise self._ended("wrote what is no answer to the call and was ended")
        return answer

    def _ended(self, text: str) -> CallFailed:
        self._end()
        return CallFailed(text, ended=True)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            _end(process)
        if self._ends is not None:
            self._ends.detach()
            self._ends = None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started, unless that was done."""
    if process.stdin is None or process.stdin.closed:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _how_ended(process: subprocess.Popen[bytes]) -> str:
    code = process.wait()
    return f"signal {-code}" if code < 0 else f"exit code {code}"
