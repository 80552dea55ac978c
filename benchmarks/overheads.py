"""What is around the matrix products: loader and tracker, start of the command line, resuming.

python benchmarks/overheads.py
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from cygnet.config import ModelConfig, TrainConfig, load_settings, read_yaml
from cygnet.corpus import builtin
from cygnet.model.transformer import Transformer
from cygnet.stages.next_token import NextTokenStage
from cygnet.text.shards import ShardReader
from cygnet.text.tokenize import tokenize_documents
from cygnet.text.tokenizer import train_tokenizer
from cygnet.train.engine import Engine
from cygnet.train.trackers import JsonlTracker

DOCUMENTS = 3000
STEPS = 12


def timed(action: object, *arguments: object) -> float:
    started = time.perf_counter()
    action(*arguments)  # type: ignore[operator]
    return time.perf_counter() - started


def help_seconds() -> float:
    command = [sys.executable, "-m", "cygnet", "--help"]
    return median(timed(subprocess.check_output, command) for _ in range(9))


def main() -> None:
    print(f"cygnet --help: {help_seconds():.2f} s (median of 9; bound: 0.4 s)")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        documents = [d for _, d in zip(range(DOCUMENTS), builtin.builtin_documents(), strict=False)]
        path = folder / "documents.jsonl"
        path.write_text("\n".join(json.dumps(d.to_json()) for d in documents), encoding="utf-8")
        tokenizer = train_tokenizer([d.text for d in documents], 6400)
        tokenize_documents(path, tokenizer, folder / "shards")
        demo = read_yaml(Path(__file__).parent.parent / "configs" / "demo.yaml")
        sizes = load_settings(ModelConfig, demo["model"], "demo.yaml")
        sizes = ModelConfig(**{**vars(sizes), "vocab_size": tokenizer.vocab_size})

        def train(run: Path, steps: int) -> float:
            """Return the seconds until the first step that this call takes is done."""
            config = TrainConfig(
                **{**demo["pretrain"], "minutes": None}, steps=STEPS, checkpoint_every=4,
                compile="on", log_every=1,
            )  # fmt: skip
            reader = ShardReader(folder / "shards", tokenizer.hash)
            started = time.perf_counter()
            model = Transformer(sizes)
            model.initialize(torch.Generator().manual_seed(0))
            stage = NextTokenStage("pretrain", reader, None, config)
            engine = Engine(model, stage, config, run, {"stage": "pretrain"})
            first: list[float] = []
            update = engine._update

            def watched(*arguments: object) -> dict[str, float]:
                metrics = update(*arguments)  # type: ignore[arg-type]
                first.append(time.perf_counter() - started)
                if len(first) == steps:
                    raise KeyboardInterrupt
                return metrics

            engine._update = watched  # type: ignore[method-assign, assignment]
            with contextlib.suppress(KeyboardInterrupt):
                engine.train()
            return first[0]

        train(folder / "warm", 2)  # fills the compiler's cache
        cold = train(folder / "run", 6)
        resumed = train(folder / "run", 2)
        print(
            f"to the end of the first step: {cold:.1f} s from nothing, {resumed:.1f} s resumed "
            "from a checkpoint"
        )
        reader = ShardReader(folder / "shards", tokenizer.hash)
        config = TrainConfig(**{**demo["pretrain"], "minutes": None}, steps=1)
        stage = NextTokenStage("pretrain", reader, None, config)
        loading = median(timed(stage.batch, n) for n in range(50))
        tracker = JsonlTracker(folder / "metrics.jsonl")
        line = {"loss": 1.0, "lr": 1.0, "grad_norm": 1.0, "tokens_per_second": 1.0, "mfu": 0.5}
        logging = median(timed(tracker.log, line, n) for n in range(200))
        lines = [json.loads(x) for x in (folder / "run/metrics.jsonl").read_text().splitlines()]
        speeds = [m["tokens_per_second"] for m in lines if m.get("tokens_per_second")]
        step = config.batch_tokens / median(speeds)
        print(
            f"a step of {config.batch_tokens} tokens: {step:.2f} s; loading it {loading * 1e3:.1f} "
            f"ms, logging it {logging * 1e3:.2f} ms: {(loading + logging) / step:.2%} of the step"
        )


if __name__ == "__main__":
    main()
