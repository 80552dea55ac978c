"""When does compiling repay its start? Eager and compiled steps, and the compiler's time.

For each preset: seconds of a step of 16 rows without and with compiled blocks (forward and
backward), seconds that the first compiled step takes with an empty cache, and the eager training
time from which compiling has paid for itself.

    python benchmarks/compile_repays.py [--presets demo 26m]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from cygnet.config import ModelConfig, TrainConfig, load_settings, read_yaml
from cygnet.model.loss import linear_cross_entropy, softmax_gradient
from cygnet.model.transformer import Transformer
from cygnet.train.hardware import find_hardware

ROWS, STEPS = 16, 5
CONFIGS = Path(__file__).parent.parent / "configs"


def measure(preset: str, compiled: bool) -> tuple[float, float]:
    """Return the seconds of the first step and the median of those behind it."""
    values = read_yaml(CONFIGS / f"{preset}.yaml")
    config = load_settings(ModelConfig, values["model"], preset)
    seq_len = values["pretrain"]["max_seq_len"]
    model = Transformer(config, find_hardware(TrainConfig()).dtype)
    model.initialize(torch.Generator().manual_seed(0))
    kernel = softmax_gradient
    if compiled:
        kernel = torch.compile(softmax_gradient)
        for block in model.model.layers:
            block.compile(dynamic=False)
    tokens, labels = torch.randint(0, config.vocab_size, (2, ROWS, seq_len))
    documents = torch.zeros(ROWS, seq_len, dtype=torch.int32)
    positions = torch.arange(seq_len).expand(ROWS, -1)
    seconds = []
    for _ in range(STEPS + 1):
        started = time.perf_counter()
        hidden = model(tokens, positions, documents).flatten(0, 1)
        linear_cross_entropy(hidden, model.output_weight, labels.flatten(), kernel).backward()
        model.zero_grad()
        seconds.append(time.perf_counter() - started)
    return seconds[0], median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["demo", "26m"])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(*measure(options.one[0], options.one[1] == "compiled"))
        return
    print("| preset | eager, s a step | compiled, s a step | cold start, s | repays from, s |")
    print("|---|---|---|---|---|")
    for preset in options.presets:
        found = {}
        for way in ("eager", "compiled"):
            with tempfile.TemporaryDirectory() as cache:
                command = [sys.executable, __file__, "--one", preset, way]
                environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
                line = subprocess.check_output(command, env=environment, text=True)
            found[way] = [float(word) for word in line.split()]
        cold = found["compiled"][0] - found["compiled"][1]
        eager, compiled = found["eager"][1], found["compiled"][1]
        repays = cold / (1 - compiled / eager) if compiled < eager else float("inf")
        print(f"| {preset} | {eager:.2f} | {compiled:.2f} | {cold:.0f} | {repays:.0f} |")


if __name__ == "__main__":
    main()
