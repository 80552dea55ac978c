"""A connection that is cut when its client stops reading."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

FIRST_REQUEST_S = 60.0
"""Seconds for the headers of a connection's first request."""


class Connection(HttpToolsProtocol):
    """uvicorn's, with two limits of time.

    A client that leaves what it was sent unread would keep its part of an answer in memory for as
    long as it likes; one that sends no request, or half of its headers, a file handle.
    """

    max_stall_s: ClassVar[float] = 30.0

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._stalled: asyncio.TimerHandle | None = None
        self._unasked: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._unasked = self.loop.call_later(FIRST_REQUEST_S, transport.abort)

    def on_headers_complete(self) -> None:
        """A request has come."""
        _stop(self._unasked)
        super().on_headers_complete()

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
