"""Instruction tuning: conversations to a model that answers. The assistant's tokens alone count.

Unless asked otherwise: `SftConfig.loss_on`.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from cygnet.config import TrainConfig
from cygnet.corpus.document import HELDOUT, TRAIN
from cygnet.errors import UserError, nearest
from cygnet.files import sha256_file
from cygnet.model.lora import NO_LORA, LoraConfig
from cygnet.progress import say
from cygnet.stages.launch import load_start, train_and_save
from cygnet.stages.next_token import NextTokenStage, open_shards
from cygnet.stages.pretrain import check_context
from cygnet.text.tokenize import (
    ConversationSummary,
    LossOn,
    NothingToLearnError,
    tokenize_conversations,
)
from cygnet.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """What of a conversation is learnt.

    Raises:
        UserError: a value is none of those allowed.
    """

    loss_on: LossOn = "assistant"
    """`assistant`: every answer, tool calls and reasoning included; `last`: the last answer of a
    conversation; `all`: every token, the questions too."""

    def __post_init__(self) -> None:
        allowed = get_args(LossOn)
        if self.loss_on not in allowed:
            raise UserError(
                f"loss_on {self.loss_on!r}: use one of {', '.join(allowed)}"
                f"{nearest(str(self.loss_on), allowed)}"
            )


def sft(
    instructions: Path,
    start: Path,
    shards: Path,
    run: Path,
    config: TrainConfig,
    renew: bool = False,
    tuning: SftConfig | None = None,
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
        tuning: what is learnt.

    Raises:
        UserError: `start` is no model, or no conversation has an answer that fits.
    """
    tuning = tuning or SftConfig()
    model, tokenizer, start_hash = load_start(start)
    check_context(model, config)
    inputs = {
        "start": start_hash,
        "data": sha256_file(instructions / "manifest.json"),
        "tuning": asdict(tuning),
    }

    def stage() -> NextTokenStage:
        make_shards(instructions, tokenizer, shards, config.max_seq_len, tuning)
        return NextTokenStage("sft", *open_shards(shards, tokenizer.hash), config, tokenizer)

    return train_and_save(
        "sft", model, tokenizer, stage, config, run, inputs, renew, lora=lora, start=start
    )


def make_shards(
    instructions: Path, tokenizer: Tokenizer, shards: Path, max_seq_len: int, tuning: SftConfig
) -> None:
    """Write `shards/train` and, where a held-out conversation can be used, `shards/heldout`.

    Raises:
        UserError: no training conversation can be used.
    """
    options = (max_seq_len, tuning.loss_on)
    learnt = tokenize_conversations(instructions / TRAIN, tokenizer, shards / "train", *options)
    say_mixture(learnt)
    try:
        tokenize_conversations(instructions / HELDOUT, tokenizer, shards / "heldout", *options)
    except NothingToLearnError as error:
        say(f"sft: nothing is measured on held-out conversations: {error}")
        shutil.rmtree(shards / "heldout", ignore_errors=True)


def say_mixture(learnt: ConversationSummary) -> None:
    """Say which share of what is learnt each kind of data has."""
    shares = sorted(learnt.labels_of.items(), key=lambda kind: -kind[1])
    told = ", ".join(f"{kind} {count / learnt.num_labels:.1%}" for kind, count in shares)
    say(f"sft: {learnt.num_labels:,} tokens to learn: {told}")
