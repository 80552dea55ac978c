"""Trackers hold what was logged, go on after a resume, and never stop or delay a run."""

import contextlib
import http.server
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cygnet.config import TrainConfig
from cygnet.train.trackers import METRICS, SAMPLES, JsonlTracker, Samples, base, make_trackers
from cygnet.train.trackers.base import ForeignTracker

FAKE_KEY = "0" * 40
HOSTILE = "a | b\n<script>alert(1)</script> <em>e</em> &amp; *bold* `code` 月光 \\"
ROWS = [
    {"prompt": "What is a comet?", "answer": "Ice."},
    {"prompt": HOSTILE, "answer": HOSTILE, "note": 0.5},
]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def log_steps(path: Path, resumed_at: int, steps: range) -> None:
    tracker = JsonlTracker(path, resumed_at)
    for step in steps:
        tracker.log({"loss": 1 / (step + 1)}, step)
        tracker.samples([{"prompt": "p", "answer": str(step)}] * 2, step)
    tracker.finish(0)


@given(
    reached=st.integers(1, 12),
    checkpoint=st.integers(0, 12),
    half_line=st.sampled_from(
        [
            b"",
            b'{"step": 1, "loss": 1.0}',
            b'{"step": 13, "lo',
            b"\xff\xfe",
            b'{"step"',
            b"\n",
            b"[3]\n",
        ]
    ),
)
def test_a_resumed_file_is_that_of_an_uninterrupted_run(
    tmp_path_factory, reached, checkpoint, half_line
):
    folder = tmp_path_factory.mktemp("run")
    checkpoint = min(checkpoint, reached)
    log_steps(folder / "whole" / METRICS, 0, range(16))
    log_steps(folder / "killed" / METRICS, 0, range(reached + 1))
    for name in (METRICS, SAMPLES):
        with open(folder / "killed" / name, "ab") as file:
            file.write(half_line)
    # Step 0 is logged before training, so only a run without a checkpoint logs it again.
    first = checkpoint + 1 if checkpoint else 0
    log_steps(folder / "killed" / METRICS, checkpoint, range(first, 16))
    for name in (METRICS, SAMPLES):
        assert (folder / "killed" / name).read_bytes() == (folder / "whole" / name).read_bytes()


def test_numbers_that_are_not_finite_are_valid_json(tmp_path):
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    tracker.log({"loss": float("nan"), "grad_norm": float("inf"), "note": "a"}, 1)
    assert read(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": None, "grad_norm": None, "note": "a"}
    ]


def test_samples_lie_beside_the_metrics_and_no_file_is_made_without_them(tmp_path):
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    tracker.samples([], 1)
    assert not (tmp_path / "samples.jsonl").exists()
    tracker.samples(ROWS, 1)
    assert read(tmp_path / "samples.jsonl") == [{"step": 1, **row} for row in ROWS]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said_and_does_not_raise(tmp_path, capsys):
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    tracker._file.close()
    tracker._file = open("/dev/full", "w")  # noqa: SIM115 (the tracker closes it)
    for step in range(3):
        tracker.log({"loss": 1.0}, step)
    tracker.finish(1)
    assert capsys.readouterr().err.count("No space left on device") == 1


def test_a_folder_that_cannot_be_made_is_said_and_does_not_raise(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    trackers = make_trackers(TrainConfig(), tmp_path / "file" / "run", {}, {})
    trackers[0].log({"loss": 1.0}, 1)
    trackers[0].finish(0)
    assert "training goes on without it" in capsys.readouterr().err


OF_A_KIND = "heldout_loss/诗"
TRAIN = """
import json, sys
from pathlib import Path
from cygnet.config import TrainConfig
from cygnet.train.trackers import make_trackers
request = json.loads(sys.argv[1])
for name in request["blocked"]:
    sys.modules[name] = None
config = TrainConfig(**request["config"])
resolved = {"model": {"hidden_size": 512}, "train": {"learning_rate": 0.004}}
trackers = make_trackers(
    config, Path(request["run"]), resolved, request["state"], request["step"]
)
for step in range(request["step"] + 1, request["until"] + 1):
    for tracker in trackers:
        tracker.log({"loss": 1 / step, "lr": 0.5, "heldout_loss/诗": 2 / step}, step)
        tracker.samples([{**row, "score": step} for row in request["samples"]], step)
state = {key: value for tracker in trackers for key, value in tracker.state().items()}
for tracker in trackers:
    tracker.finish(0)
print(json.dumps(state))
"""


def train(
    run: Path,
    home: Path,
    *,
    config: dict | None = None,
    blocked: tuple[str, ...] = (),
    state: dict | None = None,
    steps: tuple[int, int] = (0, 3),
    samples: Sequence[dict] = (),
    **environment: str,
) -> tuple[dict, str]:
    """Run a few logged steps in a process of its own; return the state and what was said.

    Standard input is a pipe that nobody writes to, so a question would wait for ever.
    """
    request = {
        "run": str(run),
        "config": config if config is not None else {"use_wandb": True, "wandb_project": "swans"},
        "blocked": blocked,
        "state": state or {},
        "step": steps[0],
        "until": steps[1],
        "samples": samples,
    }
    trackers = ("WANDB", "SWANLAB", "TRACKIO", "HF_")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(trackers)}
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN, json.dumps(request)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**inherited, "HOME": str(home), "NETRC": str(home / ".netrc"), **environment},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    stdout, stderr = process.stdout.read(), process.stderr.read()
    assert process.wait() == 0, stderr
    assert len(read(run / "metrics.jsonl")) == steps[1]
    # Standard output is for results: no tracker may print there.
    return json.loads(stdout), stderr


