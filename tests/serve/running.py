"""A real server on a free port of the loopback, in a thread."""

import asyncio
import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import torch
import uvicorn

from cygnet.export.huggingface import save_folder
from cygnet.serve.app import Service
from cygnet.serve.command import make_server
from cygnet.serve.offered import find_places, load
from cygnet.serve.settings import ServeConfig
from cygnet.text.tokenizer import Tokenizer, train_tokenizer
from tests.models import SMALL, random_model

PATIENCE_S = 120
TOKENIZER = train_tokenizer(["a swan 天鹅 and a lake 湖水 in the grey rain"] * 3, 320)


@dataclasses.dataclass
class Running:
    """A server that runs."""

    service: Service
    url: str
    loop: asyncio.AbstractEventLoop
    server: uvicorn.Server

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    @property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S)

    @property
    def engine(self) -> Any:
        return self.service.drivers[0].engine

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def is_quiet(self) -> bool:
        return self.engine.is_idle and self.service.gate.num_open == 0


def save(folder: Path, model: Any = None, template: str | None = None) -> Path:
    tokenizer = TOKENIZER
    if template is not None:
        tokenizer = Tokenizer(TOKENIZER._source, template)
    roomy = dataclasses.replace(SMALL, max_position=4096)
    return save_folder(model or random_model(roomy), tokenizer, folder)


def endless_model() -> Any:
    """Return a model that never ends its answer, as its end is always the unlikeliest token."""
    model = random_model(dataclasses.replace(SMALL, max_position=50_000))
    with torch.no_grad():
        model.model.embed_tokens.weight[[TOKENIZER.im_end_id, TOKENIZER.eos_id]] = 0
    return model


@contextlib.contextmanager
def running(
    *models: str | Path, page: Path | None = None, send_buffer: int | None = None, **settings: Any
) -> Iterator[Running]:
    config = ServeConfig(
        models=tuple(map(str, models)), port=0, **{"dtype": "fp32", "slots": 4, **settings}
    )
    begun: list[Running] = []
    failure: list[BaseException] = []
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    if send_buffer:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)

    async def main() -> None:
        offered = load(find_places(config.models, config.stages, config.adapter), config)
        service = Service(offered, config, *([page] if page else []))
        server = make_server(service, config.stall_s)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        begun.append(Running(service, url, asyncio.get_running_loop(), server))
        await server.serve(sockets=[listening])
        for driver in service.drivers:
            driver.close()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failure.append(error)
            raise

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wait_for(lambda: bool(failure or (begun and begun[0].server.started)))
    if failure:
        raise failure[0]
    try:
        yield begun[0]
    finally:
        begun[0].server.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def wait_for(is_so: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not is_so():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.01)
