"""One training in each process that torchrun or deepspeed starts; arguments as JSON.

{"shards": folder, "tokenizer": hash, "run": folder, "config": settings, "sizes": model}
"""

import json
import sys
from pathlib import Path

import torch

from cygnet.config import ModelConfig, TrainConfig, load_settings
from cygnet.model.transformer import Transformer
from cygnet.stages.next_token import NextTokenStage
from cygnet.text.shards import ShardReader
from cygnet.train.engine import Engine


def train(shards: str, tokenizer: str, run: str, config: dict, sizes: dict) -> None:
    settings = load_settings(TrainConfig, config, "test")
    reader = ShardReader(Path(shards), tokenizer)
    model = Transformer(ModelConfig(**sizes))
    model.initialize(torch.Generator().manual_seed(0))
    stage = NextTokenStage("pretrain", reader, reader, settings)
    Engine(model, stage, settings, Path(run), {"stage": "pretrain"}).train()


if __name__ == "__main__":
    train(**json.loads(sys.argv[-1]))
