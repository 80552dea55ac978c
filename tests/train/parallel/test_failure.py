"""What is lost when a process fails: nothing beyond the last checkpoint; and who is named."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cygnet.cli import TRY_AGAIN
from cygnet.text.shards import ShardReader
from tests.train.parallel.conftest import (
    RUNNER,
    Train,
    by_hand,
    environment,
    request,
    torchrun,
)
from tests.train.parallel.test_equal import losses, weights, zero

pytestmark = pytest.mark.slow

APART = 6
"""Steps from one kill to the next; each is done with `WITHIN` fewer."""
OFTEN = {"checkpoint_every": 1, "keep_checkpoints": 3, "eval_every": 1000}
LONG = {"steps": 100_000, "checkpoint_every": 100_000, "log_every": 1, "eval_every": 100_000}


def newest_step(run: Path) -> int:
    return max((int(p.name[5:]) for p in (run / "checkpoints").glob("step_*")), default=0)


def draw_kills(number: int, seed: int) -> list[tuple[int, int, float | str]]:
    """Draw who is killed, in which step and when in it: while a file is written and before a
    checkpoint gets its name, else at any moment of three steps."""
    chooser = random.Random(seed)
    kills: list[tuple[int, int, float | str]] = [
        (chooser.randrange(2), APART * (i + 1), 3 * chooser.random()) for i in range(number)
    ]
    kills[-1] = (0, kills[-1][1], "_rename")
    if number > 3:
        kills[-2] = (1, kills[-2][1], "fsync")
    return kills


WAYS = [
    pytest.param(6, {"parallel": "ddp"}, id="ddp"),
    pytest.param(4, {"parallel": "fsdp"}, id="fsdp"),
    pytest.param(2, zero(3), id="zero3"),
]


@pytest.mark.parametrize(("number", "way"), WAYS)
def test_killed_workers_restart_and_end_with_the_same_bits(
    number: int, way: dict, labelled: ShardReader, together: Train, tmp_path: Path
) -> None:
    settings = {**OFTEN, **way, "steps": APART * (number + 1)}
    whole, killed = together(tmp_path / "whole", **settings), tmp_path / "killed"
    words = {**request(labelled, killed, **settings), "kills": draw_kills(number, seed=number)}
    done = subprocess.run(
        torchrun(
            "--standalone", "--nproc_per_node=2", f"--max-restarts={number}", RUNNER,
            json.dumps(words),
        ),
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list(Path(f"{killed}.kills").iterdir())) == number
    assert losses(killed) == losses(whole)
    found = weights(killed)
    assert all(torch.equal(value, found[name]) for name, value in weights(whole).items())


BEATING = """
from torch.distributed import TCPStore
from cygnet.train.parallel import group
group.HEARTBEAT_S = 0.0
group._show_life(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False), 0)
"""


def test_a_process_that_is_done_ends_in_peace_while_it_shows_life() -> None:
    """A thread inside torch's code as the interpreter closes would abort it, now and then."""
    ending = [
        subprocess.Popen([sys.executable, "-c", BEATING], env=environment(), stderr=subprocess.PIPE)
        for _ in range(6)
    ]
    said = [process.communicate()[1] for process in ending]
    assert [process.returncode for process in ending] == [0] * len(ending), said


LEAVING = """
import torch
import torch.distributed as dist
from cygnet.train.parallel.group import connect
connect(60.0)
for _ in range(500):
    dist.all_reduce(torch.zeros(20_000), async_op=True)
"""


def test_a_process_that_is_done_ends_in_peace_while_gloo_drops_its_tensors() -> None:
    """As above: gloo's threads need the interpreter to let go of a tensor."""
    ending = [by_hand(program=("-c", LEAVING), stderr=subprocess.PIPE) for _ in range(3)]
    said = [process.communicate()[1] for pair in ending for process in pair]
    assert [process.returncode for pair in ending for process in pair] == [0] * 6, said


def start(words: dict[str, Any]) -> list["subprocess.Popen[str]"]:
    return by_hand(json.dumps(words), stderr=subprocess.PIPE)


def wait_for_steps(run: Path, processes: list["subprocess.Popen[str]"]) -> None:
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 4:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)


def test_sigterm_to_all_writes_a_checkpoint_and_asks_to_be_tried_again(
    labelled: ShardReader, tmp_path: Path
) -> None:
    """To one is enough: all stop after the same step. What comes again changes nothing."""
    processes = start(request(labelled, tmp_path / "run", **LONG))
    wait_for_steps(tmp_path / "run", processes)
    assert processes[0].stderr
    processes[0].terminate()
    while "SIGTERM: stopping" not in processes[0].stderr.readline():
        assert processes[0].poll() is None
    for process in processes:
        process.terminate()
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [TRY_AGAIN, TRY_AGAIN], said
    assert newest_step(tmp_path / "run") > 0


@pytest.mark.parametrize(("hung", "way"), [(0, "ddp"), (1, "ddp"), (1, "pipeline")])
def test_a_hung_process_is_named(
    hung: int, way: str, labelled: ShardReader, tmp_path: Path
) -> None:
    settings = {**LONG, "parallel": way, "timeout_s": 12.0}
    processes = start(request(labelled, tmp_path / "run", **settings))
    wait_for_steps(tmp_path / "run", processes)
    processes[hung].send_signal(signal.SIGSTOP)
    said = processes[1 - hung].communicate()[1]
    processes[hung].kill()
    processes[hung].communicate()
    assert processes[1 - hung].returncode == 2
    assert re.search(
        rf"rank {1 - hung}, step \d+: the other processes do not answer \(rank {hung} is", said
    ), said


def test_a_loss_that_is_no_number_names_the_rank_and_stops_all(
    labelled: ShardReader, tmp_path: Path
) -> None:
    processes = start({**request(labelled, tmp_path / "run"), "poison": 1})
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], said
    for text in said:
        assert "step 0: not finite in the rows of rank 1" in text
    assert newest_step(tmp_path / "run") == 0


def test_a_run_folder_that_is_not_shared_is_refused(labelled: ShardReader, tmp_path: Path) -> None:
    words = {**request(labelled, tmp_path / "run_of_%r"), "shared_folder_s": 0.5}
    processes = start(words)
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], said
    assert all("rank 1 does not see what rank 0 writes there" in text for text in said), said


def test_an_error_in_one_process_ends_all(labelled: ShardReader, tmp_path: Path) -> None:
    """Also one that is no mistake of the person, while another waits for this one's checkpoint."""
    processes = start({**request(labelled, tmp_path / "run", **OFTEN), "breaks": 1})
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 1], said
    assert "rank 1 is gone" in said[0] and "ZeroDivisionError" in said[1], said
