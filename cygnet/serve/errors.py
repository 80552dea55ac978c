"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from cygnet.errors import UserError
from cygnet.generate.request import QueueFull

_FIELD = re.compile(r"([a-z_]+(?:\[\d+\])?(?:\.[a-z_]+(?:\[\d+\])?)*)(?:: | is | holds | has )")
"""How a UserError begins that is about a field."""
_FIELD_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    429: "rate_limit_error", 500: "server_error", 503: "server_error",
}  # fmt: skip


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: what is wrong and what to do.
        param: the field of the request.
        code: for programs.
        retry_after_s: after how many seconds to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """Return what is sent."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        inner = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": inner}

    def response(self) -> JSONResponse:
        """Return the whole answer."""
        headers = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def as_api_error(error: Exception, retry_after_s: int = 1) -> ApiError:
    """Return what the client is told of an error of the engine or of a mistake in its request."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        return ApiError(429, str(error), code="queue_full", retry_after_s=retry_after_s)
    if isinstance(error, UserError):
        message = str(error)
        found = _FIELD.match(message)
        code = "context_length_exceeded" if "context ends" in message else None
        param = "messages" if code else found and found[1]
        return ApiError(400, message, param=param, code=code)
    if isinstance(error, RecursionError):
        return ApiError(400, "the body is nested too deeply")
    return ApiError(500, "the server made a mistake; its log says which", code="internal_error")


def too_late() -> ApiError:
    """Return what the client is told where its time is over and there is nothing to give."""
    message = "the request's time was over before there was an answer"
    return ApiError(503, message, code="timeout", retry_after_s=1)


def install_handlers(app: FastAPI) -> None:
    """Let every error of an app be answered in OpenAI's shape."""

    async def ours(request: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return validation_error(error.errors()).response()

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        response = ApiError(error.status_code, _http_message(request, error)).response()
        response.headers.update(error.headers or {})
        return response

    for kind in (ApiError, UserError, QueueFull, RecursionError, Exception):
        app.add_exception_handler(kind, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def validation_error(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """Return what the client is told of fields that are not as they must be: the first of them."""
    field = _param(errors[0]["loc"][:2])
    # Where a field may be of several kinds, each tells what is wrong; the one that got furthest
    # is meant.
    own = [error for error in errors if _param(error["loc"][:2]) == field]
    worst = max(own, key=_depth)
    param, told = _param(worst["loc"]), str(worst["msg"])
    if worst["type"] == "json_invalid":
        reason = worst.get("ctx", {}).get("error", told)
        return ApiError(400, f"the body is no JSON: {reason}")
    if param is None:
        return ApiError(400, "the body must be a JSON object")
    message = f"{param}: {told}"
    others = {_param(error["loc"][:2]) for error in errors} - {field}
    if others and worst["type"] != "missing":
        message += f" (wrong too: {', '.join(sorted(filter(None, others))[:8])})"
    return ApiError(400, message, param=param, code="invalid_value")


def _depth(error: Mapping[str, Any]) -> tuple[int, bool]:
    is_of_other_kind = error["type"] == "missing" or str(error["type"]).endswith("_type")
    return len(error["loc"]), not is_of_other_kind


def _param(location: Sequence[str | int]) -> str | None:
    """Return `messages[0].content` for a place in the body.

    Names of kinds, which the place of a field of several kinds holds too, are left out.
    """
    spelt = ""
    for part in location[1:]:
        if isinstance(part, int):
            spelt += f"[{part}]"
        elif _FIELD_NAME.fullmatch(part) and part not in ("str", "int", "float", "bool"):
            spelt += f".{part}" if spelt else part
    return spelt or None


def _http_message(request: Request, error: HTTPException) -> str:
    if error.status_code == 404:
        return f"there is no {request.url.path} here"
    if error.status_code == 405:
        return f"{request.url.path} takes no {request.method}"
    return str(error.detail)