def newest(folder: Path) -> Path:
    """Return the file of the newest offline run below a run folder."""
    found = folder.glob("wandb/offline-run-*/*.wandb")
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def records(log: Path) -> list[dict]:
    """Return what wandb's own reader finds in a file."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def history(folder: Path, name: str = "loss") -> list[tuple[int, float]]:
    items = [r["history"]["item"] for r in records(newest(folder)) if r["type"] == "history"]
    return [(item["step"], item[name]) for item in items]


def started(folder: Path) -> dict:
    return next(r["run"] for r in records(newest(folder)) if r["type"] == "run")


def test_wandb_without_login_writes_all_offline_and_says_how_to_sync(tmp_path):
    pytest.importorskip("wandb")
    run = tmp_path / "first"
    state, said = train(run, tmp_path)
    assert history(run) == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert history(run, OF_A_KIND) == [(1, 2.0), (2, 1.0), (3, 2 / 3)]
    begun = started(run)
    assert begun["run_id"] == state["wandb_run_id"]
    assert begun["project"] == "swans"
    assert begun["display_name"] == "first"
    settings = begun["config"]["update"]
    assert settings["model"] == {"hidden_size": 512}
    assert settings["train"] == {"learning_rate": 0.004}
    assert said.count("\n") == 1
    assert "no login" in said
    folder = said.split("wandb sync ")[1].strip()
    assert list(Path(folder).glob("*.wandb"))


def test_wandb_holds_the_samples_of_each_step_as_a_table(tmp_path):
    pytest.importorskip("wandb")
    run = tmp_path / "first"
    train(run, tmp_path, samples=ROWS)
    items = [r["history"]["item"] for r in records(newest(run)) if r["type"] == "history"]
    tables = [(item["step"], item["samples.path"]) for item in items]
    assert [step for step, _ in tables] == [1, 2, 3]
    files = next(run.glob("wandb/offline-run-*/files"))
    for step, path in tables:
        table = json.loads((files / path).read_text(encoding="utf-8"))
        assert table["columns"] == ["prompt", "answer", "score", "note"]
        assert table["data"] == [
            ["What is a comet?", "Ice.", step, ""],
            [HOSTILE, HOSTILE, step, 0.5],
        ]


class Hung(ForeignTracker):
    """A package that takes one line and then does not answer."""

    name = "json"

    def _open(self) -> None:
        self._run, self.taken, self.mend = object(), [], threading.Event()

    def _log(self, metrics: dict, step: int) -> None:
        if step > 1:
            self.mend.wait()
        self.taken.append(step)

    def _log_samples(self, rows: Samples, step: int) -> None:
        pass

    def _finish(self, exit_code: int) -> None:
        self.taken.append("end")


def test_a_package_that_hangs_holds_up_no_step_and_not_the_end(monkeypatch, capsys):
    monkeypatch.setattr(base, "FINISH_TIMEOUT_S", 0.01)
    for last in (10, 3 * base.MAX_WAITING):
        tracker = Hung()
        for step in range(1, last + 1):
            tracker.log({"loss": 1.0}, step)
        tracker.finish(0)
        said = capsys.readouterr().err
        assert said == "json does not answer: what it has not taken is in metrics.jsonl alone\n"
        tracker.mend.set()


LOSE = """
import os, signal, sys
from pathlib import Path
from cygnet.config import TrainConfig
from cygnet.train.trackers import base, make_trackers
base.FINISH_TIMEOUT_S = 0.5
trackers = make_trackers(TrainConfig(use_wandb=True), Path(sys.argv[1]), {}, {})
children = Path("/proc/self/task", str(os.getpid()), "children").read_text().split()
(core,) = [int(pid) for pid in children if "wandb-core" in Path(f"/proc/{pid}/cmdline").read_text()]
os.kill(core, int(sys.argv[2]))
for step in range(1, 3000):
    for tracker in trackers:
        tracker.log({f"metric_{i}": 0.5 for i in range(12)}, step)
for tracker in trackers:
    tracker.finish(0)
