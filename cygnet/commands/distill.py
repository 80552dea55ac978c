"""`cygnet distill`: a larger model's knowledge to a smaller one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from cygnet.config import TRAINING, ModelConfig
from cygnet.corpus.instructions import InstructionConfig
from cygnet.errors import UserError
from cygnet.export.huggingface import find_model
from cygnet.generate.remote import KEY_VARIABLE, Server
from cygnet.model.lora import LoraConfig
from cygnet.progress import say
from cygnet.stages.distillation.distill import DistillConfig
from cygnet.stages.distillation.distill_run import distill
from cygnet.stages.distillation.teacher_answers import HELDOUT_SHARE, AnswersConfig, ask_teacher
from cygnet.stages.reinforcement.prompts import asked_prompts, read_prompts
from cygnet.stages.sft import sft
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
from cygnet.train.parallel.group import connect, first, on_rank_zero
from cygnet.train.run_folder import data_of


@dataclass(frozen=True, kw_only=True)
class DistillCommand:
    """Let a student learn from a teacher."""

    reads_yaml: ClassVar[bool] = True
    teacher: Annotated[Path | None, tyro.conf.arg(metavar="RUN_OR_MODEL")] = None
    """Run or model folder whose probabilities the student learns; both have one tokenizer."""
    teacher_url: str | None = None
    """In place of --teacher: a server that speaks OpenAI's API, whose answers the student learns.
    Its key is in the environment variable CYGNET_API_KEY."""
    teacher_model: str | None = None
    """Which of the server's models; none takes the only one."""
    data: tuple[str, ...] = ()
    """Raw files or a folder of `cygnet data`; with --teacher_url, JSON lines of prompts. None takes
    what the teacher's run (with --teacher_url: the student's) learnt from."""
    from_: From = None
    """The student; none makes a new one of --model's sizes with the teacher's tokenizer."""
    out: Path = Path("runs/distill")
    """The run folder."""
    model: ModelConfig = ModelConfig()
    instructions: InstructionConfig = InstructionConfig()
    answers: AnswersConfig = AnswersConfig()
    method: Annotated[DistillConfig, tyro.conf.arg(name="")] = DistillConfig()
    lora: Lora = LoraConfig()
    distill: Train = TRAINING["distill"]


@keeps_runs
def distill_command(config: DistillCommand) -> None:
    """Prepare what is missing, and distill."""
    if (config.teacher is None) == (config.teacher_url is None):
        raise UserError(
            "cygnet distill needs one teacher: --teacher RUN_OR_MODEL for its probabilities, or "
            "--teacher_url ADDRESS for its answers"
        )
    model = _from_answers(config) if config.teacher_url else _from_probabilities(config)
    finish(config.out, model, f"cygnet eval {config.out}")


def _from_probabilities(config: DistillCommand) -> Path:
    teacher = find_model(config.teacher or Path())
    start = find_model(config.from_) if config.from_ else None
    with first("data", config.distill.timeout_s):
        data = _data(config, teacher)
    return distill(
        teacher, start, config.model, data, config.out / "shards", config.out, config.distill,
        config.method, lora=config.lora,
    )  # fmt: skip


def _data(config: DistillCommand, teacher: Path) -> Path:
    out, wants_answers = config.out, config.method.learn_from == "conversations"
    if not config.data and wants_answers:
        return learnt_instructions("distill", teacher, out, config.instructions)
    if config.data:
        data = data_folder(config.data, out / "data")
    else:
        learnt = data_of(teacher)
        if learnt is not None and learnt.name == "data":
            say(f"distill: no --data given: taking {learnt}, which {teacher} learnt from")
            data = learnt
        else:
            say("distill: no --data given: taking Cygnet's built-in text")
            data = data_folder((), out / "data")
    if wants_answers:
        return make_instructions(data, out / "instructions", config.instructions)
    return data


def _from_answers(config: DistillCommand) -> Path:
    start = find_model(required(config.from_, "distill --teacher_url"))
    out = config.out
    connect(config.distill.timeout_s)
    if config.data:
        rows = on_rank_zero(
            lambda: read_prompts(config.data, HELDOUT_SHARE, with_tools=False, prompt_alone=True)
        )
    else:
        with first("instructions", config.distill.timeout_s):
            folder = learnt_instructions("distill", start, out, config.instructions)
        rows = asked_prompts(folder, with_tools=False)

    def ask() -> Path:
        key = os.environ.get(KEY_VARIABLE)
        server = Server(config.teacher_url or "", config.teacher_model, key)
        return ask_teacher(server, rows, out, config.answers)

    conversations = on_rank_zero(ask)
    return sft(conversations, start, out / "shards", out, config.distill, lora=config.lora)
