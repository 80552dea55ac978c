"""`cygnet ppo`: a reward model and prompts to a model that earns more of its reward."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from cygnet.config import TRAINING
from cygnet.corpus.instructions import InstructionConfig
from cygnet.errors import UserError
from cygnet.export.huggingface import find_model
from cygnet.model.lora import LoraConfig
from cygnet.stages.reinforcement.ppo import PpoConfig, ppo
from cygnet.stages.reinforcement.prompts import asked_prompts, read_prompts
from cygnet.steps import From, Lora, Train, finish, keeps_runs, learnt_instructions, required
from cygnet.train.parallel.group import connect, first

HELDOUT_SHARE = 0.05
"""Of the prompts of --data."""


@dataclass(frozen=True, kw_only=True)
class PpoCommand:
    """Raise what a reward model gives the model's answers (RLHF)."""

    reads_yaml: ClassVar[bool] = True
    data: tuple[str, ...] = ()
    """JSON lines of prompts ({"prompt": text or messages}); none asks what the model's run learnt
    to answer, or where that is not known the built-in text's questions."""
    from_: From = None
    """Run or model folder to start from; it is the reference too."""
    reward_model: Path | None = None
    """Run or model folder of `cygnet reward`."""
    judge_model: Path | None = None
    """Another one, trained apart from the first: reported, and nothing is learnt from it."""
    out: Path = Path("runs/ppo")
    """The run folder."""
    instructions: InstructionConfig = InstructionConfig()
    settings: Annotated[PpoConfig, tyro.conf.arg(name="")] = PpoConfig()
    lora: Lora = LoraConfig()
    train: Train = TRAINING["ppo"]


@keeps_runs
def ppo_command(config: PpoCommand) -> None:
    """Find prompts, and train."""
    start = find_model(required(config.from_, "ppo"))
    if config.reward_model is None:
        raise UserError(
            "cygnet ppo needs a reward model: --reward_model RUN, which cygnet reward trains"
        )
    connect(config.train.timeout_s)
    if config.data:
        prompts = read_prompts(config.data, HELDOUT_SHARE, prompt_alone=True)
    else:
        with first("prompts", config.train.timeout_s):
            prompts = asked_prompts(
                learnt_instructions("ppo", start, config.out, config.instructions)
            )
    model = ppo(
        prompts, start, config.reward_model, config.judge_model, config.out, config.train,
        config.settings, lora=config.lora,
    )  # fmt: skip
    finish(config.out, model, f"cygnet chat {config.out}")
