"""What every request passes first: keys, limits on its number and size, and the drain."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cygnet.serve.errors import ApiError

DISCARDED_BYTES = 64 * 2**20
"""Of a body that is too large so much is read and thrown away, so that the client, which writes
before it reads, gets the answer; one that sends more is cut off."""
CLIENT_LEFT = 499
MAX_DEPTH = 256
"""Lists and objects within each other, in a body."""
_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
"""A bracket, or a text, whose brackets do not count."""


class BodyLost(Exception):
    """The client left while it sent its body."""


class Gate:
    """ASGI middleware before everything but CORS.

    Args:
        app: what comes behind.
        keys: one of which a client must send; none lets all in.
        max_open: requests with a body that may be under way at the same time.
        max_body_bytes: of one body.
        max_pause_s, max_seconds: within which the next part of a body, and all of it, must come.
        note: is told each request's path and status.

    Attributes:
        num_open: requests with a body that are under way.
        is_draining: new ones are turned away.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Sequence[str],
        max_open: int,
        max_body_bytes: int,
        max_pause_s: float,
        max_seconds: float,
        note: Callable[[str, int], None],
    ) -> None:
        self.num_open = 0
        self.is_draining = False
        self._app = app
        # Digests have one length, so that comparing them tells nothing of the keys'.
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._max_open = max_open
        self._max_body_bytes = max_body_bytes
        self._max_pause_s = max_pause_s
        self._max_seconds = max_seconds
        self._note = note

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer it with an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = CLIENT_LEFT

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._pass(scope, receive, noting)
        except BodyLost:
            pass
        except ApiError as error:
            await error.response()(scope, receive, noting)
        finally:
            self._note(scope["path"], status)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if self._digests and (path.startswith("/v1/") or path == "/metrics"):
            self._check_key(Headers(scope=scope).get("authorization", ""))
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if self.is_draining:
            raise ApiError(
                503, "the server is shutting down", code="shutting_down", retry_after_s=5
            )
        if self.num_open >= self._max_open:
            raise ApiError(
                429, f"{self._max_open} requests are under way already; try again later",
                code="queue_full", retry_after_s=1,
            )  # fmt: skip
        kind = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # Browsers send anything else to other origins without asking first.
            raise ApiError(
                415, f"content-type is {kind or 'missing'}: send JSON as application/json"
            )
        self.num_open += 1
        try:
            body = await self._read_in_time(receive)
            check_text(body)
            check_depth(body)
            await self._app(scope, _replay(body, receive), send)
        finally:
            self.num_open -= 1

    async def _read_in_time(self, receive: Receive) -> bytes:
        async def next_part() -> Message:
            async with asyncio.timeout(self._max_pause_s):
                return await receive()

        try:
            async with asyncio.timeout(self._max_seconds):
                return await read_body(next_part, self._max_body_bytes)
        except TimeoutError:
            raise ApiError(408, "the body came too slowly", code="timeout") from None

    def _check_key(self, header: str) -> None:
        kind, _, key = header.partition(" ")
        given = hashlib.sha256(key.strip().encode("latin-1", "replace")).digest()
        # All are compared, so that the time does not tell which one fits.
        fits = [hmac.compare_digest(given, digest) for digest in self._digests]
        if kind.lower() != "bearer" or not any(fits):
            message = "a key is needed: send it as `Authorization: Bearer KEY`"
            if header:
                message = "the API key is not one of this server's"
            raise ApiError(401, message, code="invalid_api_key")


async def read_body(receive: Receive, max_bytes: int) -> bytes:
    """Return the whole body.

    Raises:
        ApiError: it is larger than `max_bytes`.
        BodyLost: the client left.
    """
    parts: list[bytes] = []
    length = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BodyLost
        part = message.get("body", b"")
        more = message.get("more_body", False)
        length += len(part)
        if length > max_bytes:
            parts.clear()
            if length > max_bytes + DISCARDED_BYTES:
                break
        else:
            parts.append(part)
    if length > max_bytes:
        raise ApiError(
            413, f"the body is larger than the {max_bytes / 1e6:g} MB that this server takes",
            code="body_too_large",
        )  # fmt: skip
    return b"".join(parts)


def check_text(body: bytes) -> None:
    """Refuse what is no text: invalid UTF-8, and halves of surrogate pairs in JSON's escapes.

    Raises:
        ApiError: says where.
    """
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise ApiError(
            400, f"the body is no UTF-8: byte {error.start} is 0x{body[error.start]:02x}",
            code="invalid_utf8",
        ) from error  # fmt: skip
    if b"\\ud" not in body and b"\\uD" not in body:
        return
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        code = ord(str(error.object)[error.start])
        raise ApiError(
            400, f"the body holds \\u{code:04x} without its other half, which is no character",
            code="lone_surrogate",
        ) from error  # fmt: skip
    except (ValueError, RecursionError):
        return  # no JSON: it is said where it is read


def check_depth(body: bytes) -> None:
    """Refuse lists and objects within each other that only a raised limit of Python's would hold.

    The limit is not asked: compiling with torch raises it for the whole process.

    Raises:
        ApiError: says how deep is allowed.
    """
    if body.count(b"{") + body.count(b"[") <= MAX_DEPTH:
        return
    depth = 0
    for found in _BRACKET.finditer(body):
        depth += {b"{": 1, b"[": 1, b"}": -1, b"]": -1}.get(found[0], 0)
        if depth > MAX_DEPTH:
            raise ApiError(400, f"the body is nested too deeply: at most {MAX_DEPTH} levels")


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give the body, and then what else comes of the connection."""
    is_given = False

    async def replay() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
