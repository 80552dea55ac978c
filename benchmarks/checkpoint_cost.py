"""What a checkpoint costs: the stall, and the steps that are slower while it is written.

Blocks of steps with one checkpoint each alternate with blocks that have none. What a block with
one takes longer, over the time of 50 steps, is the cost of a checkpoint every 50 steps.

    python benchmarks/checkpoint_cost.py [--preset 26m] [--batch_tokens 4096] [--blocks 6]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev

from parallel_speed import make_engine, make_shards

from cygnet.text.loader import Batch
from cygnet.train.engine import Engine

EVERY, BLOCK_STEPS, WARM_UP = 50, 4, 2


class Watched(Engine):
    """An engine that checkpoints every other block, and notes stalls and times of blocks."""

    def train(self) -> None:
        """Train, with lists of stalls and of the ends of steps."""
        self.stalls_s: list[float] = []
        self.ends_s: list[float] = []
        super().train()

    def _update(self, batch: Batch, scale: float) -> dict[str, float]:
        self.ends_s.append(time.perf_counter())
        done = len(self.ends_s) - 1 - WARM_UP
        if done >= 0 and done % (2 * BLOCK_STEPS) == 0:
            before = time.perf_counter()
            super()._save()
            self.stalls_s.append(time.perf_counter() - before)
        return super()._update(batch, scale)

    def _save(self, kept: bool = False) -> None:
        """Leave out the checkpoint of the last step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="26m")
    parser.add_argument("--batch_tokens", type=int, default=4096)
    parser.add_argument("--blocks", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        shards, run = Path(temporary) / "shards", Path(temporary) / "run"
        make_shards(shards)
        config = {
            "steps": WARM_UP + 2 * BLOCK_STEPS * options.blocks + 1, "threads": None,
            "batch_tokens": options.batch_tokens, "eval_every": 10_000, "log_every": 1000,
            "checkpoint_every": 10_000, "compile": "on",
        }  # fmt: skip
        words = {"preset": options.preset, "shards": shards, "run": run, "config": config}
        engine = make_engine(words, Watched)
        engine.train()
        newest = max((run / "checkpoints").glob("step_*"))
        size = sum(path.stat().st_size for path in newest.iterdir())
    ends = engine.ends_s[WARM_UP:]
    blocks = [b - a for a, b in zip(ends[::BLOCK_STEPS], ends[BLOCK_STEPS::BLOCK_STEPS])]  # noqa: B905
    costs = [written - plain for written, plain in zip(blocks[::2], blocks[1::2], strict=True)]
    step_s = mean(blocks[1::2]) / BLOCK_STEPS
    spread = stdev(costs) if len(costs) > 1 else 0.0
    print(
        f"{options.preset}: a checkpoint of {size / 1e6:.0f} MB stalls training for "
        f"{1e3 * mean(engine.stalls_s):.0f} ms and costs {mean(costs):.2f} s in all "
        f"(± {spread:.2f}); a step of {options.batch_tokens} tokens takes {step_s:.2f} s: "
        f"{mean(costs) / (EVERY * step_s):.2%} of the time, one every {EVERY} steps (bound: 3 %)"
    )


if __name__ == "__main__":
    main()
