"""Starting real groups of processes."""

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cygnet.text.shards import ShardReader, write_shards
from cygnet.text.tokenizer import Tokenizer
from tests.train.parallel.runner import DONE, train

RUNNER = str(Path(__file__).with_name("runner.py"))
SIZES = {
    "vocab_size": 300, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
    "intermediate_size": 48, "max_position": 64,
}  # fmt: skip
CONFIG = {
    "steps": 6, "batch_tokens": 5 * 32, "max_seq_len": 32, "micro_batch": 2, "learning_rate": 0.01,
    "dtype": "fp32", "device": "cpu", "compile": "off", "log_every": 1, "eval_every": 3,
    "checkpoint_every": 2, "timeout_s": 60.0,
}  # fmt: skip
KINDS = ("poem", "recipe")
Train = Callable[..., Path]


@pytest.fixture(scope="session")
def labelled(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    """Documents of two kinds of which some tokens are learnt: another number in each row."""
    chooser = random.Random(3)
    documents = []
    for _ in range(60):
        ids = [chooser.randrange(tokenizer.vocab_size) for _ in range(chooser.randint(4, 30))]
        first = chooser.randrange(len(ids) - 1)
        kind = chooser.choice(KINDS)
        documents.append((ids, [first <= at for at in range(len(ids))], kind))
    folder = tmp_path_factory.mktemp("labelled") / "train"
    write_shards(
        folder, documents, tokenizer.hash, tokenizer.vocab_size, {},
        has_labels=True, has_kinds=True,
    )  # fmt: skip
    tokenizer.save(folder.with_name("tokenizer"))
    return ShardReader(folder, tokenizer.hash)


def request(
    shards: ShardReader, run: Path, maker: str | None = None, **config: Any
) -> dict[str, Any]:
    return {
        "maker": maker,
        "shards": str(shards.folder), "tokenizer": shards.manifest["tokenizer_hash"],
        "run": str(run), "config": {**CONFIG, **config}, "sizes": SIZES,
    }  # fmt: skip


def torchrun(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def by_hand(
    *arguments: str, size: int = 2, program: Sequence[str] = (RUNNER,), **pipes: Any
) -> list["subprocess.Popen[str]"]:
    """Start processes as a scheduler does, so that each one's exit code can be seen.

    `%r` in the arguments becomes the rank.
    """
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    return [
        subprocess.Popen(
            [sys.executable, *program, *(a.replace("%r", str(rank)) for a in arguments)],
            env={**environment(), **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            text=True, **pipes,
        )
        for rank in range(size)
    ]  # fmt: skip


class Group:
    """Processes that make one training after another: starting them takes longer than training."""

    def __init__(self, size: int, log: Path) -> None:
        self.log = log
        with log.open("w") as errors:
            self.processes = by_hand(
                size=size, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )

    def train(self, words: dict[str, Any]) -> None:
        """Train in all processes."""
        before = self.log.stat().st_size
        for process in self.processes:
            assert process.stdin
            process.stdin.write(json.dumps(words) + "\n")
            process.stdin.flush()
        for process in self.processes:
            assert process.stdout
            if DONE not in iter(process.stdout.readline, ""):
                pytest.fail(self.log.read_bytes()[before:].decode(errors="replace"))

    @property
    def is_alive(self) -> bool:
        return all(process.poll() is None for process in self.processes)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture(scope="session")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Group]]:
    """Give the group of so many processes."""
    running: dict[int, Group] = {}

    def give(size: int) -> Group:
        if size in running and not running[size].is_alive:
            running.pop(size).end()
        if size not in running:
            running[size] = Group(size, tmp_path_factory.mktemp("group") / "stderr")
        return running[size]

    yield give
    for group in running.values():
        group.end()


@pytest.fixture
def alone(labelled: ShardReader) -> Train:
    """Train in this process."""

    def run(folder: Path, **config: Any) -> Path:
        train(**request(labelled, folder, **config))
        return folder

    return run


@pytest.fixture
def together(labelled: ShardReader, groups: Callable[[int], Group]) -> Train:
    """Train in several processes."""

    def run(folder: Path, processes: int = 2, **config: Any) -> Path:
        groups(processes).train(request(labelled, folder, **config))
        return folder

    return run
