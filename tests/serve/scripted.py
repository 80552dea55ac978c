"""A server that speaks the API and says what a test tells it to: the part of a hostile model."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cygnet.serve.page_files import FOLDER, HEADERS

MODEL = {"id": "tiny", "object": "model", "created": 0, "owned_by": "cygnet",
         "context_length": 512, "stage": "sft"}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What a request is answered with."""

    pieces: Sequence[str] = ()
    reasoning: Sequence[str] = ()
    status: int = 200
    error: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    pause_s: float = 0.0
    """Before each piece."""
    is_cut: bool = False
    """The connection ends before the answer does."""


class ScriptedServer(ThreadingHTTPServer):
    """Serves the real page; `answer(body, key)` gives each answer, `asked` the bodies so far."""

    daemon_threads = True

    def __init__(self, answer: Callable[[dict[str, Any], str], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.models = [MODEL]
        self.models_known = threading.Event()
        """Until it is set, the question for the models waits."""
        self.models_known.set()
        self.key = ""
        self.asked: list[dict[str, Any]] = []
        self.dropped = threading.Event()
        """A client went away before its answer was whole."""
        self.url = f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: ScriptedServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.server.models_known.wait(60)
            if self._is_allowed():
                self._json(200, {"object": "list", "data": self.server.models})
            return
        name = "index.html" if self.path == "/" else self.path.removeprefix("/page/")
        kinds = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
        file = FOLDER / name
        if not file.is_file():
            self._json(404, {})
            return
        headers = {"Content-Type": kinds[name.rsplit(".", 1)[1]] + "; charset=utf-8", **HEADERS}
        self._head(200, headers)
        self.wfile.write(file.read_bytes())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._is_allowed():
            return
        self.server.asked.append(body)
        answer = self.server.answer(body, self.path)
        if answer.status != 200:
            self._json(answer.status, {"error": answer.error}, answer.headers)
            return
        self._head(200, {"Content-Type": "text/event-stream"})
        try:
            self._stream(answer)
        except OSError:
            self.server.dropped.set()

    def _is_allowed(self) -> bool:
        if not self.server.key or self.headers["Authorization"] == f"Bearer {self.server.key}":
            return True
        self._json(401, {"error": {"message": "wrong key", "code": "invalid_api_key"}})
        return False

    def _stream(self, answer: Answer) -> None:
        waiting = threading.Event()
        for name, pieces in (("reasoning_content", answer.reasoning), ("content", answer.pieces)):
            for piece in pieces:
                waiting.wait(answer.pause_s)
                self._event({"choices": [{"index": 0, "delta": {name: piece}}]})
        if answer.is_cut:
            return
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        count = len(answer.pieces) + len(answer.reasoning)
        usage = {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}
        self._event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, chunk: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        self.wfile.flush()

    def _json(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        self._head(status, {"Content-Type": "application/json", **(headers or {})})
        self.wfile.write(json.dumps(body).encode())

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


@contextlib.contextmanager
def scripted(answer: Callable[[dict[str, Any], str], Answer]) -> Iterator[ScriptedServer]:
    server = ScriptedServer(answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
