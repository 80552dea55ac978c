"""`cygnet serve`: load, listen, and leave in good order."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from cygnet.errors import UserError, require
from cygnet.generate.remote import KEY_VARIABLE
from cygnet.progress import say
from cygnet.serve.settings import ServeConfig

if TYPE_CHECKING:
    import uvicorn

    from cygnet.serve.app import Service

NEEDED = ("fastapi", "uvicorn", "httptools", "prometheus_client", "llguidance")
BACKLOG = 2048
LAST_S = 5
"""Seconds for what was sent to leave, after the last request has ended."""


def serve(config: ServeConfig) -> None:
    """Serve until a signal: SIGTERM lets running requests finish, Ctrl-C does not.

    Raises:
        UserError: a package or a model is missing or broken, or the port is taken.
    """
    for module in NEEDED:
        require(module, "serve")
    config.keys()
    from cygnet.serve.offered import find_places

    find_places(
        config.models, config.stages, config.adapter
    )  # a wrong name is told before anything is loaded
    with _listen(config.host, config.port) as listening:
        asyncio.run(run(config, listening))


async def run(config: ServeConfig, listening: socket.socket) -> None:
    """Load the models and serve on a socket that is bound, until a signal comes."""
    from cygnet.serve.app import Service
    from cygnet.serve.offered import find_places, load, warm_up

    offered = load(find_places(config.models, config.stages, config.adapter), config)
    service = Service(offered, config)
    for driver in service.drivers:
        await warm_up(driver)
    server = make_server(service, config.stall_s)
    with _signals(service, server, config.drain_s):
        say("\n".join(_announcement(service, listening)))
        await server.serve(sockets=[listening])
    for driver in service.drivers:
        driver.close()


def make_server(service: Service, stall_s: float) -> uvicorn.Server:
    """Return a server for a service; `serve(sockets=[...])` runs it.

    Args:
        service: what it offers.
        stall_s: clients that leave what they were sent unread for so long are cut off.
    """
    import uvicorn

    from cygnet.serve.connection import Connection

    class OwnConnection(Connection):
        max_stall_s = stall_s

    config = uvicorn.Config(
        service.app, http=OwnConnection, ws="none", lifespan="off", log_config=None,
        access_log=False, server_header=False, backlog=BACKLOG, timeout_graceful_shutdown=LAST_S,
    )  # fmt: skip

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Generator[None, None, None]:
            """Leave signals alone: whoever runs the server knows what to do with them."""
            yield

    return Server(config)


async def drain(service: Service, server: uvicorn.Server, seconds: float) -> None:
    """Turn new requests away, let running ones finish for so long, and end the server."""
    from cygnet.serve.errors import ApiError

    gate = service.gate
    gate.is_draining = True
    if gate.num_open:
        say(f"draining: {gate.num_open} requests have up to {seconds:g} s to finish")
    deadline = asyncio.get_running_loop().time() + seconds
    while gate.num_open and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.05)
    for driver in service.drivers:
        driver.abort(
            ApiError(503, "the server has shut down", code="shutting_down", retry_after_s=5)
        )
    server.should_exit = True


@contextlib.contextmanager
def _signals(service: Service, server: uvicorn.Server, drain_s: float) -> Iterator[None]:
    """Drain at SIGTERM; end at once at Ctrl-C and at a second SIGTERM."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def leave(seconds: float) -> None:
        is_second = bool(tasks)
        tasks.add(loop.create_task(drain(service, server, 0 if is_second else seconds)))

    loop.add_signal_handler(signal.SIGTERM, leave, drain_s)
    loop.add_signal_handler(signal.SIGINT, leave, 0.0)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound.

    Raises:
        UserError: the address cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        raise UserError(
            f"port {port} on {host} cannot be had ({error.strerror}): give another with --port"
        ) from error


def _announcement(service: Service, listening: socket.socket) -> list[str]:
    host, port = listening.getsockname()[:2]
    is_local = ipaddress.ip_address(host).is_loopback
    shown = f"[{host}]" if ":" in host else host
    models = ", ".join(model.summary() for model in service.offered.values())
    lines = [f"serving {models} at http://{shown}:{port} (API: /v1; Ctrl-C ends it)"]
    if not is_local and not service.config.keys():
        lines.append(
            f"WARNING: {host} lets other machines in, and without a key all of them may ask; set "
            f"{KEY_VARIABLE} or give --api_key_file"
        )
    return lines
