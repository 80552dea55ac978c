"""A connection that is cut when its client stops reading."""

from __future__ import annotations

import asyncio
import resource
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_S = 60.0
"""Seconds for a request's head: from the connection's beginning, or from what comes after an
answer."""
MAX_HEAD_BYTES = 64 * 2**10
"""Of what is neither a body nor a complete head. It is looked at once for each piece that the
system hands over, so that a head may be larger by one piece (256 KiB)."""


SPARE_FILES = 200
"""Of the files that the process may have open, those that are not for connections."""


class Connection(HttpToolsProtocol):
    """uvicorn's, with limits.

    A client that leaves what it was sent unread would keep its part of an answer in memory for as
    long as it likes; one that sends no request, or half of a head, a file handle; and a head
    without end would be kept whole, before anybody asks for a key.

    A request that comes before the last one is answered ends the connection. uvicorn would tell
    only the newest request that the client has left, and no client here sends ahead.
    """

    max_stall_s: ClassVar[float] = 30.0
    max_connections: ClassVar[int] = max(
        resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_FILES, 16
    )

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._stalled: asyncio.TimerHandle | None = None
        self._unasked: asyncio.TimerHandle | None = None
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        # Without files for more, the system would refuse them in a loop without pause.
        if len(self.server_state.connections) > self.max_connections:
            transport.abort()
            return
        self._unasked = self.loop.call_later(HEAD_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Something has come: when the connection was idle, a request begins."""
        if self.timeout_keep_alive_task is not None:  # uvicorn takes it for a request, and stops it
            _stop(self._unasked)
            self._unasked = self.loop.call_later(HEAD_S, self.transport.abort)
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self.transport.abort()

    def on_headers_complete(self) -> None:
        """A request has come."""
        _stop(self._unasked)
        self._head_bytes = 0
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of a body has come; those have limits of their own."""
        self._head_bytes = 0
        if not self.transport.is_closing():  # else it may be that of a request sent ahead
            super().on_body(body)

    def on_message_complete(self) -> None:
        """A request has come whole."""
        self._head_bytes = 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        """What was written is not being read: begin to wait."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self.max_stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It is read again."""
        _stop(self._stalled)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""
        _stop(self._stalled)
        _stop(self._unasked)
        super().connection_lost(exc)


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
