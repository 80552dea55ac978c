"""Two machines, as far as one can be two: launchers that know of each other by address alone."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cygnet.files import read_json
from cygnet.text.shards import ShardReader
from tests.train.parallel.conftest import RUNNER, Train, environment, free_port, request, torchrun
from tests.train.parallel.test_equal import losses, weights, zero

Launcher = subprocess.Popen[str]


def launch(command: list[str], log: Path, **more: str) -> Launcher:
    with log.open("w") as file:
        return subprocess.Popen(
            command, env={**environment(), **more}, text=True, stdout=file,
            stderr=subprocess.STDOUT,
        )  # fmt: skip


def assert_equal(run: Path, whole: Path) -> None:
    assert losses(run) == pytest.approx(losses(whole), rel=2e-5)
    expected, found = weights(whole), weights(run)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].allclose(value, rtol=1e-3, atol=2e-4), name


def test_two_machines_are_one_process(labelled: ShardReader, alone: Train, tmp_path: Path) -> None:
    words = json.dumps(request(labelled, tmp_path / "two"))
    meeting = ["--nnodes=2", "--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    logs = [tmp_path / f"node_{rank}" for rank in range(2)]
    nodes = [
        launch(torchrun(*meeting, f"--node_rank={rank}", RUNNER, words), log)
        for rank, log in enumerate(logs)
    ]
    assert [node.wait() for node in nodes] == [0, 0], [log.read_text() for log in logs]
    assert_equal(tmp_path / "two", alone(tmp_path / "one"))


@pytest.mark.slow
def test_a_machine_that_goes_away_and_comes_back(
    labelled: ShardReader, alone: Train, tmp_path: Path
) -> None:
    """Two machines, one, two again: nobody but the lost machine is touched.

    That one dies in step 5 with its launcher; the other one goes to step 9 alone, and no further.
    """
    settings: dict[str, Any] = {"steps": 14, "checkpoint_every": 1, "keep_checkpoints": 20}
    run = tmp_path / "run"
    words = json.dumps(
        {**request(labelled, run, **settings), "kills": [(1, 5, "machine")], "wait_at": 9}
    )
    meeting = [
        "--nnodes=1:2", "--max-restarts=20", "--rdzv_backend=c10d", "--rdzv_id=cygnet",
        f"--rdzv_endpoint=127.0.0.1:{free_port()}",
    ]  # fmt: skip

    def node(number: int) -> Launcher:
        # The machine that all meet at is not the one that goes.
        conf = f"last_call_timeout=2,keep_alive_interval=1,is_host={int(number == 0)}"
        command = torchrun(*meeting, f"--rdzv_conf={conf}", RUNNER, words)
        # Else torchrun tells a machine that joins later no address (torch 2.13): both wait in vain.
        own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        return launch(command, tmp_path / f"node_{number}", **own_store)

    stays, goes = node(0), node(1)
    try:
        assert goes.wait() == -signal.SIGKILL
        while not (run / "checkpoints/step_00000008").exists():
            assert stays.poll() is None, (tmp_path / "node_0").read_text()
            time.sleep(0.05)
        goes = node(2)
        ends = [stays.wait(), goes.wait()]
        assert ends == [0, 0], [(tmp_path / f"node_{i}").read_text() for i in (0, 2)]
    finally:
        for launcher in (stays, goes):
            launcher.terminate()  # takes its workers along
            launcher.wait()
    wrote = [
        read_json(run / f"checkpoints/step_{step:08d}/manifest.json")["processes"]
        for step in range(1, settings["steps"] + 1)
    ]
    assert wrote[0] == 2 and wrote[7] == 1 and wrote[-1] == 2, wrote
    assert_equal(run, alone(tmp_path / "whole", **settings))


@pytest.mark.slow
def test_deepspeed_on_two_machines_of_a_hostfile(
    labelled: ShardReader, alone: Train, tmp_path: Path
) -> None:
    hosts = tmp_path / "hostfile"
    hosts.write_text("127.0.0.1 slots=1\nlocalhost slots=1\n")
    words = json.dumps(request(labelled, tmp_path / "two", **zero(2)))
    start = [
        str(Path(sys.executable).with_name("deepspeed")), f"--hostfile={hosts}", "--no_ssh",
        "--master_addr=127.0.0.1", f"--master_port={free_port()}",
    ]  # fmt: skip
    logs = [tmp_path / f"node_{rank}" for rank in range(2)]
    nodes = [
        launch([*start, f"--node_rank={rank}", RUNNER, words], log) for rank, log in enumerate(logs)
    ]
    assert [node.wait() for node in nodes] == [0, 0], [log.read_text() for log in logs]
    assert_equal(tmp_path / "two", alone(tmp_path / "one", optimizer="adamw"))
