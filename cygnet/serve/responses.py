"""Sending a job's answers, for as long as the client is there to read them."""

from __future__ import annotations

import asyncio
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cygnet.generate.request import Event
from cygnet.serve.answers import ChatWriter, CompletionWriter, compact, usage
from cygnet.serve.driver import ClientLeft, Job, joined
from cygnet.serve.errors import ApiError, too_late

Writer = ChatWriter | CompletionWriter
_EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Owner(Protocol):
    """Whoever keeps the job: told of its end."""

    def cancel(self, job: Job) -> None:
        """Its client has left."""

    def expire(self, job: Job) -> None:
        """Its time is over."""

    def done(self, job: Job) -> None:
        """It was sent, or cancelled."""


class JobResponse(Response):
    """The answers of a job, whole or as server-sent events.

    When the client leaves, whether it was being written to or waited, the job ends.

    Args:
        writer: makes JSON of the job.
        owner: of the job.
        request_s: after which time an unfinished answer is given as it is.
    """

    def __init__(self, writer: Writer, owner: Owner, request_s: float) -> None:
        super().__init__()
        self._writer = writer
        self._job = writer.job
        self._owner = owner
        self._request_s = request_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        job = self._job
        watch = asyncio.create_task(self._watch(receive))
        timer = asyncio.get_running_loop().call_later(self._request_s, self._owner.expire, job)
        try:
            if job.streams:
                await self._stream(send)
            else:
                await self._send_whole(send)
        except ClientLeft:
            pass
        finally:
            timer.cancel()
            watch.cancel()
            self._owner.cancel(job)
            self._owner.done(job)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._owner.cancel(self._job)

    async def _send_whole(self, send: Send) -> None:
        while await self._job.news():
            pass
        _refuse_unbegun(self._job)
        body = compact(self._writer.whole())
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _EVENTS})
        head = compact(self._writer.chunk_head())[:-1]
        last = b"data: [DONE]\n\n"
        try:
            while news := await self._job.news():
                if body := self._chunks(head, news):
                    await send({"type": "http.response.body", "body": body, "more_body": True})
            _refuse_unbegun(self._job)
            if self._writer.with_usage:
                counts = compact(usage(self._job.answers))
                last = b'data: %b,"choices":[],"usage":%b}\n\n' % (head, counts) + last
        except ApiError as error:
            last = b"data: " + compact(error.body()) + b"\n\n"
        await send({"type": "http.response.body", "body": last})

    def _chunks(self, head: bytes, news: list[tuple[int, Event]]) -> bytes:
        """Return server-sent events of all that came, however long the client made it wait."""
        events: dict[int, list[Event]] = {}
        for index, event in news:
            events.setdefault(index, []).append(event)
        return b"".join(
            b'data: %b,"choices":[%b]}\n\n' % (head, compact(choice))
            for index, own in events.items()
            for choice in self._writer.choices(index, joined(own))
        )


def _refuse_unbegun(job: Job) -> None:
    if all(a.finish_reason == "cancelled" and not a.token_ids for a in job.answers):
        raise too_late()
