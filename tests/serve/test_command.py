"""`cygnet serve` as a person starts it, and as a service manager ends it."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.running import PATIENCE_S, wait_for

ENDLESS: dict[str, Any] = {
    "messages": [{"role": "user", "content": "a swan"}], "top_k": 20, "seed": 1,
}  # fmt: skip
CHAT = "/v1/chat/completions"


class Served:
    """A server in a process of its own."""

    def __init__(self, *arguments: str | Path) -> None:
        command = [sys.executable, "-m", "cygnet", "serve", *map(str, arguments), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--dtype", "fp32"], stderr=subprocess.PIPE, text=True
        )
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        wait_for(lambda: self.process.poll() is not None or self.url is not None)
        assert self.url, self.said
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE_S)

    @property
    def url(self) -> str | None:
        found = re.search(r"http://[\d.]+:\d+", "".join(self.said))
        return found and found[0]

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.said.append(line)

    def ask(self, answers: list[httpx.Response], **settings: Any) -> threading.Thread:
        """Ask in a thread, for an answer that takes a while."""
        body = {**ENDLESS, **settings}

        def run() -> None:
            answers.append(httpx.post(f"{self.url}{CHAT}", json=body, timeout=PATIENCE_S))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def running(self) -> int:
        counts = self.http.get("/metrics").text
        return sum(int(float(n)) for n in re.findall(r"cygnet_running{[^}]*} (\S+)", counts))


@contextlib.contextmanager
def served(*arguments: str | Path) -> Iterator[Served]:
    server = Served(*arguments)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()
        server._reader.join()


def test_it_says_in_one_line_what_is_served_where(endless: Path) -> None:
    with served(f"long={endless}", "--slots", "2", "--max_len", "100") as server:
        assert len(server.said) == 1
        assert re.fullmatch(
            r"serving long \(0\.1 M parameters, 2 slots of 100 tokens\) at http://127\.0\.0\.1:\d+ "
            r"\(API: /v1; Ctrl-C ends it\)\n",
            server.said[0],
        ), server.said


def test_sigterm_lets_running_answers_finish_and_turns_new_ones_away(endless: Path) -> None:
    with served(endless, "--slots", "1", "--drain_s", "60") as server:
        answers: list[httpx.Response] = []
        threads = [server.ask(answers, max_tokens=1500, stream=stream) for stream in (True, False)]
        wait_for(lambda: server.running() == 1)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: server.http.get("/healthz").status_code == 503)
        assert server.http.get("/healthz").json() == {"status": "draining"}
        refused = server.http.post(CHAT, json=ENDLESS)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "shutting_down"
        for thread in threads:
            thread.join(PATIENCE_S)
        assert [answer.status_code for answer in answers] == [200, 200]
        streamed = next(a for a in answers if a.headers["content-type"].startswith("text/event"))
        assert streamed.text.endswith("data: [DONE]\n\n")
        whole = next(a for a in answers if a is not streamed)
        assert whole.json()["usage"]["completion_tokens"] == 1500
        assert server.process.wait(PATIENCE_S) == 0
    assert any("draining: 2 requests have up to 60 s" in line for line in server.said)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_has_not_finished_in_time_is_told_so(endless: Path, number: int) -> None:
    patience = "0.5" if number == signal.SIGTERM else "60"  # Ctrl-C waits for nobody
    with served(endless, "--slots", "1", "--drain_s", patience) as server:
        answers: list[httpx.Response] = []
        threads = [server.ask(answers, stream=stream) for stream in (True, False)]
        wait_for(lambda: server.running() == 1)
        began = time.monotonic()
        server.process.send_signal(number)
        for thread in threads:
            thread.join(PATIENCE_S)
        assert server.process.wait(PATIENCE_S) == 0
        assert time.monotonic() - began < 30
        streamed = next(a for a in answers if a.headers["content-type"].startswith("text/event"))
        last = json.loads(streamed.text.strip().rpartition("data: ")[2])
        assert last["error"]["code"] == "shutting_down"
        whole = next(a for a in answers if a is not streamed)
        assert whole.status_code == 503 and whole.json()["error"]["code"] == "shutting_down"
        assert not any("Traceback" in line for line in server.said)


def failed(*arguments: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cygnet", "serve", *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=PATIENCE_S,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_mistakes_are_told_in_one_line(folder: Path, tmp_path: Path) -> None:
    assert "nowhere: no such folder" in failed("nowhere")
    assert "two models are called 'swan'" in failed(folder, folder)
    assert "--port 70000: it must be" in failed(folder, "--port", "70000")
    assert "--max_len 5000: the model's context is 4096" in failed(folder, "--max_len", "5000")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} on 127.0.0.1 cannot be had" in failed(folder, "--port", str(port))


def test_a_package_that_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "fastapi.py").write_text("raise ModuleNotFoundError(name='fastapi')")
    told = failed(folder, PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    assert "this needs the package 'fastapi': pip install 'cygnet[serve]'" in told
