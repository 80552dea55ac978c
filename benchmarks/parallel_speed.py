"""Two processes of one thread each against one process of one thread, the same steps.

For each way of spreading: tokens a second of both, and how many times one the two are. Runs
alternate, one and two; what counts is the ratio of medians.

    python benchmarks/parallel_speed.py [--ways ddp fsdp zero2] [--preset 26m] [--rounds 1]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import torch

from cygnet.config import ModelConfig, TrainConfig, load_settings, read_yaml
from cygnet.model.transformer import Transformer
from cygnet.stages.next_token import NextTokenStage
from cygnet.text.shards import ShardReader, write_shards
from cygnet.train.engine import Engine

ROOT = Path(__file__).parent.parent
STEPS, SEQ_LEN, ROWS = 4, 512, 64


def train(words: dict) -> None:
    """Train for a few steps; what a process that was started here does."""
    values = read_yaml(ROOT / "configs" / f"{words['preset']}.yaml")
    sizes = load_settings(ModelConfig, values["model"], words["preset"])
    config = TrainConfig(
        steps=STEPS, batch_tokens=ROWS * SEQ_LEN, max_seq_len=SEQ_LEN, micro_batch=8, threads=1,
        log_every=1, eval_every=1000, checkpoint_every=1000, compile="on",
        **{name: Path(v) if name == "deepspeed" else v for name, v in words["config"].items()},
    )  # fmt: skip
    model = Transformer(sizes)
    model.initialize(torch.Generator().manual_seed(0))
    stage = NextTokenStage("pretrain", ShardReader(words["shards"], "none"), None, config)
    Engine(model, stage, config, Path(words["run"]), {"stage": "pretrain"}).train()


def speed(words: dict, processes: int) -> float:
    """Return the median tokens a second of all but the first two steps."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [*launcher, __file__, "--words", json.dumps(words)],
        env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    lines = (Path(words["run"]) / "metrics.jsonl").read_text().splitlines()
    speeds = [m["tokens_per_second"] for m in map(json.loads, lines) if "tokens_per_second" in m]
    return median(speeds[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", nargs="+", default=["ddp", "fsdp", "zero2"])
    parser.add_argument("--preset", default="26m")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--words", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.words:
        train(json.loads(options.words))
        return
    print("| way | one process, tokens/s | two processes, tokens/s | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        chooser = np.random.default_rng(0)
        documents = [(chooser.integers(0, 6400, 600).tolist(), [True] * 600) for _ in range(600)]
        shards = Path(temporary) / "shards"
        write_shards(shards, documents, "none", 6400, {})
        for way in options.ways:
            config = {"parallel": way}
            if way.startswith("zero"):
                config = {"deepspeed": str(ROOT / "configs" / "deepspeed" / f"{way}.json")}
                config["optimizer"] = "adamw"
            found: dict[int, list[float]] = {1: [], 2: []}
            for number in range(options.rounds):
                for processes in found:
                    run = f"{temporary}/{way}-{processes}-{number}"
                    words = {
                        "shards": str(shards), "preset": options.preset, "run": run,
                        "config": {k: v for k, v in config.items()
                                   if processes > 1 or k == "optimizer"},
                    }  # fmt: skip
                    found[processes].append(speed(words, processes))
            one, two = median(found[1]), median(found[2])
            print(f"| {way} | {one:,.0f} | {two:,.0f} | {two / one:.2f} |", flush=True)


if __name__ == "__main__":
    main()
