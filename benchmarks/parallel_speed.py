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


def make_engine(words: dict, kind: type[Engine] = Engine) -> Engine:
    """Return what trains; `words` hold the preset or sizes, shards, run folder and settings."""
    sizes = words.get("sizes")
    if sizes is None:
        sizes = read_yaml(ROOT / "configs" / f"{words['preset']}.yaml")["model"]
    given = {
        "max_seq_len": SEQ_LEN, "threads": 1, "log_every": 1, "eval_every": 1000,
        "checkpoint_every": 1000,
    }  # fmt: skip
    config = load_settings(TrainConfig, {**given, **words["config"]}, "settings")
    model = Transformer(load_settings(ModelConfig, sizes, "sizes"))
    model.initialize(torch.Generator().manual_seed(0))
    stage = NextTokenStage(
        "pretrain", ShardReader(Path(words["shards"]), words.get("tokenizer", "none")), None, config
    )
    return kind(model, stage, config, Path(words["run"]), {"stage": "pretrain"})


def make_shards(folder: Path, vocab_size: int = 6400) -> None:
    """Write random documents of 600 tokens."""
    chooser = np.random.default_rng(0)
    documents = [(chooser.integers(0, vocab_size, 600).tolist(), [True] * 600) for _ in range(600)]
    write_shards(folder, documents, "none", vocab_size, {})


def settings_of(way: str) -> dict:
    """Return the settings of a way of spreading; `zero2` is a file of configs/deepspeed/."""
    if not way.startswith("zero"):
        return {"parallel": way}
    file = ROOT / "configs" / "deepspeed" / f"{way}.json"
    return {"deepspeed": str(file), "optimizer": "adamw"}


def launch(file: str, words: dict, processes: int, before: tuple[str, ...] = ()) -> None:
    """Run `file --words ...` in so many processes, behind the command `before`."""
    launcher = [*before, sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*launcher, file, "--words", json.dumps(words)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)


def speed(words: dict, processes: int) -> float:
    """Return the median tokens a second of all but the first two steps."""
    launch(__file__, words, processes)
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
        make_engine(json.loads(options.words)).train()
        return
    print("| way | one process, tokens/s | two processes, tokens/s | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        shards = Path(temporary) / "shards"
        make_shards(shards)
        steps = {"steps": STEPS, "batch_tokens": ROWS * SEQ_LEN, "micro_batch": 8, "compile": "on"}
        for way in options.ways:
            config = settings_of(way)
            found: dict[int, list[float]] = {1: [], 2: []}
            for number in range(options.rounds):
                for processes in found:
                    run = f"{temporary}/{way}-{processes}-{number}"
                    words = {
                        "shards": str(shards), "preset": options.preset, "run": run,
                        "config": steps | {k: v for k, v in config.items()
                                           if processes > 1 or k == "optimizer"},
                    }  # fmt: skip
                    found[processes].append(speed(words, processes))
            one, two = median(found[1]), median(found[2])
            print(f"| {way} | {one:,.0f} | {two:,.0f} | {two / one:.2f} |", flush=True)


if __name__ == "__main__":
    main()
