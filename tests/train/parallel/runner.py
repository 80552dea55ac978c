"""Trainings in each process that torchrun, deepspeed or a test starts; arguments as JSON.

{"shards": folder, "tokenizer": hash, "run": folder, "config": settings, "sizes": model,
 "poison": rank whose loss becomes NaN, or none, "breaks": rank whose loss raises an error,
 "kills", "wait_at": see `Doomed`, "maker": of `stages.MAKERS`, none for pretraining}

One as argument, or a line of standard input for each, which is answered with DONE.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from cygnet.cli import guarded
from cygnet.config import ModelConfig, TrainConfig, load_settings
from cygnet.model.transformer import Transformer
from cygnet.stages.next_token import NextTokenStage
from cygnet.text.loader import Batch
from cygnet.text.shards import ShardReader
from cygnet.text.tokenizer import Tokenizer
from cygnet.train import checkpoint
from cygnet.train.engine import Engine
from cygnet.train.parallel import group
from cygnet.train.parallel.group import disconnect, world
from tests.train.parallel.stages import MAKERS

DONE = "DONE\n"
WITHIN = 4
"""Steps within which a process that has to die is dead."""


class Poisoned(NextTokenStage):
    """A stage whose loss is not a number."""

    def loss(self, model: Any, rows: Any) -> Any:
        loss, metrics = super().loss(model, rows)
        return loss * float("nan"), metrics


class Broken(NextTokenStage):
    """A stage whose loss cannot be computed."""

    def loss(self, model: Any, rows: Any) -> Any:
        raise ZeroDivisionError


class Doomed(NextTokenStage):
    """A stage whose process is killed with SIGKILL, at each of several places once.

    Where it is alone it goes to step `wait_at`, if there is one, and waits for SIGTERM there.

    A place is (rank, step, when): so many times a step's duration after the step's batch is asked
    for, or upon entering that function of the checkpoint's file, or at once with its launcher
    ("machine"). Attempts that come later find a file named after the place's number in `marks`.
    """

    marks: Path
    kills: list[tuple[int, int, float | str]]
    wait_at: int | None = None
    asked = 0.0

    def batch(self, number: int) -> Batch:
        while (
            self.wait_at is not None
            and number >= self.wait_at
            and world().size == 1
            and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        ):
            time.sleep(0.05)
        now = time.monotonic()
        step_s, self.asked = (now - self.asked if self.asked else 0.05), now
        for place, (rank, step, when) in enumerate(self.kills):
            mark = self.marks / str(place)
            if rank != world().rank or mark.exists():
                continue
            if number == step and when == "machine":
                mark.touch()
                os.kill(os.getppid(), signal.SIGKILL)
                self._die(mark)
            elif number == step and isinstance(when, str):
                setattr(checkpoint, when, lambda *_, mark=mark: self._die(mark))
            elif number == step:
                threading.Timer(when * step_s, self._die, [mark]).start()
            elif number == step + WITHIN:
                threading.Event().wait()  # however slow the machine: the run does not outlive it
        return super().batch(number)

    def _die(self, mark: Path) -> None:
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def train(
    shards: str, tokenizer: str, run: str, config: dict, sizes: dict,
    poison: int | None = None, breaks: int | None = None, wait_at: int | None = None,
    shared_folder_s: float = 30.0,
    kills: list[tuple[int, int, float | str]] | None = None, maker: str | None = None,
) -> None:  # fmt: skip
    group.SHARED_FOLDER_S = shared_folder_s
    settings = load_settings(TrainConfig, config, "test")
    reader = ShardReader(Path(shards), tokenizer)
    model = Transformer(ModelConfig(**sizes))
    model.initialize(torch.Generator().manual_seed(0))
    rank, fails = world().rank, poison is not None or breaks is not None
    kind = Poisoned if rank == poison else Broken if rank == breaks else NextTokenStage
    kind = Doomed if kills else kind
    words = Tokenizer.load(Path(shards).with_name("tokenizer"))
    stage: Any = kind("pretrain", reader, None if fails else reader, settings, words)
    if maker:
        model, stage = MAKERS[maker](model, reader, settings, words)
    if isinstance(stage, Doomed):
        stage.kills, stage.marks, stage.wait_at = kills or [], Path(f"{run}.kills"), wait_at
        stage.marks.mkdir(exist_ok=True)
    Engine(model, stage, settings, Path(run), {"stage": "pretrain"}).train()


if __name__ == "__main__":
    with guarded():
        given = [word for word in sys.argv[1:] if not word.startswith("--")]
        for words in given or sys.stdin:
            train(**json.loads(words))
            sys.stdout.write(DONE)
            sys.stdout.flush()
        disconnect()
