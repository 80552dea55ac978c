"""The HTTP interface: OpenAI's routes, health and metrics, and the chat page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from cygnet import __version__
from cygnet.errors import nearest
from cygnet.generate.request import QueueFull
from cygnet.generate.request import Request as EngineRequest
from cygnet.serve import answers
from cygnet.serve.bodies import ChatBody, CompletionBody, EmbeddingBody
from cygnet.serve.driver import Driver, Job
from cygnet.serve.errors import ApiError, as_api_error, install_handlers, too_late
from cygnet.serve.gate import Gate
from cygnet.serve.metrics import Metrics
from cygnet.serve.offered import Offered
from cygnet.serve.page_files import FOLDER, INDEX, page_file
from cygnet.serve.prepare import (
    FEW_CHARACTERS,
    encode_texts,
    num_characters,
    prepare_chat,
    prepare_completion,
)
from cygnet.serve.responses import JobResponse
from cygnet.serve.settings import ServeConfig

Result = TypeVar("Result")
MOST_RETRY_S = 60


class Service:
    """A server's models and limits, and the application that offers them.

    Args:
        offered: by name, the default first.
        config: limits, keys and origins.
        page: the folder of the chat page.

    Attributes:
        app: the ASGI application, with everything around it.
        gate: counts what is under way.
    """

    def __init__(
        self, offered: Mapping[str, Offered], config: ServeConfig, page: Path = FOLDER
    ) -> None:
        self.offered = dict(offered)
        self.config = config
        self.metrics = Metrics(self.offered.values())
        self._page = page
        inner = FastAPI(
            title="Cygnet", version=__version__, docs_url=None, redoc_url=None,
            description="OpenAI's interface to models that Cygnet runs.",
        )  # fmt: skip
        install_handlers(inner)
        self._add_routes(inner)
        paths = [route.path for route in inner.routes if hasattr(route, "path")]
        self._paths = {path for path in paths if "{" not in path}
        self._prefixes = [path.partition("{")[0] for path in paths if "{" in path]
        engines = {model.driver: model.driver.engine for model in self.offered.values()}
        self.gate = Gate(
            inner,
            keys=config.keys(),
            max_open=sum(engine.num_slots + config.max_queue for engine in engines.values()),
            max_body_bytes=int(config.max_body_mb * 1e6),
            max_pause_s=config.stall_s,
            max_seconds=config.request_s,
            note=self._note_request,
        )
        self.app: ASGIApp = self.gate
        if config.cors_origin:
            self.app = CORSMiddleware(
                self.gate, allow_origins=config.cors_origin, allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type"], max_age=600,
            )  # fmt: skip

    @property
    def drivers(self) -> list[Driver]:
        """Each once."""
        return list(dict.fromkeys(model.driver for model in self.offered.values()))

    def _add_routes(self, app: FastAPI) -> None:
        app.get("/v1/models")(self.list_models)
        app.get("/v1/models/{name:path}")(self.describe_model)
        app.post("/v1/chat/completions", response_class=Response)(self.chat)
        app.post("/v1/completions", response_class=Response)(self.complete)
        app.post("/v1/embeddings", response_class=Response)(self.embed)
        app.get("/healthz")(self.health)
        app.get("/metrics", response_class=Response)(self.tell_metrics)
        app.get("/", response_class=Response)(self.page_index)
        app.get("/page/{name}", response_class=Response)(self.page_part)

    async def list_models(self) -> JSONResponse:
        """List the models."""
        data = [model.describe() for model in self.offered.values()]
        return JSONResponse({"object": "list", "data": data})

    async def describe_model(self, name: str) -> JSONResponse:
        """Tell of one model."""
        return JSONResponse(self._model(name).describe())

    async def chat(self, body: ChatBody) -> Response:
        """Answer a conversation."""
        model = self._model(body.model)
        self._check_room(model)
        has_schema = body.response_format is not None or bool(body.tools)
        is_long = has_schema or num_characters(body) > FEW_CHARACTERS
        chat = await _aside(is_long, lambda: prepare_chat(body, model, self.config))
        streams = bool(body.stream)
        job = await self._submit(model, [chat.request], body.n or 1, streams)
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        writer = answers.ChatWriter(model, job, chat.thinks, chat.reads_calls, with_usage)
        return JobResponse(writer, Owner(self, model), self.config.request_s)

    async def complete(self, body: CompletionBody) -> Response:
        """Go on from a text."""
        model = self._model(body.model)
        self._check_room(model)
        is_long = num_characters(body) > FEW_CHARACTERS
        requests, best = await _aside(is_long, lambda: prepare_completion(body, model, self.config))
        job = await self._submit(model, requests, best, bool(body.stream))
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        writer = answers.CompletionWriter(
            model, job, body.n or 1, len(requests), bool(body.echo), body.logprobs is not None,
            with_usage,
        )  # fmt: skip
        return JobResponse(writer, Owner(self, model), self.config.request_s)

    async def embed(self, body: EmbeddingBody, request: Request) -> Response:
        """Turn texts into vectors: the mean of the model's final hidden states, of length 1."""
        model = self._model(body.model)
        prompts = await _aside(
            True,
            lambda: encode_texts(
                body.input, "input", model, self.config.max_texts, self.config.max_prompt
            ),
        )
        vectors: list[list[float]] = []
        try:
            async with asyncio.timeout(self.config.request_s):
                for prompt in prompts:
                    if await request.is_disconnected():
                        return Response()  # nobody reads it
                    embed = partial(model.driver.engine.embed, prompt)
                    vectors.append(await model.driver.call(embed, takes_long=True))
        except TimeoutError:
            raise too_late() from None
        if body.dimensions not in (None, len(vectors[0])):
            raise ApiError(
                400, f"dimensions: this model's vectors have {len(vectors[0])}", param="dimensions"
            )
        num_tokens = sum(map(len, prompts))
        told = answers.embeddings(model, vectors, num_tokens, body.encoding_format == "base64")
        return Response(answers.compact(told), media_type="application/json")

    async def health(self) -> JSONResponse:
        """Say whether new requests are taken: 200, or 503 during the drain or after a failure."""
        failed = [name for name, model in self.offered.items() if model.driver.has_failed]
        status = "draining" if self.gate.is_draining else "failed" if failed else "ok"
        told = {"status": status, "failed": failed} if failed else {"status": status}
        return JSONResponse(told, 200 if status == "ok" else 503)

    async def tell_metrics(self) -> Response:
        """Count for Prometheus."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def page_index(self) -> Response:
        """Give the chat page."""
        return page_file(self._page, INDEX)

    async def page_part(self, name: str) -> Response:
        """Give a file of the chat page."""
        return page_file(self._page, name)

    def _model(self, name: str | None) -> Offered:
        if name is None:
            return next(iter(self.offered.values()))
        if name not in self.offered:
            there = ", ".join(self.offered)
            raise ApiError(
                404, f"there is no model {name!r}{nearest(name, self.offered)}; there are {there}",
                param="model", code="model_not_found",
            )  # fmt: skip
        return self.offered[name]

    def _check_room(self, model: Offered) -> None:
        """Turn a request away before its text is read, where the queue is full already."""
        engine = model.driver.engine
        if engine.num_waiting and engine.num_waiting >= self.config.max_queue:
            full = QueueFull(f"{engine.num_waiting} requests wait for a slot; try again later")
            raise as_api_error(full, self._retry_after_s(model))

    def _retry_after_s(self, model: Offered) -> int:
        """Return about how long those who wait will take to begin."""
        engine = model.driver.engine
        seconds = model.driver.mean_seconds * engine.num_waiting / engine.num_slots
        return max(1, min(MOST_RETRY_S, round(seconds)))

    async def _submit(
        self, model: Offered, requests: list[EngineRequest], n: int, streams: bool
    ) -> Job:
        try:
            return await model.driver.submit(requests, n, streams)
        except QueueFull as error:
            raise as_api_error(error, self._retry_after_s(model)) from error

    def _note_request(self, path: str, status: int) -> None:
        under = (f"{prefix}{{name}}" for prefix in self._prefixes if path.startswith(prefix))
        known = path if path in self._paths else next(under, "other")
        self.metrics.requests.labels(known, str(status)).inc()


class Owner:
    """Ends jobs for their responses, and counts them."""

    def __init__(self, service: Service, model: Offered) -> None:
        self._service = service
        self._model = model

    def cancel(self, job: Job) -> None:
        """Its client has left."""
        self._model.driver.cancel(job)

    def expire(self, job: Job) -> None:
        """Its time is over."""
        self._model.driver.expire(job)

    def done(self, job: Job) -> None:
        """It was sent, or cancelled."""
        self._service.metrics.note(self._model.name, job)


async def _aside(is_long: bool, work: Callable[[], Result]) -> Result:
    """Do some work at once, or in a thread where it would hold up others."""
    return await asyncio.to_thread(work) if is_long else work()
