"""`cygnet dpo`: pairs to a model that prefers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from cygnet.config import TRAINING
from cygnet.corpus.instructions import InstructionConfig
from cygnet.export.huggingface import find_model
from cygnet.model.lora import LoraConfig
from cygnet.stages.preference.dpo import DpoConfig, dpo
from cygnet.stages.preference.pairs import PairConfig, take_pairs
from cygnet.steps import (
    From,
    Lora,
    Train,
    finish,
    keeps_runs,
    learnt_instructions,
    make_pairs,
    required,
)
from cygnet.train.parallel.group import connect, first, on_rank_zero


@dataclass(frozen=True, kw_only=True)
class DpoCommand:
    """Align a model with preferences."""

    reads_yaml: ClassVar[bool] = True
    data: tuple[str, ...] = ()
    """JSON lines of pairs (prompt, chosen, rejected); none makes pairs from what the model's run
    learnt from, or where that is not known from the built-in text."""
    from_: From = None
    """Run or model folder to start from; it is the reference too."""
    out: Path = Path("runs/dpo")
    """The run folder."""
    instructions: InstructionConfig = InstructionConfig()
    pairs: PairConfig = PairConfig()
    preference: Annotated[DpoConfig, tyro.conf.arg(name="")] = DpoConfig()
    lora: Lora = LoraConfig()
    dpo: Train = TRAINING["dpo"]


@keeps_runs
def dpo_command(config: DpoCommand) -> None:
    """Make or take pairs, and align."""
    start = find_model(required(config.from_, "dpo"))
    out = config.out
    connect(config.dpo.timeout_s)
    if config.data:
        pairs = out / "pairs"
        on_rank_zero(
            lambda: take_pairs(config.data, pairs, labelled=config.preference.loss == "kto")
        )
    else:
        with first("pairs", config.dpo.timeout_s):
            instructions = learnt_instructions("dpo", start, out, config.instructions)
            pairs = make_pairs(instructions, start, out / "pairs", config.pairs, config.dpo)
    model = dpo(pairs, start, out / "shards", out, config.dpo, config.preference, lora=config.lora)
    finish(out, model, f"cygnet chat {out}")
