"""`cygnet sft`: conversations to a model that answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cygnet.config import TrainConfig
from cygnet.corpus.instructions import InstructionConfig
from cygnet.export.huggingface import find_model
from cygnet.stages.sft import sft
from cygnet.steps import (
    From,
    Train,
    data_folder,
    finish,
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
    from, or where that is not known the built-in text."""
    from_: From = None
    """Run or model folder to start from."""
    out: Path = Path("runs/sft")
    """The run folder."""
    instructions: InstructionConfig = InstructionConfig()
    sft: Train = TrainConfig(epochs=2, learning_rate=1e-3)


def sft_command(config: SftCommand) -> None:
    """Prepare what is missing, and tune."""
    start = find_model(required(config.from_, "sft"))
    out = config.out
    with first("instructions", config.sft.timeout_s):
        if config.data:
            data = data_folder(config.data, out / "data")
            instructions = make_instructions(data, out / "instructions", config.instructions)
        else:
            instructions = learnt_instructions("sft", start, out, config.instructions)
    model = sft(instructions, start, out / "shards", out, config.sft)
    finish(out, model, f"cygnet dpo --from {out}")
