"""Instruction tuning: conversations to a model that answers. The assistant's tokens alone count."""

from __future__ import annotations

from pathlib import Path

from cygnet.config import TrainConfig
from cygnet.corpus.pipeline import HELDOUT, TRAIN
from cygnet.files import sha256_file
from cygnet.model.lora import NO_LORA, LoraConfig
from cygnet.stages.launch import load_start, train_and_save
from cygnet.stages.next_token import NextTokenStage, open_shards
from cygnet.stages.pretrain import check_context
from cygnet.text.tokenize import tokenize_conversations


def sft(
    instructions: Path,
    start: Path,
    shards: Path,
    run: Path,
    config: TrainConfig,
    renew: bool = False,
    lora: LoraConfig = NO_LORA,
) -> Path:
    """Tune the model at `start` on an instructions folder and return the model folder.

    Args:
        instructions: what `build_instructions` wrote.
        start: the model to tune.
        shards: where the token shards are, or are made.
        run: the run folder.
        config: training settings.
        renew, lora: see `train_and_save`.

    Raises:
        UserError: `start` is no model, or no conversation has an answer that fits.
    """
    model, tokenizer, start_hash = load_start(start)
    check_context(model, config)
    inputs = {"start": start_hash, "data": sha256_file(instructions / "manifest.json")}

    def stage() -> NextTokenStage:
        for split in (TRAIN, HELDOUT):
            rows = shards / split.partition(".")[0]
            tokenize_conversations(instructions / split, tokenizer, rows, config.max_seq_len)
        return NextTokenStage("sft", *open_shards(shards, tokenizer.hash), config, tokenizer)

    return train_and_save(
        "sft", model, tokenizer, stage, config, run, inputs, renew, lora=lora, start=start
    )
