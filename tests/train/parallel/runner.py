"""One training in each process that torchrun or deepspeed starts; arguments as JSON.

{"shards": folder, "tokenizer": hash, "run": folder, "config": settings, "sizes": model,
 "poison": rank whose loss becomes NaN, or none}
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from cygnet.cli import guarded
from cygnet.config import ModelConfig, TrainConfig, load_settings
from cygnet.model.transformer import Transformer
from cygnet.stages.next_token import NextTokenStage
from cygnet.text.shards import ShardReader
from cygnet.text.tokenizer import Tokenizer
from cygnet.train.engine import Engine
from cygnet.train.parallel.group import disconnect, world


class Poisoned(NextTokenStage):
    """A stage whose loss is not a number."""

    def loss(self, model: Any, rows: Any) -> Any:
        loss, metrics = super().loss(model, rows)
        return loss * float("nan"), metrics


def train(
    shards: str, tokenizer: str, run: str, config: dict, sizes: dict, poison: int | None = None
) -> None:
    settings = load_settings(TrainConfig, config, "test")
    reader = ShardReader(Path(shards), tokenizer)
    model = Transformer(ModelConfig(**sizes))
    model.initialize(torch.Generator().manual_seed(0))
    kind = Poisoned if poison == world().rank else NextTokenStage
    words = Tokenizer.load(Path(shards).with_name("tokenizer"))
    stage = kind("pretrain", reader, None if poison is not None else reader, settings, words)
    Engine(model, stage, settings, Path(run), {"stage": "pretrain"}).train()


if __name__ == "__main__":
    with guarded():
        train(**json.loads(sys.argv[-1]))
        disconnect()
