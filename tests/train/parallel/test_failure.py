"""What is lost when a process fails: nothing beyond the last checkpoint; and who is named."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cygnet.cli import TRY_AGAIN
from cygnet.text.shards import ShardReader
from tests.train.parallel.conftest import environment, request, torchrun
from tests.train.parallel.test_equal import losses, weights

RUNNER = str(Path(__file__).with_name("runner.py"))
KILLS = 6
LONG = {"steps": 150, "checkpoint_every": 1, "keep_checkpoints": 3, "eval_every": 1000}


def children(process: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return found


def newest_step(run: Path) -> int:
    return max((int(p.name[5:]) for p in (run / "checkpoints").glob("step_*")), default=0)


@contextmanager
def ended(process: "subprocess.Popen[str]") -> Iterator["subprocess.Popen[str]"]:
    try:
        yield process
    finally:
        for child in children(process.pid) if process.poll() is None else []:
            os.kill(child, signal.SIGKILL)
        process.kill()
        process.wait()


def by_hand(words: dict[str, Any], size: int = 2) -> list["subprocess.Popen[str]"]:
    """Start processes as a scheduler does, so that each one's exit code can be seen."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    return [
        subprocess.Popen(
            [sys.executable, RUNNER, json.dumps(words)],
            env={**environment(), **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip


def test_killed_workers_restart_and_end_with_the_same_bits(
    labelled: ShardReader, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(
        torchrun(RUNNER, json.dumps(request(labelled, whole, **LONG))),
        env=environment(), check=True, capture_output=True,
    )  # fmt: skip
    chooser = random.Random(5)
    words = json.dumps(request(labelled, killed, **LONG))
    command = [*torchrun(f"--max-restarts={KILLS + 5}", RUNNER), words]
    with ended(
        subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    ) as launcher:
        kills = 0
        for _ in range(KILLS):
            before = newest_step(killed)
            while newest_step(killed) <= before and launcher.poll() is None:
                time.sleep(0.005)
            time.sleep(chooser.random() * 0.1)
            workers = children(launcher.pid)
            if launcher.poll() is not None or not workers:
                break
            os.kill(chooser.choice(workers), signal.SIGKILL)
            kills += 1
        _, said = launcher.communicate()
        assert launcher.returncode == 0, said
    assert kills == KILLS
    assert losses(killed) == losses(whole)
    found = weights(killed)
    assert all(torch.equal(value, found[name]) for name, value in weights(whole).items())


def test_sigterm_to_all_writes_a_checkpoint_and_asks_to_be_tried_again(
    labelled: ShardReader, tmp_path: Path
) -> None:
    long = {**LONG, "steps": 100_000, "checkpoint_every": 100_000, "log_every": 1}
    processes = by_hand(request(labelled, tmp_path / "run", **long))
    metrics = tmp_path / "run/metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 4:
        time.sleep(0.02)
    processes[1].terminate()  # one is enough: all stop after the same step
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [TRY_AGAIN, TRY_AGAIN], said
    assert newest_step(tmp_path / "run") > 0


def test_a_hung_process_is_named(labelled: ShardReader, tmp_path: Path) -> None:
    long = {**LONG, "steps": 100_000, "checkpoint_every": 100_000, "timeout_s": 12.0}
    processes = by_hand(request(labelled, tmp_path / "run", **long))
    metrics = tmp_path / "run/metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 4:
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGSTOP)
    said = processes[0].communicate()[1]
    processes[1].kill()
    processes[1].communicate()
    assert processes[0].returncode == 2
    assert re.search(
        r"rank 0, step \d+: the other processes do not answer \(rank 1 is gone or stopped", said
    ), said


def test_a_loss_that_is_no_number_names_the_rank_and_stops_all(
    labelled: ShardReader, tmp_path: Path
) -> None:
    words = {**request(labelled, tmp_path / "run"), "poison": 1}
    processes = by_hand(words)
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], said
    for text in said:
        assert "step 0: not finite in the rows of rank 1" in text
    assert newest_step(tmp_path / "run") == 0
