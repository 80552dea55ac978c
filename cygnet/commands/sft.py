"""`cygnet sft`: conversations to a model that answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from cygnet.config import TRAINING
from cygnet.corpus.instructions import InstructionConfig
from cygnet.corpus.mixture import parse_mixture
from cygnet.export.huggingface import find_model
from cygnet.model.lora import LoraConfig
from cygnet.stages.sft import SftConfig, sft
from cygnet.steps import (
    From,
    Lora,
    Train,
    data_folder,
    finish,
    keeps_runs,
    learnt_instructions,
    make_instructions,
    required,
)
from cygnet.train.parallel.group import first


@dataclass(frozen=True, kw_only=True)
class SftCommand:
    """Tune a model to answer."""

    reads_yaml: ClassVar[bool] = True
    data: tuple[str, ...] = ()
    """Conversations (jsonl) or a folder of `cygnet data`; none takes what the model's run learnt
    from, or where that is not known the built-in text. FILE=WEIGHT says how often a row of the file
    is seen in an epoch: a.jsonl=2 b.jsonl=0.5."""
    from_: From = None
    """Run or model folder to start from."""
    out: Path = Path("runs/sft")
    """The run folder."""
    instructions: InstructionConfig = InstructionConfig()
    tuning: Annotated[SftConfig, tyro.conf.arg(name="")] = SftConfig()
    lora: Lora = LoraConfig()
    sft: Train = TRAINING["sft"]


@keeps_runs
def sft_command(config: SftCommand) -> None:
    """Prepare what is missing, and tune."""
    start = find_model(required(config.from_, "sft"))
    out = config.out
    with first("instructions", config.sft.timeout_s):
        if config.data:
            paths, weights = parse_mixture(config.data)
            data = data_folder(paths, out / "data")
            instructions = make_instructions(
                data, out / "instructions", config.instructions, weights
            )
        else:
            instructions = learnt_instructions("sft", start, out, config.instructions)
    model = sft(
        instructions, start, out / "shards", out, config.sft,
        tuning=config.tuning, lora=config.lora,
    )  # fmt: skip
    finish(out, model, f"cygnet dpo --from {out}")