print(core)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_of_wandb_that_dies_or_hangs_costs_one_line(tmp_path, number):
    pytest.importorskip("wandb")
    with open(tmp_path / "said", "w") as said:  # a pipe would stay open in the hung process
        result = subprocess.run(
            [sys.executable, "-c", LOSE, str(tmp_path / "run"), str(int(number))],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env={**os.environ, "WANDB_MODE": "offline"},
        )
    *lines, core = (tmp_path / "said").read_text().splitlines()
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(core), signal.SIGKILL)
    assert result.returncode == 0
    assert len(lines) == 2, lines
    assert "training goes on without it" in lines[1] or "does not answer" in lines[1]
    assert len(read(tmp_path / "run" / "metrics.jsonl")) == 2999


def test_a_package_that_is_slow_gets_all_in_order():
    tracker = Hung()
    for step in range(1, 50):
        tracker.log({"loss": 1.0}, step)
    tracker.mend.set()
    tracker.finish(0)
    assert tracker.taken == [*range(1, 50), "end"]


def test_without_the_package_one_line_says_what_to_install(tmp_path):
    _, said = train(tmp_path / "run", tmp_path, blocked=("wandb",))
    assert "pip install 'cygnet[wandb]'" in said
    assert said.count("\n") == 1


def test_a_folder_named_wandb_is_not_taken_for_the_package(tmp_path):
    (tmp_path / "wandb").mkdir()
    request = {"run": "run", "config": {"use_wandb": True}, "blocked": [], "state": {}}
    request |= {"step": 0, "until": 1, "samples": []}
    # -S leaves out installed packages; those needed beside wandb are put back one by one.
    needed = ("yaml", "rich", "pygments", "markdown_it", "mdurl", "cygnet")
    for name in needed:
        origin = importlib.util.find_spec(name).origin
        (tmp_path / name).symlink_to(Path(origin).parent, target_is_directory=True)
    result = subprocess.run(
        [sys.executable, "-S", "-c", TRAIN, json.dumps(request)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert result.returncode == 0, result.stderr
    assert "pip install 'cygnet[wandb]'" in result.stderr


@contextlib.contextmanager
def server(status: int | None) -> Iterator[str]:
    """Serve an HTTP status to everything, or accept connections and never say a word."""
    if status is None:
        with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
            yield f"http://127.0.0.1:{silent.getsockname()[1]}"
        return

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET  # noqa: N815 (the names that http.server looks for)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http_server.server_port}"
        http_server.shutdown()


@pytest.mark.parametrize("status", [None, 401, 500], ids=["silent", "refused key", "broken"])
def test_with_a_key_and_a_server_that_does_not_serve_it_goes_offline(tmp_path, status):
    pytest.importorskip("wandb")
    run = tmp_path / "run"
    with server(status) as url:
        state, said = train(run, tmp_path, WANDB_API_KEY=FAKE_KEY, WANDB_BASE_URL=url)
    assert len(history(run)) == 3
    assert started(run)["run_id"] == state["wandb_run_id"]
    assert "wandb sync" in said


def test_with_a_login_in_netrc_and_no_network_it_goes_offline(tmp_path):
    pytest.importorskip("wandb")
    run = tmp_path / "run"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    host = url.removeprefix("http://")
    (tmp_path / ".netrc").write_text(f"machine {host} login user password {FAKE_KEY}\n")
    (tmp_path / ".netrc").chmod(0o600)
    _, said = train(run, tmp_path, WANDB_BASE_URL=url)
    assert f"no answer from {url}" in said
    assert len(history(run)) == 3


def test_tensorboard_holds_every_step_once_after_a_resume(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = {"tracker": "tensorboard"}
    train(tmp_path / "run", tmp_path, config=config, steps=(0, 4))
    train(tmp_path / "run", tmp_path, config=config, steps=(2, 6))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert events.Scalars("loss")[3].value == pytest.approx(1 / 4)
    assert events.Scalars(OF_A_KIND)[3].value == pytest.approx(2 / 4)


def test_tensorboard_shows_the_samples_of_each_step_as_they_are(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugin_util import markdown_to_safe_html

    train(tmp_path / "run", tmp_path, config={"tracker": "tensorboard"}, samples=ROWS)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    logged = events.Tensors("samples/text_summary")
    assert [event.step for event in logged] == [1, 2, 3]
    shown = ShownTable()
    shown.feed(markdown_to_safe_html(logged[1].tensor_proto.string_val[0]))
    assert shown.rows == [
        ["prompt", "answer", "score", "note"],
        ["What is a comet?", "Ice.", "2", ""],
        [HOSTILE, HOSTILE, "2", "0.5"],
    ]
    assert not {"script", "strong", "em", "code"} & shown.tags


class ShownTable(HTMLParser):
    """The table that a page shows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "br":
            self.rows[-1][-1] += "\n"

    def handle_data(self, data):
        if self.rows and self.rows[-1] and data.strip():
            self.rows[-1][-1] += data


@pytest.mark.parametrize("name", ["tensorboard", "swanlab", "trackio"])
def test_without_the_package_of_a_tracker_one_line_says_what_to_install(tmp_path, name):
    _, said = train(tmp_path / "run", tmp_path, config={"tracker": name}, blocked=(name,))
    assert f"pip install 'cygnet[{name}]'" in said
    assert said.count("\n") == 1
