"""Runs a training in child processes and kills each with SIGKILL at a random moment.

A script of its own, so that nothing has used torch's threads before it forks. Arguments: shards,
tokenizer hash, run folder, kills, seed. Prints the number of kills that hit a run in progress.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
import torch._dynamo  # the optimizer would import it in every child

from cygnet.config import ModelConfig, TrainConfig
from cygnet.model.transformer import Transformer
from cygnet.stages.next_token import NextTokenStage
from cygnet.text.shards import ShardReader
from cygnet.train.engine import Engine

STEPS = 150


def train(shards: Path, tokenizer_hash: str, run: Path) -> None:
    reader = ShardReader(shards, tokenizer_hash)
    config = TrainConfig(
        steps=STEPS, batch_tokens=128, max_seq_len=32, micro_batch=2, learning_rate=0.01,
        dtype="fp32", device="cpu", compile="off", checkpoint_every=1, log_every=1, eval_every=20,
    )  # fmt: skip
    sizes = ModelConfig(
        vocab_size=300, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1,
        intermediate_size=48,
    )  # fmt: skip
    model = Transformer(sizes)
    model.initialize(torch.Generator().manual_seed(0))
    stage = NextTokenStage("pretrain", reader, reader, config)
    Engine(model, stage, config, run, {"stage": "pretrain"}).train()


def main() -> None:
    shards, tokenizer_hash, run = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    kills, chooser = int(sys.argv[4]), random.Random(int(sys.argv[5]))
    torch.set_num_threads(1)
    hits = 0
    while True:
        child = os.fork()
        if child == 0:
            train(shards, tokenizer_hash, run)
            os._exit(0)
        if hits < kills:
            started = newest(run)
            # Wait until this child has done something new, then strike within its next steps.
            while newest(run) == started and os.waitpid(child, os.WNOHANG) == (0, 0):
                time.sleep(0.001)
            time.sleep(chooser.random() * 0.05)
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                break
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            hits += 1
        elif os.WEXITSTATUS(status) == 0:
            break
        else:
            sys.exit("the training failed")
    print(hits)


def newest(run: Path) -> str:
    return max((path.name for path in (run / "checkpoints").glob("step_*")), default="")


if __name__ == "__main__":
    main()
