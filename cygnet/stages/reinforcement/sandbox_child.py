"""The other end of `cygnet.stages.reinforcement.sandbox`: calls functions, one JSON line a call.

Started as `python -m cygnet.stages.reinforcement.sandbox_child SETTINGS`.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import threading
import time
from typing import Any

from cygnet.errors import UserError
from cygnet.stages.reinforcement.functions import load, raised, where_raised

_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_PR_SET_PDEATHSIG = 1
_REFUSED = (
    "socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo",
    "socket.gethostbyname", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn",
    "os.fork", "os.forkpty", "os.spawn", "pty.spawn", "ctypes.dlopen",
)  # fmt: skip
"""Events of Python that lead to the network, or to programs that could reach it."""
_LOOK_S = 1.0


def main() -> None:
    """Serve calls until the parent closes the pipe or is gone."""
    settings = json.loads(sys.argv[1])
    # What the functions read and print must not mix with the calls and the results.
    calls = os.fdopen(os.dup(0), "r", encoding="utf-8")
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing if settings["quiet"] else 2, 1)
    if settings["quiet"]:
        os.dup2(nothing, 2)
    network, processes = ("open", "group") if settings["network"] else _cut_network()
    _lower(resource.RLIMIT_CORE, 0)
    if processes == "namespace":
        _become_first()
    else:
        threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    _limit(settings)
    _write(results, 0, {"network": network, "processes": processes})
    own = os.getpid()
    for line in calls:
        call = json.loads(line)
        answer = _answered(call["function"], call["arguments"])
        if os.getpid() != own:
            os._exit(0)  # a fork that the function made came back from it, too
        _write(results, call["number"], answer)


def _answered(reference: str, arguments: list[Any] | dict[str, Any]) -> dict[str, Any]:
    try:
        function = load(reference)
        if isinstance(arguments, dict):
            return {"result": function(**arguments)}
        return {"result": function(*arguments)}
    except UserError as error:
        return {"error": str(error), "by_us": True}
    except MemoryError:
        return {"error": "MemoryError: it asked for more memory than it may have"}
    # Whatever a stranger's function raises, even an exit, is its answer.
    except BaseException as error:  # noqa: BLE001
        return {"error": raised(error), "where": where_raised(error)}


def _write(results: Any, number: int, value: dict[str, Any]) -> None:
    try:
        line = json.dumps({**value, "number": number}, default=_plain)
    except (TypeError, ValueError, RecursionError, MemoryError) as error:
        told = f"its result cannot be written as JSON ({error})"
        line = json.dumps({"error": told, "number": number})
    results.write(line + "\n")
    results.flush()


def _plain(value: Any) -> Any:
    """Return numbers of other libraries as Python's, and anything else as text."""
    return float(value) if hasattr(value, "__float__") else str(value)


def _limit(settings: dict[str, Any]) -> None:
    if settings["memory_bytes"] is not None:
        _lower(resource.RLIMIT_AS, settings["memory_bytes"])
    if settings["file_bytes"] is not None:
        _lower(resource.RLIMIT_FSIZE, settings["file_bytes"])


def _lower(kind: int, most: int) -> None:
    allowed = resource.getrlimit(kind)[1]
    most = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
    resource.setrlimit(kind, (most, most))


def _cut_network() -> tuple[str, str]:
    """Leave the machine's network, in a namespace of our own where the kernel lets us.

    Elsewhere a hook of Python's refuses to connect, and to start programs that could.

    Returns:
        `namespace` or `hook`; and `namespace` where processes started from now on are in one of
        their own, too, else `group`.
    """
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "unshare"):
        for processes in (_CLONE_NEWPID, 0):
            for user in (0, _CLONE_NEWUSER):
                if libc.unshare(_CLONE_NEWNET | processes | user) == 0:
                    return "namespace", "namespace" if processes else "group"

    def refuse(event: str, _: Any) -> None:
        if event in _REFUSED:
            raise PermissionError(f"{event}: tools have no network and start no programs")

    sys.addaudithook(refuse)
    return "hook", "group"


def _become_first() -> None:
    """Go on in a child that is the first process of the new namespace.

    The kernel ends all processes of a namespace with its first, whatever session they are in. The
    process that stays outside waits, and leaves with the parent or as the child does.
    """
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        return
    while os.getppid() == parent:
        signal.sigtimedwait([signal.SIGCHLD], _LOOK_S)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            if code < 0:
                os.kill(os.getpid(), -code)
            os._exit(abs(code))
    os._exit(1)


def _leave_with(parent: int) -> None:
    """End when the parent is gone, even from inside an endless loop."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)


if __name__ == "__main__":
    main()
