"""Pretraining: clean documents to a model that continues text."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from cygnet.config import ModelConfig, TrainConfig
from cygnet.corpus.document import HELDOUT, TRAIN
from cygnet.errors import UserError
from cygnet.files import sha256_file
from cygnet.model.transformer import Transformer
from cygnet.stages.launch import load_start, train_and_save
from cygnet.stages.next_token import NextTokenStage, open_shards
from cygnet.text.tokenize import tokenize_documents
from cygnet.text.tokenizer import Tokenizer


def pretrain(
    data: Path,
    tokenizer_folder: Path,
    shards: Path,
    run: Path,
    model_config: ModelConfig,
    config: TrainConfig,
    start: Path | None = None,
    renew: bool = False,
) -> Path:
    """Pretrain on a data folder and return the model folder.

    Args:
        data: what `cygnet data` wrote.
        tokenizer_folder: the tokenizer of a new model.
        shards: where the token shards are, or are made.
        run: the run folder.
        model_config: sizes of a new model; its vocabulary becomes the tokenizer's.
        config: training settings.
        start: a model to go on from, with its own sizes and tokenizer.
        renew: see `train_and_save`.

    Raises:
        UserError: `start` is no model, or cannot read rows as long as asked for.
    """
    inputs: dict[str, str | None] = {"start": None}
    if start is not None:
        model, tokenizer, inputs["start"] = load_start(start)
    else:
        tokenizer = Tokenizer.load(tokenizer_folder)
        model = new_model(model_config, tokenizer, config.seed)
    check_context(model, config)
    inputs["data"] = sha256_file(data / "manifest.json")
    inputs["tokenizer"] = tokenizer.hash

    def stage() -> NextTokenStage:
        for split in (TRAIN, HELDOUT):
            tokenize_documents(data / split, tokenizer, shards / split.partition(".")[0])
        return NextTokenStage("pretrain", *open_shards(shards, tokenizer.hash), config, tokenizer)

    return train_and_save("pretrain", model, tokenizer, stage, config, run, inputs, renew)


def new_model(config: ModelConfig, tokenizer: Tokenizer, seed: int) -> Transformer:
    """Return a model of these sizes with the tokenizer's vocabulary; `seed` draws its weights."""
    model = Transformer(dataclasses.replace(config, vocab_size=tokenizer.vocab_size))
    model.initialize(torch.Generator().manual_seed(seed))
    return model


def check_context(model: Transformer, config: TrainConfig) -> None:
    """Refuse rows longer than the context that the model is declared for.

    Raises:
        UserError: max_seq_len is above max_position.
    """
    if config.max_seq_len > model.config.max_position:
        raise UserError(
            f"max_seq_len {config.max_seq_len} is above the model's max_position "
            f"{model.config.max_position}: lower one, or raise the other"
        )
