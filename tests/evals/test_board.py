"""The board shows every run's curves in a browser, goes on as they are written, asks nobody."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cygnet.evals.board import RunLog, chart_values

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
WAIT_S = 60


class Browser:
    """Headless Chromium, spoken to over its debugging pipe, so that no driver is needed."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM
        to_read, self._to = os.pipe()
        from_fd, from_write = os.pipe()
        flags = (
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--disable-background-networking", "--disable-component-update", "--no-first-run",
            "--window-size=1400,1000", "--remote-debugging-pipe", f"--user-data-dir={profile}",
        )  # fmt: skip
        # Chromium takes its commands on descriptor 3 and answers on 4.
        shell = f'exec "$@" 3<&{to_read} 4>&{from_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", CHROMIUM, *flags, "about:blank"],
            pass_fds=(to_read, from_write),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(from_write)
        self._from = os.fdopen(from_fd, "rb")
        self._rest = b""
        self._count = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []

    def open(self, url: str) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self.call("Network.enable")
        self.call("Page.enable")
        self.call("Page.navigate", url=url)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            chunk = os.read(self._from.fileno(), 1 << 16)
            assert chunk, "chromium has ended"
            self._rest += chunk
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def evaluate(self, script: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, script: str) -> None:
        until = time.monotonic() + WAIT_S
        while not self.evaluate(f"Boolean({script})"):
            assert time.monotonic() < until, f"never true: {script}"
            time.sleep(0.3)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def requested(self) -> set[str]:
        """Return every address that the page asked for."""
        asked = [e["params"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        sockets = [e["params"] for e in self.events if e["method"] == "Network.webSocketCreated"]
        return {p["request"]["url"] for p in asked} | {p["url"] for p in sockets}

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        os.close(self._to)
        self._from.close()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    opened = Browser(tmp_path / "profile")
    yield opened
    opened.close()


def write(run: Path, steps: range, loss_at_0: float = 9.0, mode: str = "a") -> None:
    run.mkdir(parents=True, exist_ok=True)
    with open(run / "metrics.jsonl", mode) as file:
        for step in steps:
            row = {"step": step, "tokens": 100 * step, "loss": loss_at_0 / (1 + step), "lr": 0.004,
                   "tokens_per_second": 1000.0 + step, "epoch_time": 60.0, "elapsed_s": 2.0 * step,
                   "heldout_loss": loss_at_0 / (1 + step)}  # fmt: skip
            file.write(json.dumps(row) + "\n")


@contextlib.contextmanager
def board(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run the command; give the address that it says and the process."""
    command = [sys.executable, "-m", "cygnet", "board", *arguments, "--refresh_s", "0.2"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    while "the page: " not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    try:
        yield said.split("the page: ")[1].split()[0], process
    finally:
        process.terminate()
        assert process.wait(20) == 0


CHART = """(() => {
    const chart = document.querySelector('[data-metric="loss"]');
    const canvas = chart && chart.querySelector('canvas');
    if (!canvas) return null;
    const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    const drawn = {};
    for (const item of chart.querySelectorAll('.legend-item')) {
        const dot = getComputedStyle(item.querySelector('.legend-dot')).backgroundColor;
        const colour = dot.match(/[0-9]+/g).map(Number);
        let count = 0;
        for (let i = 0; i < pixels.length; i += 4)
            if ([0, 1, 2].every(c => Math.abs(pixels[i + c] - colour[c]) < 8)) count++;
        drawn[item.innerText.trim()] = count;
    }
    return {drawn: drawn, picture: canvas.toDataURL()};
})()"""
"""Of the chart of the loss: pixels in the colour of each run, and the picture."""
MIN_LINE_PIXELS = 100


def wait_for_lines(browser: Browser, names: set[str], unlike: str = "") -> str:
    """Wait until exactly these runs have lines in the chart of the loss; return its picture."""
    until = time.monotonic() + WAIT_S
    while True:
        seen = browser.evaluate(CHART) or {"drawn": {}, "picture": ""}
        lines = {name for name, pixels in seen["drawn"].items() if pixels > MIN_LINE_PIXELS}
        if lines == names and seen["picture"] != unlike:
            return str(seen["picture"])
        assert time.monotonic() < until, seen["drawn"]
        time.sleep(0.3)


def test_the_page_overlays_runs_goes_on_with_them_and_asks_nobody_else(tmp_path, browser):
    runs = tmp_path / "runs"
    write(runs / "first", range(0, 100, 5))
    write(runs / "demo" / "pretrain", range(0, 60, 5), loss_at_0=6.0)
    write(runs / "demo" / "pretrain.old-1", range(0, 60, 5))
    with board(str(runs), "--port", "0") as (url, _):
        assert url.startswith("http://127.0.0.1:")
        browser.open(url)
        before = wait_for_lines(browser, {"first", "demo/pretrain"})
        for metric in ("lr", "tokens_per_second", "epoch_time", "heldout/loss"):
            browser.wait_for(f"document.querySelector('[data-metric=\"{metric}\"]')")
        write(runs / "demo" / "pretrain", range(60, 400, 5), loss_at_0=6.0)
        longer = wait_for_lines(browser, {"first", "demo/pretrain"}, unlike=before)
        write(runs / "second", range(0, 200, 5), loss_at_0=3.0)
        wait_for_lines(browser, {"first", "demo/pretrain", "second"}, unlike=longer)
        browser.screenshot(tmp_path / "board.png")
        own, requested = url.split("?")[0], browser.requested()
        assert any(address.startswith(own + "api/") for address in requested)
        assert all(address.startswith((own, "data:")) for address in requested)


def test_a_run_that_begins_anew_replaces_what_the_page_showed(tmp_path):
    log = RunLog(tmp_path / "run" / "metrics.jsonl", "run")
    write(tmp_path / "run", range(0, 50, 5))
    rows, _ = log.news()
    assert [row["step"] for row in rows] == list(range(0, 50, 5))
    assert log.news() == ([], False)
    write(tmp_path / "run", range(50, 60, 5))
    rows, anew = log.news()
    assert ([row["step"] for row in rows], anew) == ([50, 55], False)
    # Resumed from step 20: the log is cut there, and then goes on.
    write(tmp_path / "run", range(0, 25, 5), mode="w")
    assert log.news() == ([], False)
    write(tmp_path / "run", range(25, 65, 5))
    rows, anew = log.news()
    assert ([row["step"] for row in rows], anew) == ([60], False)
    # Begun anew.
    write(tmp_path / "run", range(0, 10, 5), loss_at_0=4.0, mode="w")
    rows, anew = log.news()
    assert ([row["step"] for row in rows], anew) == ([0, 5], True)


def test_times_count_back_from_the_last_change(tmp_path):
    write(tmp_path / "run", range(0, 15, 5))
    os.utime(tmp_path / "run" / "metrics.jsonl", (1_000_000_000, 1_000_000_000))
    log = RunLog(tmp_path / "run" / "metrics.jsonl", "run")
    rows, _ = log.news()
    assert [time[11:19] for time in log.times(rows)] == ["01:46:20", "01:46:30", "01:46:40"]


def test_charts_hold_numbers_under_their_groups():
    row = {"step": 5, "loss": 2.0, "heldout_accuracy": 0.5, "tokens": 100, "elapsed_s": 1.0,
           "seconds": 1.0, "note": "text", "mfu": None}  # fmt: skip
    assert chart_values(row) == {
        "loss": 2.0, "heldout/accuracy": 0.5, "progress/tokens": 100, "progress/seconds": 1.0,
    }  # fmt: skip


def test_a_damaged_log_is_said_once_and_the_others_are_shown(tmp_path):
    write(tmp_path / "whole", range(3))
    write(tmp_path / "broken", range(3))
    with open(tmp_path / "broken" / "metrics.jsonl", "a") as file:
        file.write("no JSON\n")
    with board(str(tmp_path), "--port", "0") as (url, process):
        assert runs_of(url) == {"whole"}
        write(tmp_path / "broken", range(3, 4))
        write(tmp_path / "late", range(3))
        until = time.monotonic() + WAIT_S
        while runs_of(url) != {"whole", "late"}:
            assert time.monotonic() < until
            time.sleep(0.1)
    assert process.stderr is not None
    assert process.stderr.read() == ""


def runs_of(url: str) -> set[str]:
    """Ask the page's own server which runs there are."""
    address = url.split("?")[0] + "api/get_runs_for_project"
    request = urllib.request.Request(
        address, json.dumps({"project": "runs"}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        found = json.load(answer)
    return {run["name"] for run in found["data"]}


@pytest.mark.parametrize("name", ["file", "port", "no port"])
def test_what_cannot_be_shown_is_one_line(tmp_path, name):
    (tmp_path / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = {"file": 0, "port": taken.getsockname()[1], "no port": 99_999}[name]
        folder = tmp_path / "file" if name == "file" else tmp_path
        command = [sys.executable, "-m", "cygnet", "board", str(folder), "--port", str(port)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert ("not a folder" if name == "file" else "--port") in result.stderr


def test_without_the_package_it_says_what_to_install(tmp_path):
    script = "import sys; sys.modules['trackio'] = None; from cygnet.cli import main; main()"
    command = [sys.executable, "-c", script, "board", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert "pip install 'cygnet[board]'" in result.stderr
