"""Starting real groups of processes."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cygnet.text.shards import ShardReader, write_shards
from cygnet.text.tokenizer import Tokenizer
from tests.train.parallel.runner import train

SIZES = {
    "vocab_size": 300, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
    "intermediate_size": 48, "max_position": 64,
}  # fmt: skip
CONFIG = {
    "steps": 6, "batch_tokens": 5 * 32, "max_seq_len": 32, "micro_batch": 2, "learning_rate": 0.01,
    "dtype": "fp32", "device": "cpu", "compile": "off", "log_every": 1, "eval_every": 3,
    "checkpoint_every": 2, "timeout_s": 60.0,
}  # fmt: skip
Train = Callable[..., Path]


@pytest.fixture(scope="session")
def labelled(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    """Documents of which some tokens are learnt: another number in each row."""
    chooser = random.Random(3)
    documents = []
    for _ in range(60):
        ids = [chooser.randrange(tokenizer.vocab_size) for _ in range(chooser.randint(4, 30))]
        first = chooser.randrange(len(ids) - 1)
        documents.append((ids, [first <= at for at in range(len(ids))]))
    folder = tmp_path_factory.mktemp("labelled") / "train"
    write_shards(folder, documents, tokenizer.hash, tokenizer.vocab_size, {}, has_labels=True)
    tokenizer.save(folder.with_name("tokenizer"))
    return ShardReader(folder, tokenizer.hash)


def request(shards: ShardReader, run: Path, **config: Any) -> dict[str, Any]:
    return {
        "shards": str(shards.folder), "tokenizer": shards.manifest["tokenizer_hash"],
        "run": str(run), "config": {**CONFIG, **config}, "sizes": SIZES,
    }  # fmt: skip


@pytest.fixture
def alone(labelled: ShardReader) -> Train:
    """Train in this process."""

    def run(folder: Path, **config: Any) -> Path:
        train(**request(labelled, folder, **config))
        return folder

    return run


def torchrun(*arguments: str, processes: int = 2) -> list[str]:
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc_per_node={processes}", *arguments,
    ]  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}


@pytest.fixture
def together(labelled: ShardReader) -> Train:
    """Train in two processes that torchrun starts."""

    def run(folder: Path, processes: int = 2, **config: Any) -> Path:
        script = str(Path(__file__).with_name("runner.py"))
        words = json.dumps(request(labelled, folder, **config))
        done = subprocess.run(
            torchrun(script, words, processes=processes),
            env=environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return folder

    return run
